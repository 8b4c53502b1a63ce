"""The real smdebug reads what our hook makes it write, and judges it by our rules: `make test-smdebug`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from graft.debugger.judge import judge
from graft.debugger.probe import Probe
from graft.debugger.records import EVAL, LOSS, TRAIN, Facts, Losses, read_losses, read_records
from graft.debugger.smdebug_hook import SmdebugHook
from graft.debugger.smdebug_rule import smdebug_rule
from tests.conftest import REAL_DATA
from tests.pictures import draw_folder
from tests.test_fit import BATCHES, Killed, Session, kill_at
from tests.training import run, tiny

# smdebug warns of what it imports, and of pkg_resources.
pytestmark = [pytest.mark.smdebug, pytest.mark.filterwarnings("ignore")]

BREEDS = 5
WITH_SMDEBUG = ("debugger.backend=smdebug", "trainer.patience=null")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few breeds of the real dogs by links; drawn photos where they are absent."""
    folder = tmp_path_factory.mktemp("photos")
    if not REAL_DATA.is_dir():
        return draw_folder(folder, classes=BREEDS, train=50, valid=6, test=6)
    for split in ("train", "valid", "test"):
        for breed in sorted((REAL_DATA / "dogs" / split).iterdir())[:BREEDS]:
            (folder / split).mkdir(exist_ok=True)
            os.symlink(breed, folder / split / breed.name)
    return folder


def train(photos: Path, run_dir: Path, *more: str) -> Path:
    weights = REAL_DATA / "weights" / "mobilenet_v2.pth"
    backbone = ("model.backbone=mobilenet_v2", f"model.weights={weights}") if weights.exists() else ()
    run(tiny(photos, run_dir, *backbone, *WITH_SMDEBUG, *more))
    return run_dir


@pytest.fixture(scope="module")
def run_dir(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A healthy run that both recorded; features of drawn photos from random weights are learnt at a higher rate."""
    lr = 0.001 if REAL_DATA.is_dir() else 0.01
    return train(photos, tmp_path_factory.mktemp("healthy") / "run", f"optim.lr={lr}")


def trial_of(folder: Path) -> Any:
    from smdebug.trials import create_trial

    return create_trial(str(folder))


def losses_of(folder: Path) -> dict[str, dict[int, float]]:
    """Mode -> step -> value of a trial."""
    from smdebug import modes

    tensor = trial_of(folder).tensor(LOSS)
    by_mode = {TRAIN: modes.TRAIN, EVAL: modes.EVAL}
    return {
        name: {step: float(tensor.value(step, mode=mode)) for step in tensor.steps(mode=mode)}
        for name, mode in by_mode.items()
    }


def assert_alike(trial: dict[int, float], ours: Losses) -> None:
    assert list(trial) == ours.step.tolist()
    assert list(trial.values()) == pytest.approx(ours.value.tolist(), abs=1e-6, rel=0)


def test_the_trial_has_the_one_tensor_of_the_original(run_dir: Path) -> None:
    assert trial_of(run_dir / "debugger" / "smdebug").tensor_names() == ["CrossEntropyLoss_output_0"]


@pytest.mark.parametrize("mode", [TRAIN, EVAL])
def test_the_trial_has_the_steps_and_values_of_our_records(mode: str, run_dir: Path) -> None:
    trial, ours = losses_of(run_dir / "debugger" / "smdebug")[mode], read_losses(run_dir)[mode]
    assert len(ours.step) >= 3
    assert_alike(trial, ours)


def test_the_intervals_are_smdebugs_too(photos: Path, tmp_path: Path) -> None:
    folder = train(photos, tmp_path / "run", "debugger.train_interval=10", "trainer.max_epochs=1")
    trial, ours = losses_of(folder / "debugger" / "smdebug"), read_losses(folder)
    assert list(trial[TRAIN]) == [0, 10, 20, 30]
    assert_alike(trial[TRAIN], ours[TRAIN])


def test_a_resumed_run_goes_on_in_a_trial_of_its_own(tmp_path: Path) -> None:
    facts = Facts(num_classes=3, batch_size=5, steps_per_epoch=BATCHES)

    def probe() -> Probe:
        return Probe(tmp_path, facts, beside=SmdebugHook(tmp_path, 1, 1))

    killed = Session(tmp_path)
    killed.train.before = kill_at(BATCHES + 2)
    with pytest.raises(Killed):
        killed.fit(watching=[probe()])
    Session(tmp_path).fit(watching=[probe()])
    first, second = (losses_of(tmp_path / "debugger" / name) for name in ("smdebug", "smdebug-2"))
    ours = read_losses(tmp_path)
    for mode in (TRAIN, EVAL):
        assert min(second[mode]) > 0
        assert_alike({**first[mode], **second[mode]}, ours[mode])


def judged_by_smdebug(folder: Path, name: str) -> Any:
    """Our rule, after smdebug's loop has called it for every step."""
    from smdebug.rules.rule_invoker import invoke_rule

    trial = trial_of(folder / "debugger" / "smdebug")
    rule = smdebug_rule(trial, name, read_records(folder).facts)
    invoke_rule(rule, end_step=max(trial.steps()) + 1, raise_eval_cond=True)
    return rule


def test_a_rule_of_ours_is_met_in_smdebugs_loop(photos: Path, tmp_path: Path) -> None:
    from smdebug.exceptions import RuleEvaluationConditionMet

    folder = train(photos, tmp_path / "run", "optim.lr=1e-9")
    with pytest.raises(RuleEvaluationConditionMet, match="GraftRule"):
        judged_by_smdebug(folder, "loss_not_decreasing")
    assert [finding.rule for finding in judge(read_records(folder)).findings] == ["loss_not_decreasing"]


def test_a_rule_of_ours_is_not_met_by_a_healthy_trial(run_dir: Path) -> None:
    assert judged_by_smdebug(run_dir, "loss_not_decreasing").finding is None
