"""The profiler's stopwatch, records and runs: phases add up, a killed run keeps what it wrote, off is off."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.diagnosis import faults_of
from graft.config import OnFinding
from graft.diagnosis import Diagnosis, read_diagnosis
from graft.errors import RunError
from graft.profiler.__main__ import Comparison, main, overrides_of, shortened
from graft.profiler.recorder import diagnose
from graft.profiler.records import FOLDER, Facts, RecordWriter, read_phases, read_records, read_samples
from graft.profiler.sampler import Machine, open_gpus
from graft.profiler.stopwatch import STEP_COLUMNS, Stopwatch
from graft.profiler.timer import turns_of
from graft.trainer import train
from tests.composing import composed
from tests.pictures import draw_folder
from tests.test_profiler_rules import TRIGGERS, looked
from tests.training import run, start, tiny, wait_for

IMPATIENT = """
import runpy, sys
from graft.profiler import sampler
sampler.FLUSH_S = 0.0
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Clock:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_phase_inside_of_another_counts_as_itself_alone() -> None:
    clock = Clock()
    watch = Stopwatch(98.0, clock)  # the run began 2 s before
    watch.become("other")
    clock.now += 1
    with watch.measured("optimiser"):
        clock.now += 2
        with watch.measured("forward"):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    counted = {phase: seconds for phase, seconds in watch.totals().items() if seconds}
    assert counted == {"start_up": 2, "other": 17, "optimiser": 10, "forward": 4}


def test_a_step_has_what_was_spent_since_the_one_before() -> None:
    clock = Clock()
    watch = Stopwatch(100.0, clock)
    clock.now += 5
    watch.become("other")
    watch.begin_steps()
    for spent in (1.0, 2.0):
        with watch.measured("forward"):
            clock.now += spent
        watch.end_step()
    place = STEP_COLUMNS.index("forward")
    assert [(row[0], row[place], sum(row[1:])) for row in watch.steps] == [(6, 1, 1), (8, 2, 2)]


def test_a_phase_that_fails_ends_those_that_it_left_open() -> None:
    watch = Stopwatch(100.0, Clock())
    with contextlib.suppress(ValueError), watch.measured("look"):
        watch.enter("forward")
        raise ValueError
    assert watch.phase == "start_up"


@pytest.mark.parametrize(
    ("action", "turns"),
    [
        ("[_TrainingEpochLoop].train_dataloader_next", ("data_wait", True)),
        ("[Strategy]DDPStrategy.training_step", ("forward", True)),
        ("[LightningModule]Classifier.optimizer_step", ("optimiser", True)),
        ("[Callback]Probe.on_before_optimizer_step", ("other", True)),
        ("[LightningModule]Classifier.on_before_optimizer_step", (None, False)),
        ("[LightningModule]Classifier.on_validation_model_eval", ("evaluation", False)),
        ("[Strategy]DDPStrategy.on_validation_end", (None, True)),
        ("[Callback]Probe.on_validation_end", (None, False)),
        ("[Callback]Probe.on_train_batch_end", (None, False)),
        ("save_checkpoint", ("checkpoint", True)),
    ],
)
def test_what_lightning_does_turns_the_stopwatch(action: str, turns: tuple[str | None, bool]) -> None:
    assert turns_of(action) == turns


def test_sessions_go_on_where_the_one_before_ended(tmp_path: Path) -> None:
    for number in range(2):
        writer = RecordWriter(tmp_path)
        writer.write("samples", ["seconds", "cpu_percent"], [[0.5, 10.0 + number], [1.0, 20.0 + number]])
        writer.write_session(Facts(workers=number), {"look": 3.0, "evaluation": 1.0, "final_evaluation": 0.5})
    assert read_samples(tmp_path)["seconds"].tolist() == [0.5, 1.0, 5.0, 5.5]
    assert read_samples(tmp_path)["cpu_percent"].tolist() == [10, 20, 11, 21]
    assert read_phases(tmp_path) == {"look": 6.0, "evaluation": 3.0}
    assert read_records(tmp_path).facts.workers == 1


def test_what_a_machine_lacks_is_not_a_number(tmp_path: Path) -> None:
    RecordWriter(tmp_path).write("samples", ["seconds", "cpu_percent"], [[0.5, 10.0]])
    RecordWriter(tmp_path).write("samples", ["seconds", "gpu0_percent"], [[0.5, 99.0]])
    read = read_samples(tmp_path)
    assert np.isnan(read["cpu_percent"]).tolist() == [False, True]
    assert np.isnan(read["gpu0_percent"]).tolist() == [True, False]


def session(run_dir: Path, figures: dict[str, float]) -> None:
    """A process that starts for 10 s and then takes 40 steps of half a second, with these figures in each sample."""
    writer = RecordWriter(run_dir)
    step = [0.0 if name != "forward" else 0.5 for name in STEP_COLUMNS[1:]]
    writer.write("steps", STEP_COLUMNS, [[10 + 0.5 * (number + 1), *step] for number in range(40)])
    quiet = {"cpu_percent": 50.0, "cpu0_percent": 50.0, "iowait_percent": 0.0, "net_mb_s": 0.0}
    seconds = [0.5 * (number + 1) for number in range(60)]
    writer.write("samples", ["seconds", *quiet, *figures], [[at, *quiet.values(), *figures.values()] for at in seconds])
    writer.write_session(Facts(cached=False, frozen=False, workers=1), {"start_up": 10.0, "forward": 20.0})


BUSY = {"gpu0_percent": 99.0, "gpu0_memory_percent": 80.0, "gpu0_watts": float("nan")}


def test_a_run_that_goes_on_where_there_is_no_gpu_is_judged_by_what_there_is(tmp_path: Path) -> None:
    session(tmp_path, BUSY)
    session(tmp_path, {})
    assert diagnose(tmp_path).findings == ()  # and findings.json holds no NaN, which JSON refuses
    assert read_records(tmp_path).gpus("percent").shape == (0, 0)


def test_a_run_that_goes_on_with_one_gpu_of_two_is_judged_by_that_one(tmp_path: Path) -> None:
    session(tmp_path, BUSY | {"gpu1_percent": 20.0, "gpu1_memory_percent": 80.0})
    session(tmp_path, BUSY)
    assert diagnose(tmp_path).findings == ()
    assert read_records(tmp_path).gpus("percent").tolist() == [[99.0] * 41]


def test_the_start_of_a_process_that_goes_on_is_no_training(tmp_path: Path) -> None:
    for _ in range(2):
        session(tmp_path, {})
    records = read_records(tmp_path)
    # The second process began at 30 s and trained from 40 to 60.
    assert (records.training["seconds"].min(), records.training["seconds"].max()) == (40.0, 60.0)
    assert records.training_seconds == 40.0


def test_a_run_without_records_says_so(tmp_path: Path) -> None:
    assert read_samples(tmp_path) == {}
    assert read_phases(tmp_path) == {}
    with pytest.raises(RunError, match="has no records of the profiler; accepted is a run"):
        read_records(tmp_path)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    RecordWriter(tmp_path).write("samples", ["seconds"], [[0.5]])
    part = next((tmp_path / FOLDER).glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:40])
    with pytest.raises(RunError, match=r"samples-001-00000\.parquet cannot be read"):
        read_samples(tmp_path)


def test_a_sample_has_a_number_for_each_column() -> None:
    machine = Machine()
    time.sleep(0.1)
    sample = dict(zip(machine.columns, machine.sample(), strict=True))
    assert {"cpu_percent", "cpu0_percent", "iowait_percent", "memory_percent", "disk_read_mb_s", "net_mb_s"} <= {
        *sample
    }
    assert 0 <= sample["cpu_percent"] <= 100
    assert 0 < sample["memory_percent"] < 100


class DividedGPU:
    """NVML as it is where a GPU is divided (MIG): of three figures it tells one."""

    class NVMLError(Exception):
        """As pynvml's."""

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=3.0, total=12.0)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        raise self.NVMLError("Not Supported")

    nvmlDeviceGetPowerUsage = nvmlDeviceGetUtilizationRates


def test_a_figure_that_a_gpu_does_not_tell_is_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", DividedGPU())
    (read,) = open_gpus()
    assert read() == pytest.approx((float("nan"), 25.0, float("nan")), nan_ok=True)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slow run: images, no workers, a frozen backbone; traced for two steps."""
    folder = tmp_path_factory.mktemp("profiled")
    photos = draw_folder(folder / "photos")
    more = ("features=off", "profiler.interval_s=0.05", "profiler.torch_steps=2", "profiler.usd_per_hour=1")
    ended: list[float] = []

    def noted(run_dir: Path) -> Diagnosis:
        ended.append(time.perf_counter())  # the records are closed; judging them and the report are not in them
        return diagnose(run_dir)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graft.profiler.recorder.diagnose", noted)
        config = composed(*tiny(photos, folder / "run", *more))
        started = time.perf_counter()
        result = train(config, started=started)
    (folder / "took").write_text(str(ended[0] - started))
    (folder / "told").write_text("\n".join(result.costs))
    return folder


def test_the_phases_of_a_run_add_up_to_the_time_it_took(profiled: Path) -> None:
    phases, took = read_phases(profiled / "run"), float((profiled / "took").read_text())
    assert sum(phases.values()) == pytest.approx(took, rel=0.05)
    assert all(phases[name] > 0 for name in ("start_up", "look", "data_wait", "forward", "backward", "optimiser"))
    assert all(phases[name] > 0 for name in ("evaluation", "checkpoint", "shutdown"))


def test_each_step_of_a_run_is_recorded(profiled: Path) -> None:
    records = read_records(profiled / "run")
    steps = records.facts.steps_per_epoch * 3
    assert len(records.step_seconds) == steps
    assert (records.steps["forward"] > 0).all()
    assert np.count_nonzero(records.steps["evaluation"]) == 3
    assert (np.diff(records.steps["seconds"]) > 0).all()


def test_what_a_run_found_lies_beside_its_records(profiled: Path) -> None:
    folder = profiled / "run" / FOLDER
    assert len(read_diagnosis(folder / "findings.json").rules) == 12
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["phases_s"] == read_phases(profiled / "run")
    assert summary["usd"] == pytest.approx(summary["seconds"] / 3600)
    assert summary["steps"] == len(read_records(profiled / "run").step_seconds)
    trace = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    assert any("aten::" in str(event.get("name")) for event in trace["traceEvents"])


def test_off_is_off(tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "photos")
    run(tiny(photos, tmp_path / "run", "profiler=off", "trainer.max_epochs=1"))
    assert not (tmp_path / "run" / FOLDER).exists()


def test_a_run_that_fails_is_judged_too(tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "photos")
    with pytest.raises(RunError, match="diverged"):
        run(tiny(photos, tmp_path / "run", "optim.lr=1e30", "trainer.max_epochs=1"))
    assert (tmp_path / "run" / FOLDER / "findings.json").exists()
    assert read_phases(tmp_path / "run")["look"] > 0


@pytest.mark.slow
def test_a_killed_run_leaves_readable_records(tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "photos")
    overrides = tiny(photos, tmp_path / "run", "trainer.max_epochs=100000", "profiler.interval_s=0.1")
    process = start(overrides, program=("-c", IMPATIENT))
    wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", process)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    records = read_records(tmp_path / "run")
    assert len(records.step_seconds) > 0
    assert len(records.samples["seconds"]) > 0
    assert main(["findings", str(tmp_path / "run")]) in (0, 1)


def test_what_a_finding_advises_as_overrides() -> None:
    def advice(rule: str) -> dict[str, object]:
        finding = looked(rule, TRIGGERS[rule])
        assert finding is not None
        return overrides_of(finding)

    assert advice("recomputed_frozen_features") == {"features.enabled": True}
    assert advice("gpu_never_used") == {"trainer.accelerator": "gpu"}
    assert advice("dataloader") == {"data.workers": 4}
    assert advice("batch_size") == {"data.batch_size": 20}
    assert advice("io_bottleneck") == {}


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little a tiny run's features cost, that is a finding."""
    monkeypatch.setattr("graft.profiler.time_rules.RECOMPUTED_SHARE", -1e9)


@pytest.mark.usefixtures("advised")
def test_apply_measures_the_first_advice_and_leaves_the_run_as_it_is(
    profiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (profiled / "run").rglob("*")}
    assert main(["apply", str(profiled / "run"), "--steps", "7"]) == 0
    first, took, predicted, saved = capsys.readouterr().out.splitlines()[-4:]
    assert first == "recomputed_frozen_features: 7 steps with features=cached features.views=1"
    assert re.fullmatch(r"an epoch took \S+ s; with the change \S+ s, \S+ times less", took)
    assert re.fullmatch(r"predicted was \S+ s: measured differs by [+-]\d+%", predicted)
    assert re.fullmatch(r"saved in an epoch: \S+ s, predicted \S+ s", saved)
    assert {path: path.stat().st_mtime_ns for path in (profiled / "run").rglob("*")} == before


@pytest.mark.usefixtures("advised")
def test_apply_does_not_compare_one_process_with_several(
    profiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(profiled / "run" / FOLDER, tmp_path / FOLDER)
    text = (profiled / "run" / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(re.sub(r"\bdevices: 1\b", "devices: 2", text))
    assert main(["apply", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "error: trainer.devices=2 x trainer.num_nodes=1: apply trains in one process, whose times tell nothing of 2; "
        "accepted is the directory of a run of one. The advice was: features=cached features.views=1\n"
    )


def test_a_run_that_is_timed_goes_to_its_end_and_is_not_traced() -> None:
    given = ("trainer.patience=2", "debugger.on_finding=stop", "profiler.torch_steps=3", "evaluate.test=true")
    config = composed("data=demo", *given)
    trial = shortened(config, steps_per_epoch=20, steps=50, run_dir="elsewhere")
    assert trial.trainer.max_epochs == 3
    assert (trial.trainer.max_steps, shortened(config, 60, 50, "elsewhere").trainer.max_steps) == (-1, 50)
    assert (trial.trainer.patience, trial.debugger.on_finding) == (None, OnFinding.report)
    assert (trial.profiler.enabled, trial.profiler.torch_steps) == (True, 0)
    assert not trial.evaluate.test


@pytest.mark.parametrize(
    ("measured", "predicted", "faults"),
    [
        (2.0, 2.0, []),
        (2.0, 1.6, []),
        (1.0, 0.7, ["measured differs from predicted by +43%, not by 30% at most"]),
        (1.0, None, ["measured differs from predicted by +nan%, not by 30% at most"]),
        (2.5, 2.5, ["an epoch takes 4 times less, not 5 or more"]),
    ],
)
def test_the_benchmark_fails_where_the_advice_does_not_bring_what_it_promised(
    measured: float, predicted: float | None, faults: list[str]
) -> None:
    assert faults_of(Comparison(10.0, measured, predicted)) == faults


def test_apply_says_where_there_is_nothing_to_apply(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RecordWriter(tmp_path)
    assert main(["apply", str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"no finding of {tmp_path} names a key to change: nothing to apply\n"
    assert main(["apply", str(tmp_path), "--steps", "0"]) == 2
    assert capsys.readouterr().err == "error: --steps 0: accepted is at least 1\n"
