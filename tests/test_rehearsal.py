"""A run that recomputes frozen features rehearses what it would take without; others do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from graft import rehearsal
from graft.artifacts import read_state
from graft.classifier import Classifier
from graft.config import Config, OnFinding
from graft.diagnosis import read_diagnosis
from graft.errors import RunError
from graft.profiler.prediction import epoch_seconds
from graft.profiler.records import FOLDER, read_records
from tests.pictures import draw_folder
from tests.training import run, tiny


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short a run is, it rehearses."""
    monkeypatch.setattr(rehearsal, "WORTH_S", 0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("at_once")
def test_the_epoch_on_drawn_features_is_what_the_finding_promises(tmp_path: Path) -> None:
    slow = run(tiny(draw_folder(tmp_path / "photos"), tmp_path / "run", "features=off", "model.image_size=224"))
    records = read_records(slow.run_dir)
    # How near it comes, benchmarks.diagnosis says; a test that shares its machine cannot.
    rehearsed = records.facts.cached_epoch_s
    assert rehearsed is not None
    assert 0 < rehearsed < epoch_seconds(records)
    (finding, *_) = read_diagnosis(slow.run_dir / FOLDER / "findings.json").findings
    assert finding.rule == "recomputed_frozen_features"
    assert f"an epoch takes {rehearsed:.3g} s" in finding.gain
    # Nothing of the rehearsal is in the run's own records.
    assert len(records.steps["seconds"]) == 3 * records.facts.steps_per_epoch


@pytest.mark.slow
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("changes", [(), ("features=off", "model.unfreeze=all"), ("features=off", "profiler=off")])
def test_a_run_without_the_advice_rehearses_nothing(
    tmp_path: Path, changes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> float:
        raise AssertionError("rehearsed")

    monkeypatch.setattr(rehearsal, "seconds_of_cached_epoch", refuse)
    run(tiny(draw_folder(tmp_path / "photos"), tmp_path / "run", "trainer.max_epochs=1", *changes))


@pytest.mark.usefixtures("at_once")
def test_a_rehearsal_that_fails_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rehearsed: list[Config] = []

    def diverging(config: Config, *_: object, **__: object) -> Classifier:
        rehearsed.append(config)
        raise RunError("training diverged: valid/loss was not finite in any epoch")

    monkeypatch.setattr(rehearsal, "fit_classifier", diverging)
    more = ("features=off", "trainer.max_epochs=1", "debugger.on_finding=stop")
    run(tiny(draw_folder(tmp_path / "photos"), tmp_path / "run", *more))
    assert read_state(tmp_path / "run")["state"] == "finished"
    said = "what cached features would save could not be judged: RunError: training diverged"
    assert said in capsys.readouterr().err
    (config,) = rehearsed
    assert config.trainer.max_epochs == 10  # of five steps: the first to have 50
    assert config.debugger.enabled  # it takes a tenth of a head's step
    assert config.debugger.on_finding is OnFinding.report  # nothing of noise is a reason to stop


def test_a_short_run_rehearses_nothing(tmp_path: Path) -> None:
    run(tiny(draw_folder(tmp_path / "photos"), tmp_path / "run", "features=off", "trainer.max_epochs=1"))
    assert read_records(tmp_path / "run").facts.cached_epoch_s is None
