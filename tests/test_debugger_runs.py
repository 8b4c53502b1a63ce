"""Whole runs and the debugger: healthy ones, broken ones, stopped ones, and what a person is told of each."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graft.artifacts import read_state
from graft.config import flatten
from graft.debugger.__main__ import main
from graft.debugger.judge import RULES, judge
from graft.debugger.records import read_losses, read_records
from graft.debugger.smdebug_hook import check_backend
from graft.diagnosis import Verdict, read_diagnosis
from graft.errors import ConfigError, RunError
from graft.profiler import causes
from graft.terminal import run_table
from tests.composing import ROOT, composed
from tests.conftest import REAL_DATA
from tests.pictures import draw_folder
from tests.training import read_json, run, tiny

DOGS = (
    "data=folder",
    "model.backbone=mobilenet_v2",
    f"model.weights={REAL_DATA / 'weights' / 'mobilenet_v2.pth'}",
    "trainer.accelerator=cpu",
    "trainer.progress=false",
)
DEMO = ("data=demo", "trainer.accelerator=cpu", "trainer.progress=false")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("photos"), train=30)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose cache knows the features of the demo's photos after the first run."""
    return tmp_path_factory.mktemp("demo")


def found_in(run_dir: Path) -> list[str]:
    return [finding.rule for finding in read_diagnosis(run_dir / "debugger" / "findings.json").findings]


def train_demo(demo: Path, name: str, *more: str) -> list[str]:
    """What is found in a run on the demo's photos."""
    places = (f"data.root={demo / 'photos'}", f"features.cache_dir={demo / 'cache'}", f"run_dir={demo / name}")
    run([*DEMO, *places, *more])
    return found_in(demo / name)


def train_dogs(tmp: Path, photos: Path, name: str, *more: str) -> list[str]:
    run([*DOGS, f"data.root={photos}", f"features.cache_dir={tmp / 'cache'}", f"run_dir={tmp / name}", *more])
    return found_in(tmp / name)


def flip(source: Path, target: Path, share: float = 0.2) -> Path:
    """A copy of train/ and valid/ by links, with a share of the photos in the folder of another class."""
    rng = np.random.default_rng(0)
    classes = sorted(folder.name for folder in (source / "train").iterdir())
    for photo in sorted(path for split in ("train", "valid") for path in (source / split).glob("*/*")):
        place = photo.relative_to(source)
        others = [name for name in classes if name != photo.parent.name]
        label = rng.choice(others) if rng.random() < share else photo.parent.name
        link = target / place.parts[0] / str(label) / photo.name
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(photo, link.with_stem(f"{photo.parent.name}-{photo.stem}"))
    return target


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_healthy_demo_has_no_finding(seed: int, demo: Path) -> None:
    assert train_demo(demo, f"healthy{seed}", f"seed={seed}") == []
    diagnosis = read_diagnosis(demo / f"healthy{seed}" / "debugger" / "findings.json")
    assert [row.rule for row in diagnosis.rules] == list(RULES)


@pytest.mark.slow
def test_wrong_labels_are_named_in_a_demo(demo: Path) -> None:
    flipped = flip(demo / "photos", demo / "flipped")
    found = train_demo(demo, "noisy", f"data.root={flipped}", "data=folder", "model=small")
    assert found[0] == "label_noise_suspected"


@pytest.mark.slow
def test_a_batch_of_two_is_named_in_a_demo(demo: Path) -> None:
    found = train_demo(demo, "jagged", "data.batch_size=2", "trainer.max_epochs=4")
    assert found == ["noisy_loss"]


@pytest.mark.slow
@pytest.mark.real_data
def test_dogs_are_healthy_unless_they_are_not(tmp_path: Path) -> None:
    dogs = REAL_DATA / "dogs"
    for seed in (0, 1, 2):
        assert train_dogs(tmp_path, dogs, f"healthy{seed}", f"seed={seed}") == []
    flipped = flip(dogs, tmp_path / "flipped")
    assert train_dogs(tmp_path, flipped, "noisy")[0] == "label_noise_suspected"
    assert train_dogs(tmp_path, dogs, "jagged", "data.batch_size=2", "trainer.max_epochs=1") == ["noisy_loss"]
    assert train_dogs(tmp_path, dogs, "fast", "optim.lr=1", "trainer.max_epochs=2")[0] == "exploding_gradient"
    assert train_dogs(tmp_path, dogs, "slow", "optim.lr=1e-6", "trainer.max_epochs=4") == ["loss_not_decreasing"]


def test_a_run_that_diverges_says_so_and_why(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match="training diverged"):
        run(tiny(photos, tmp_path / "run", "optim.lr=1e30"))
    diagnosis = read_diagnosis(tmp_path / "run" / "debugger" / "findings.json")
    (finding,) = diagnosis.findings
    assert finding.rule == "nan_or_inf"
    assert finding.change == "optim.lr=1e+29"
    page = tmp_path / "run" / "report.html"
    said = capsys.readouterr().err
    assert f"training: nan_or_inf (since step {finding.since_step}): {finding.seen}; change: optim.lr=1e+29" in said
    assert f"report: {page}\n" in said
    shown = page.read_text()
    assert "This run is failed (RunError: training diverged" in shown
    assert finding.seen in shown


def test_a_fault_in_what_watches_a_run_fails_no_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(records: object) -> Verdict:
        raise IndexError("index 3 is out of bounds")

    monkeypatch.setitem(RULES, "overfit", replace(RULES["overfit"], look=faulty))
    monkeypatch.setitem(causes.RULES, "dataloader", replace(causes.RULES["dataloader"], look=faulty))
    result = run(tiny(photos, tmp_path / "run", "trainer.max_epochs=1"))
    assert read_state(tmp_path / "run")["state"] == "finished"
    why = "could not be judged: IndexError: index 3 is out of bounds"
    assert result.findings == (f"the training {why}",)
    assert result.costs == (f"the time that the run took {why}",)
    assert result.report is not None
    assert f"debugger/ {why}" in result.report.read_text()


def test_a_finding_can_end_the_training_in_good_order(photos: Path, tmp_path: Path) -> None:
    lasting = ("optim.lr=30", "trainer.max_epochs=40", "trainer.patience=null", "debugger.on_finding=stop")
    result = run(tiny(photos, tmp_path / "run", *lasting))
    losses = read_losses(tmp_path / "run")
    stopped = read_json(tmp_path / "run" / "debugger" / "stopped.json")
    assert losses["TRAIN"].step[-1] + 1 == stopped["step"] < 40 * 12
    assert losses["EVAL"].global_step[-1] == stopped["step"]  # it still validated
    assert "valid/accuracy" in result.metrics
    assert (tmp_path / "run" / "bundle" / "manifest.json").exists()
    assert result.findings[0].startswith(f"debugger.on_finding=stop ended the training at step {stopped['step']}: ")
    state = read_state(tmp_path / "run")
    assert (state["state"], state["reason"]) == ("finished", result.findings[0])


def test_a_run_without_the_debugger_leaves_nothing_of_it(photos: Path, tmp_path: Path) -> None:
    result = run(tiny(photos, tmp_path / "run", "debugger=off"))
    assert not (tmp_path / "run" / "debugger").exists()
    assert result.findings == ()


def test_training_on_images_is_recorded_like_that_on_features(photos: Path, tmp_path: Path) -> None:
    run(tiny(photos, tmp_path / "run", "features=off", "data.augment=false", "trainer.max_epochs=1"))
    run(tiny(photos, tmp_path / "cached", "trainer.max_epochs=1"))
    images, features = (read_losses(tmp_path / name) for name in ("run", "cached"))
    assert images["TRAIN"].value == pytest.approx(features["TRAIN"].value, abs=1e-3)
    assert images["EVAL"].step.tolist() == features["EVAL"].step.tolist()


def test_replay_judges_an_old_run(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tiny(photos, tmp_path / "run", "optim.lr=30"))
    shutil.rmtree(tmp_path / "run" / "bundle")
    assert main(["replay", str(tmp_path / "run")]) == 1
    shown = capsys.readouterr().out
    (finding, *_) = judge(read_records(tmp_path / "run")).findings
    assert f"{finding.rule}, since step {finding.since_step}" in shown
    assert f"  change: {finding.change}" in shown
    assert main(["replay", str(tmp_path / "run"), "--rule", "class_imbalance"]) == 0
    assert "noisy_loss" not in capsys.readouterr().out


def test_replay_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path} has no records of the debugger; accepted is a run made with debugger.enabled=true\n"
    )


def test_findings_are_printed_at_the_end(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    metrics = {"time/features_s": 1.0, "time/fit_s": 1.0, "time/total_s": 2.0}
    found, cost = "overfit (since step 3): [it] is; change: x", "dataloader: 1 s; change: y"
    run_table(tmp_path, metrics, toy=False, findings=[found], costs=[cost])
    assert f"training: {found}\nspeed: {cost}\n" in capsys.readouterr().out


def test_smdebug_is_refused_before_anything_else_where_it_cannot_work(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graft.debugger.smdebug_hook.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"backend=smdebug: smdebug is not installed here.*make test-smdebug"):
        run(tiny(photos, tmp_path / "run", "debugger.backend=smdebug"))
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("sys.version_info", (3, 13, 0))
    with pytest.raises(ConfigError, match=r"smdebug ends at Python 3\.12, and this is newer; accepted here is graft"):
        check_backend("smdebug")


def test_options_of_the_group_differ_in_whether_they_record() -> None:
    on, off = (flatten(composed(f"debugger={name}")) for name in ("default", "off"))
    assert {key for key in on if on[key] != off[key]} == {"debugger.enabled"}


def test_the_documents_explain_each_rule_as_it_is() -> None:
    text = (ROOT / "docs" / "debugger.md").read_text()
    sections = {part.splitlines()[0]: part for part in text.split("\n### ")[1:]}
    assert list(sections) == list(RULES)
    for name, rule in RULES.items():
        for parameter, value in rule.parameters.items():
            assert f"`{parameter}` {value:g}" in sections[name], f"{name}: {parameter} {value:g}"
        for part in ("**Sees**", "**Why**", "**Threshold**", "**Turn**"):
            assert part in sections[name], f"{name} lacks {part}"
