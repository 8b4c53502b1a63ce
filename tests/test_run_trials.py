"""Trials that run one by one: looked at where their rungs are, judged as heads are, gone on with after a kill."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from graft.command import Spread
from graft.config import Config
from graft.search.pruning import rungs
from graft.search.runs import RunTrials, lengths, read_curve
from graft.search.space import Space
from graft.search.trials import Outcome, Trial
from graft.trainer import train
from tests.composing import composed
from tests.pictures import draw_folder
from tests.training import tiny

# 36 photos, 8 at a time: 5 steps to an epoch. The whole network trains, with dropout.
IMAGES = ("features.enabled=false", "data.augment=false", "model.unfreeze=all", "trainer.max_epochs=2")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("photos"))


class Asked:
    """Answers at rungs, and what was asked there."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.seen: dict[int, tuple[float, float]] = {}

    def __call__(self, number: int, step: int, loss: float, accuracy: float) -> bool:
        assert step not in self.seen
        self.seen[step] = loss, accuracy
        return step != self.stop_at


def run_one(config: Config, directory: Path, *, stops: Sequence[int] = (), asked: Asked, train: Any = train) -> Outcome:
    found: dict[int, Outcome] = {}
    RunTrials(config, directory, train).run([Trial(0, {})], stops, asked, found.__setitem__)
    return found[0]


def images(photos: Path, directory: Path, *argv: str) -> Config:
    return composed(*tiny(photos, directory / "search", *IMAGES, *argv))


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    directory = tmp_path_factory.mktemp("whole")
    return run_one(images(photos, directory), directory, asked=Asked())


def test_a_run_is_looked_at_where_its_rungs_are_and_not_asked_at_its_end(
    photos: Path, whole: Outcome, tmp_path: Path
) -> None:
    asked = Asked()
    outcome = run_one(images(photos, tmp_path), tmp_path / "rungs", stops=(3, 5, 8, 10), asked=asked)
    assert sorted(asked.seen) == [3, 5, 8]
    # the looks leave the run as it was, to the last bit
    assert (outcome.state, outcome.value, outcome.steps) == ("ok", whole.value, 10)
    curve = dict(outcome.curve)
    assert {step: curve[step] for step in (5, 10)} == dict(whole.curve)
    assert curve == {**dict(whole.curve), **{step: loss for step, (loss, _) in asked.seen.items()}}
    # and find what a run finds that ends there
    short = run_one(images(photos, tmp_path, "trainer.max_steps=3"), tmp_path / "short", asked=Asked())
    metrics = json.loads((tmp_path / "short" / "trials" / "000" / "metrics.json").read_text())
    assert asked.seen[3] == pytest.approx((short.value, metrics["valid/accuracy"]), abs=1e-6)


def test_a_run_that_is_stopped_at_a_rung_trains_no_step_more(photos: Path, whole: Outcome, tmp_path: Path) -> None:
    early = run_one(images(photos, tmp_path), tmp_path / "early", stops=(3,), asked=Asked(stop_at=3))
    assert (early.state, early.value, early.steps) == ("pruned", None, 3)  # no epoch ended
    assert early.reason.startswith("stopped at step 3, with valid/loss ")
    late = run_one(images(photos, tmp_path), tmp_path / "late", stops=(3, 5), asked=Asked(stop_at=5))
    assert (late.state, late.value, late.steps) == ("pruned", whole.curve[0][1], 5)


def test_a_run_diverges_as_a_head_does(photos: Path, tmp_path: Path) -> None:
    config = composed(*tiny(photos, tmp_path / "search", "optim.lr=1e6", "trainer.max_epochs=4"))
    outcome = run_one(config, tmp_path, asked=Asked())
    assert (outcome.state, outcome.value) == ("diverged", None)
    assert outcome.reason.startswith("loss stayed above 3 times its first value, ")
    assert outcome.steps == 10  # the second end of an epoch in a row


def test_a_run_that_was_interrupted_goes_on_with_other_workers(photos: Path, tmp_path: Path) -> None:
    class Interrupt(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 7:
                raise SystemExit(143)

    def interrupted(config: Config, overrides: tuple[str, ...], *, watching: Sequence[pl.Callback] = ()) -> Any:
        return train(config, overrides, watching=[*watching, Interrupt()])

    config = composed(*tiny(photos, tmp_path / "search"))
    alone = run_one(config, tmp_path / "alone", asked=Asked())
    asked = Asked()
    with pytest.raises(SystemExit):
        run_one(config, tmp_path, stops=(2, 4, 8), asked=asked, train=interrupted)
    state = json.loads((tmp_path / "trials" / "000" / "run.json").read_text())
    elsewhere = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=2))
    outcome = run_one(elsewhere, tmp_path, stops=(2, 4, 8), asked=asked)
    assert (outcome.state, outcome.value, outcome.steps) == ("ok", alone.value, alone.steps)
    assert sorted(asked.seen) == [2, 4, 8]
    assert [step for step, _ in outcome.curve] == [2, 4, 5, 8, 10, 15]  # those before the interruption too
    assert json.loads((tmp_path / "trials" / "000" / "run.json").read_text())["id"] == state["id"]


def test_a_torn_row_of_a_log_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "csv" / "version_0" / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text("epoch,step,valid/accuracy,valid/loss\n0,4,0.5,1.5\n1,9,0.5,0.75\n2,1")
    assert read_curve(tmp_path) == ((5, 1.5), (10, 0.75))
    assert read_curve(tmp_path / "nothing") == ()


@pytest.mark.parametrize(
    ("spreads", "expected"),
    [
        ({}, (39, 39)),  # 100 photos, 8 at a time, 3 epochs
        ({"data.batch_size": Spread((8, 50))}, (6, 39)),
        ({"trainer.max_epochs": Spread((), 1, 6, whole=True)}, (13, 78)),
        ({"trainer.max_steps": Spread((10, 30))}, (10, 39)),  # the default, trial 0, has no limit
        ({"trainer.max_steps": Spread((10, 30)), "data.batch_size": Spread((8, 50))}, (6, 39)),
    ],
)
def test_the_shortest_and_the_longest_trial(spreads: dict[str, Spread], expected: tuple[int, int]) -> None:
    config = composed(*tiny(Path("x"), Path("y")))
    assert lengths(config, Space(spreads, dict.fromkeys(spreads)), 100) == expected


def test_the_rungs_of_searched_steps_end_before_the_longest() -> None:
    config = composed(*tiny(Path("x"), Path("y"), "trainer.max_steps=16"))
    space = Space({"trainer.max_steps": Spread((16, 400))}, {"trainer.max_steps": 16})
    assert rungs(*lengths(config, space, 800)) == (2, 4, 8, 16, 32, 64, 128, 256)
