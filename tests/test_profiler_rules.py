"""Each rule of the profiler has records that trigger it and records that do not; thresholds at their boundary."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from graft.assembly import build_data, open_folder
from graft.diagnosis import Finding
from graft.inputs import InputSpec
from graft.profiler.causes import EXPLAINS, RULES, causes_first, judge
from graft.profiler.input_rules import saved_by_workers
from graft.profiler.prediction import cached_epoch_seconds, epoch_seconds, epochs_seen
from graft.profiler.records import PHASES, STEP_PHASES, Facts, Records, read_records
from graft.profiler.time_rules import priced
from tests import idle_gpu
from tests.composing import ROOT, composed
from tests.pictures import draw_folder

FACTS = Facts(photos={"train": 80, "valid": 40}, batch_size=10, steps_per_epoch=8, cores=4)
IMAGES = replace(FACTS, cached=False, workers=4)


def steps_of(count: int, *, every: int = 8, **seconds: float) -> dict[str, np.ndarray]:
    """Steps that take the same; a validation of `evaluation` seconds follows each `every`-th."""
    columns = {phase: np.full(count, seconds.get(phase, 0.0)) for phase in PHASES}
    for phase in ("evaluation", "evaluation_wait", "evaluation_forward", "checkpoint"):
        columns[phase][np.arange(count) % every != every - 1] = 0.0
    return {"seconds": np.cumsum(np.sum(list(columns.values()), axis=0)), **columns}


def recorded(
    facts: Facts = FACTS,
    *,
    count: int = 40,
    start_up: float = 0.0,
    look: float = 0.0,
    samples: dict[str, float | np.ndarray] | None = None,
    **seconds: float,
) -> Records:
    """A run of `count` steps that start with the clock, and a sample of the machine every half second."""
    given: dict[str, Any] = {"forward": 0.3, "backward": 0.1, "optimiser": 0.1, **seconds}
    steps = steps_of(count, **given)
    times = np.arange(0.5, steps["seconds"][-1], 0.5)
    quiet = {"cpu_percent": 50.0, "cpu0_percent": 50.0, "iowait_percent": 0.0, "net_mb_s": 0.0} | (samples or {})
    columns = {name: np.broadcast_to(np.asarray(value, float), times.shape) for name, value in quiet.items()}
    phases = {phase: float(steps[phase].sum()) for phase in PHASES} | {"start_up": start_up, "look": look}
    return Records(facts, phases, {"seconds": times, **columns}, steps)


def gpu(percent: float | np.ndarray, memory: float | np.ndarray = 80.0) -> dict[str, float | np.ndarray]:
    return {"gpu0_percent": percent, "gpu0_memory_percent": memory}


def half(low: float, high: float, share: float = 0.5) -> np.ndarray:
    """Of the 39 samples of `recorded()`, a share that is low."""
    return np.where(np.arange(39) < round(share * 39), low, high)


def looked(rule: str, records: Records) -> Finding | None:
    return RULES[rule].look(records).finding


BUSY_GPU = gpu(99.0)
TRIGGERS = {
    "gpu_never_used": recorded(samples=gpu(0.0, 0.0)),
    "low_gpu_utilization": recorded(samples=gpu(69.0)),
    "batch_size": recorded(samples=gpu(60.0, 30.0), other=0.01),
    "gpu_memory_increase": recorded(samples=gpu(99.0, np.linspace(20, 60, 59)), count=60),
    "load_balancing": recorded(samples=BUSY_GPU | {"gpu1_percent": 70.0, "gpu1_memory_percent": 80.0}),
    "cpu_bottleneck": recorded(samples=gpu(half(0.0, 99.0, 0.6)) | {"cpu0_percent": 95.0}),
    "io_bottleneck": recorded(samples={"iowait_percent": 60.0}),
    "dataloader": recorded(replace(IMAGES, workers=0, frozen=False), data_wait=0.1),
    "small_files_on_s3": recorded(replace(FACTS, remote=True), look=30.0, samples={"net_mb_s": 0.5}),
    "recomputed_frozen_features": recorded(IMAGES),
    "max_initialization_time": recorded(start_up=61.0),
}
QUIET = {
    "gpu_never_used": recorded(samples=BUSY_GPU),
    "low_gpu_utilization": recorded(samples=BUSY_GPU),
    "batch_size": recorded(samples=gpu(60.0, 70.0), other=0.01),
    "gpu_memory_increase": recorded(samples=gpu(99.0, 60.0), count=60),
    "load_balancing": recorded(samples=BUSY_GPU | {"gpu1_percent": 98.0, "gpu1_memory_percent": 80.0}),
    "cpu_bottleneck": recorded(samples=gpu(half(0.0, 99.0, 19 / 39)) | {"cpu0_percent": 95.0}),
    "io_bottleneck": recorded(samples={"iowait_percent": 50.0}),
    "dataloader": recorded(IMAGES, data_wait=0.1),
    "small_files_on_s3": recorded(replace(FACTS, remote=True), look=30.0, samples={"net_mb_s": 50.0}),
    "recomputed_frozen_features": recorded(FACTS),
    "max_initialization_time": recorded(start_up=60.0),
    "step_outlier": recorded(count=300),
}


def with_slow_steps(count: int, slow: int, phase: str = "data_wait") -> Records:
    records = recorded(IMAGES, count=count)
    seconds = records.steps[phase].copy()
    seconds[1 : slow + 1] += 5.0
    return replace(records, steps={**records.steps, phase: seconds})


def rehearsed(seconds: float) -> Records:
    return recorded(replace(IMAGES, cached_epoch_s=seconds), count=16)


def fetched(megabytes_s: float, look: float) -> Records:
    return recorded(replace(FACTS, remote=True), look=look, samples={"net_mb_s": megabytes_s})


TRIGGERS["step_outlier"] = with_slow_steps(300, 11)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_each_rule_has_a_run_that_triggers_it_and_one_that_does_not(rule: str) -> None:
    verdict = RULES[rule].look(TRIGGERS[rule])
    assert verdict.finding is not None
    assert verdict.finding.rule == rule
    assert verdict.points > 0
    assert verdict.triggered > 0
    quiet = RULES[rule].look(QUIET[rule])
    assert quiet.finding is None
    assert quiet.points > 0


@pytest.mark.parametrize(
    ("rule", "still", "over"),
    [
        ("gpu_never_used", recorded(samples=gpu(1.0)), recorded(samples=gpu(0.99))),
        ("low_gpu_utilization", recorded(samples=gpu(70.0)), recorded(samples=gpu(69.9))),
        ("low_gpu_utilization", recorded(samples=gpu(half(10.0, 99.0))), recorded(samples=gpu(half(9.9, 99.0)))),
        ("batch_size", recorded(samples=gpu(60.0, 70.0)), recorded(samples=gpu(60.0, 69.9))),
        (
            "batch_size",
            recorded(samples=gpu(60.0, 30.0) | {"cpu_percent": 70.0}),
            recorded(samples=gpu(60.0, 30.0) | {"cpu_percent": 69.9}),
        ),
        (
            "load_balancing",
            recorded(samples={"gpu0_percent": 100.0, "gpu1_percent": 80.0}),
            recorded(samples={"gpu0_percent": 100.0, "gpu1_percent": 79.0}),
        ),
        (
            "cpu_bottleneck",
            recorded(samples=gpu(0.0) | {"cpu0_percent": 90.0}),
            recorded(samples=gpu(0.0) | {"cpu0_percent": 90.1}),
        ),
        (
            "cpu_bottleneck",
            recorded(samples=gpu(10.0) | {"cpu0_percent": 95.0}),
            recorded(samples=gpu(9.9) | {"cpu0_percent": 95.0}),
        ),
        (
            "io_bottleneck",
            recorded(samples={"iowait_percent": half(60.0, 0.0, 19 / 39)}),
            recorded(samples={"iowait_percent": half(60.0, 0.0, 20 / 39)}),
        ),
        (
            "io_bottleneck",
            recorded(samples={"iowait_percent": 50.0}),
            recorded(samples={"iowait_percent": 50.1}),
        ),
        (
            "io_bottleneck",
            recorded(samples=gpu(10.0) | {"iowait_percent": 60.0}),
            recorded(samples=gpu(9.9) | {"iowait_percent": 60.0}),
        ),
        ("batch_size", recorded(samples=gpu(70.0, 30.0)), recorded(samples=gpu(69.9, 30.0))),
        ("step_outlier", with_slow_steps(300, 10), with_slow_steps(300, 11)),
        # A tenth of all steps that is slow lies three standard deviations above the mean, however slow it is.
        ("step_outlier", with_slow_steps(301, 31), with_slow_steps(301, 29)),
        ("max_initialization_time", recorded(start_up=60.0), recorded(start_up=60.1)),
        ("max_initialization_time", recorded(start_up=1200.0, look=1e4), recorded(start_up=1200.1, look=1e4)),
        # Two epochs of 4 s, less a first look of 12 batches at 0.3 s: at 1.8 s an epoch, a tenth of the run is saved.
        ("recomputed_frozen_features", rehearsed(1.81), rehearsed(1.79)),
        # 39 samples of half a second over 120 photos: 49.2 MB/s are 8 MB a photo.
        ("small_files_on_s3", fetched(49.3, look=30.0), fetched(49.2, look=30.0)),
        ("small_files_on_s3", fetched(0.5, look=4.9), fetched(0.5, look=5.0)),  # of a run of 20 s and the look
    ],
)
def test_the_thresholds_lie_where_they_are_said_to(rule: str, still: Records, over: Records) -> None:
    assert looked(rule, still) is None
    assert looked(rule, over) is not None


@pytest.mark.parametrize(
    ("workers", "waiting", "found"),
    [(2, 0.1, True), (3, 0.1, False), (8, 0.1, False), (9, 0.1, True), (2, 0.055, False), (2, 0.057, True)],
)
def test_loader_processes_are_judged_by_cores_and_by_what_steps_wait(workers: int, waiting: float, found: bool) -> None:
    # 4 cores: 0.7 of them is 2.8, twice is 8. A tenth of a step of 0.5 + w is w = 0.0556.
    records = recorded(replace(IMAGES, frozen=False, workers=workers), data_wait=waiting)
    assert (looked("dataloader", records) is not None) is found


def test_memory_that_grows_by_five_points_is_no_finding_and_by_more_is_one() -> None:
    def grown(by: float) -> Records:
        # After the patience of 20 samples, ten at 40 % and the rest, 9, would be less than two windows: 50 samples.
        memory = np.concatenate([np.full(40, 40.0), np.full(10, 40.0 + by)])
        return recorded(count=102, samples=gpu(99.0, memory), forward=0.05)

    assert looked("gpu_memory_increase", grown(5.0)) is None
    finding = looked("gpu_memory_increase", grown(5.1))
    assert finding is not None
    assert "from 40 % to 45.1 %" in finding.seen


def test_slow_transfers_alone_are_no_finding_for_no_key_changes_them() -> None:
    assert looked("dataloader", recorded(replace(IMAGES, device="cuda", frozen=False), transfer=0.1)) is None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_on_their_way_to_a_gpu_are_pinned(device: str, tmp_path: Path) -> None:
    config = composed("data=folder", f"data.root={draw_folder(tmp_path)}", "data.workers=0")
    folder = open_folder(config)
    photos: Any = SimpleNamespace(
        splits={"train": folder.train, "valid": folder.valid}, spec=InputSpec(8, 8), train_source=lambda: None
    )
    data = build_data(config, photos, device)
    assert {data.train_dataloader().pin_memory, data.val_dataloader().pin_memory} == {device == "cuda"}


def test_prices_are_told_with_the_digits_that_matter() -> None:
    facts = replace(FACTS, usd_per_hour=3600.0)
    prices = [priced(seconds, facts).partition(" (")[2] for seconds in (0.0151, 9.94, 99.6, 12345.0)]
    assert prices == ["0.015 USD)", "9.9 USD)", "100 USD)", "12,345 USD)"]


def test_workers_save_what_they_decode_beside_the_training() -> None:
    # 0 workers on 4 cores: 8 s of decoding become 2 s. On a GPU they hide behind the 4 s that it computes.
    assert saved_by_workers(8.0, 12.0, replace(IMAGES, workers=0)) == 6.0
    assert saved_by_workers(8.0, 12.0, replace(IMAGES, workers=0, device="cuda")) == 8.0
    assert saved_by_workers(8.0, 9.0, replace(IMAGES, workers=0, device="cuda")) == 7.0
    assert saved_by_workers(8.0, 12.0, replace(IMAGES, workers=9)) == 0.0


SLOW_DISK: dict[str, float | np.ndarray] = {"iowait_percent": 60.0}
SLOW_LOADER = replace(IMAGES, workers=1, device="cuda", frozen=False)


@pytest.mark.parametrize(
    ("rule", "records", "saved"),
    [
        # 40 steps of 0.9 s, of which one process decodes for 16 s: four do it beside the GPU
        ("cpu_bottleneck", recorded(SLOW_LOADER, samples=gpu(0.0) | {"cpu0_percent": 95.0}, data_wait=0.4), 16.0),
        ("cpu_bottleneck", recorded(samples=gpu(0.0) | {"cpu0_percent": 95.0}), None),  # features are not decoded
        # 40 steps of 1.4 s, in 60 % of which the processor waits for a disk; or of 0.6 s, in 0.1 of which steps wait
        ("io_bottleneck", recorded(samples=SLOW_DISK, data_wait=0.9), 33.6),
        ("io_bottleneck", recorded(samples=SLOW_DISK, data_wait=0.1), 4.0),
        ("io_bottleneck", recorded(samples=SLOW_DISK), None),
        ("small_files_on_s3", fetched(0.5, look=30.0), 15.0),  # in half of which the processor was busy
        ("step_outlier", with_slow_steps(300, 11), 55.0),
        ("gpu_never_used", TRIGGERS["gpu_never_used"], None),
        ("max_initialization_time", TRIGGERS["max_initialization_time"], None),
    ],
)
def test_what_a_change_saves_is_predicted_where_the_run_tells(rule: str, records: Records, saved: float | None) -> None:
    finding = looked(rule, records)
    assert finding is not None
    assert finding.saved_s == (saved if saved is None else pytest.approx(saved))


def test_what_recomputed_features_cost_is_told_by_the_runs_own_seconds() -> None:
    # 5 epochs of 8 steps: 0.2 wait + 0.3 forward + 0.1 backward + 0.1 optimiser; validation 1 + 0.4 s, checkpoint 0.5.
    times: dict[str, Any] = {"data_wait": 0.2, "evaluation": 1.0, "evaluation_forward": 0.4, "checkpoint": 0.5}
    records = recorded(replace(IMAGES, usd_per_hour=3.6), look=2.0, **times)
    assert epochs_seen(records) == 5
    assert epoch_seconds(records) == pytest.approx(8 * 0.7 + 1.9)
    # The head: backward, optimiser and half a backward for its forward; 4 batches of validation; what else ends it.
    assert cached_epoch_seconds(records) == pytest.approx(8 * 0.25 + 4 * 0.05 + 1.5)
    finding = looked("recomputed_frozen_features", records)
    assert finding is not None
    assert finding.cost_s == pytest.approx(5 * (7.5 - 3.7))
    # One pass of 120 photos in batches of 10 takes 12 x 0.5 s, of which the run's own look was 2 s.
    assert finding.saved_s == pytest.approx(5 * 3.8 - (6.0 - 2.0))
    assert finding.change == "features=cached"
    assert "15 s (0.015 USD) less" in finding.gain


def test_a_rehearsed_epoch_counts_instead_of_what_the_slow_steps_suggest() -> None:
    records = recorded(replace(IMAGES, cached_epoch_s=0.25), look=2.0)
    finding = looked("recomputed_frozen_features", records)
    assert finding is not None
    assert finding.cost_s == pytest.approx(5 * (8 * 0.5 - 0.25))
    assert finding.gain.startswith("an epoch takes 0.25 s, not 4 s")


def test_augmented_photos_are_advised_to_keep_a_view() -> None:
    finding = looked("recomputed_frozen_features", recorded(replace(IMAGES, augment=True)))
    assert finding is not None
    assert finding.change == "features=cached features.views=1"


def test_one_epoch_recomputes_nothing() -> None:
    assert looked("recomputed_frozen_features", recorded(IMAGES, count=8)) is None


def test_a_backbone_that_trains_is_not_told_to_be_cached() -> None:
    assert looked("recomputed_frozen_features", recorded(replace(IMAGES, frozen=False))) is None


def test_an_idle_gpu_is_the_cause_and_low_utilisation_its_symptom() -> None:
    # The original's job: 0 workers on 4 cores, of which 52 % were busy, the model left on the CPU.
    facts = replace(IMAGES, workers=0, augment=True)
    records = recorded(facts, samples=gpu(0.0, 0.0) | {"cpu_percent": 52.0}, data_wait=0.02)
    first, *_ = judge(records).findings
    assert first.rule == "gpu_never_used"
    assert [symptom.rule for symptom in first.symptoms] == ["low_gpu_utilization", "batch_size"]


def test_the_recorded_stand_in_of_the_originals_job_names_the_true_cause() -> None:
    (first,) = judge(read_records(idle_gpu.FOLDER)).findings
    assert (first.rule, first.change) == ("gpu_never_used", "trainer=gpu")
    assert [symptom.rule for symptom in first.symptoms] == ["low_gpu_utilization", "batch_size"]
    assert "larger batches" in first.why


def test_findings_come_in_the_order_of_their_seconds_and_symptoms_below_their_causes() -> None:
    found = [
        Finding("low_gpu_utilization", "", "", "", cost_s=90.0),
        Finding("max_initialization_time", "", "", "", cost_s=20.0),
        Finding("dataloader", "", "", "", cost_s=30.0),
        Finding("gpu_memory_increase", "", "", ""),
    ]
    ordered = causes_first(found)
    assert [finding.rule for finding in ordered] == ["dataloader", "max_initialization_time", "gpu_memory_increase"]
    assert [symptom.rule for symptom in ordered[0].symptoms] == ["low_gpu_utilization"]


def test_a_cause_explains_the_symptoms_of_its_symptoms() -> None:
    for cause, symptoms in EXPLAINS.items():
        for symptom in symptoms:
            assert set(EXPLAINS.get(symptom, ())) - {cause} <= {*symptoms}, (cause, symptom)


def test_a_run_that_recorded_nothing_has_no_findings() -> None:
    diagnosis = judge(Records(Facts()))
    assert diagnosis.findings == ()
    assert [row.rule for row in diagnosis.rules] == list(RULES)
    assert not any(row.points or row.triggered for row in diagnosis.rules)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_page_explains_each_rule_with_its_thresholds_source_and_key(rule: str) -> None:
    page = (ROOT / "docs" / "profiler.md").read_text()
    section = re.search(rf"^### {rule}\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    assert section is not None
    text = " ".join(section[1].split())
    for name, value in RULES[rule].parameters.items():
        assert f"`{name}` {value:g}" in text
    assert RULES[rule].source.partition(":")[0] in text
    finding = RULES[rule].look(TRIGGERS[rule]).finding
    assert finding is not None
    assert f"`{finding.key}`" in text


def test_the_page_names_each_key_that_an_outlier_may_have() -> None:
    page = (ROOT / "docs" / "profiler.md").read_text()
    section = page.partition("### step_outlier\n")[2].partition("\n###")[0]
    for phase in (*STEP_PHASES, "other"):
        finding = looked("step_outlier", with_slow_steps(300, 11, phase))
        assert finding is not None
        assert f"most of it in {phase}" in finding.seen
        assert not finding.key or f"`{finding.key}` where that is {phase}" in " ".join(section.split())
