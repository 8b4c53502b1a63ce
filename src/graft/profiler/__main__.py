"""`python -m graft.profiler findings | apply RUN_DIR`: why a run took its time, and whether the advice helps."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graft.errors import ConfigError, GraftError, RunError

if TYPE_CHECKING:
    from graft.config import Config
    from graft.diagnosis import Finding
    from graft.profiler.records import Records

_RUN_DIR = "directory of a run made with profiler.enabled=true"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 is well, 1 that `findings` has some or `apply` has none to apply, 2 an error."""
    parser = argparse.ArgumentParser(prog="python -m graft.profiler", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    summary = "run the rules over the records of a run, also of one that goes on or was killed"
    findings = commands.add_parser("findings", help=summary, description=f"{summary}; nothing is written")
    findings.add_argument("run_dir", metavar="RUN_DIR", type=Path, help=_RUN_DIR)
    summary = "train some steps with the change of the dearest finding, and print predicted against measured"
    apply = commands.add_parser("apply", help=summary, description=f"{summary}; RUN_DIR is left as it is")
    apply.add_argument("run_dir", metavar="RUN_DIR", type=Path, help=_RUN_DIR)
    apply.add_argument("--steps", type=int, default=50, help="training steps (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "apply" and arguments.steps < 1:
            raise ConfigError(f"--steps {arguments.steps}: accepted is at least 1")
        if arguments.command == "findings":
            return _findings(arguments.run_dir)
        return _apply(arguments.run_dir, arguments.steps)
    except GraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _findings(run_dir: Path) -> int:
    from graft.diagnosis import in_full
    from graft.profiler.causes import judge
    from graft.profiler.records import read_records

    found = judge(read_records(run_dir)).findings
    lines = [line for finding in found for line in in_full(finding)]
    print("\n".join(lines) if lines else "no rule of the profiler found anything")
    return 1 if found else 0


def _apply(run_dir: Path, steps: int) -> int:
    finding = advised(run_dir)
    if finding is None:
        print(f"no finding of {run_dir} names a key to change: nothing to apply")
        return 1
    config = config_of(run_dir)
    if config.processes > 1:
        t = config.trainer
        raise ConfigError(
            f"trainer.devices={t.devices} x trainer.num_nodes={t.num_nodes}: apply trains in one process, whose times "
            f"tell nothing of {config.processes}; accepted is the directory of a run of one. The advice was: "
            f"{finding.change}"
        )
    print(f"{finding.rule}: {steps} steps with {finding.change}")
    for line in measure(run_dir, config, finding, steps).lines():
        print(line)
    return 0


@dataclass(frozen=True)
class Comparison:
    """Seconds of an epoch: as the run had it, with a finding's change as measured, and as was predicted.

    `predicted` is None where the run's own numbers do not tell.
    """

    was: float
    measured: float
    predicted: float | None

    def lines(self) -> list[str]:
        """Predicted against measured, a line each, and what an epoch would have saved."""
        was, measured, predicted = self.was, self.measured, self.predicted
        lines = [f"an epoch took {was:.3g} s; with the change {measured:.3g} s, {was / measured:.3g} times less"]
        if predicted is None:
            return [*lines, "the run's own numbers predict nothing here"]
        lines.append(f"predicted was {predicted:.3g} s: measured differs by {measured / predicted - 1:+.0%}")
        lines.append(f"saved in an epoch: {was - measured:.3g} s, predicted {was - predicted:.3g} s")
        return lines


def advised(run_dir: Path) -> Finding | None:
    """The dearest finding of a run that names a key to change; None where none does."""
    from graft.profiler.causes import judge
    from graft.profiler.records import read_records

    return next((finding for finding in judge(read_records(run_dir)).findings if overrides_of(finding)), None)


def measure(run_dir: Path, config: Config, finding: Finding, steps: int) -> Comparison:
    """Train some steps with the change of a finding, in a directory of its own."""
    # The configuration, and torch with the training, load late: --help does not pay for them.
    from graft.config import changed
    from graft.profiler.prediction import epoch_seconds
    from graft.profiler.records import read_records
    from graft.trainer import train

    before = read_records(run_dir)
    with tempfile.TemporaryDirectory(prefix="graft-apply-") as folder:
        trial = shortened(config, before.facts.steps_per_epoch, steps, folder)
        train(changed(trial, overrides_of(finding)))
        measured = epoch_seconds(read_records(Path(folder)))
    return Comparison(epoch_seconds(before), measured, predicted_epoch(finding, before))


def overrides_of(finding: Finding) -> dict[str, object]:
    """Key -> value of what a finding says to change; empty where it says it in a sentence."""
    options: dict[str, dict[str, object]] = {
        "features=cached": {"features.enabled": True},
        "trainer=gpu": {"trainer.accelerator": "gpu"},
    }
    found: dict[str, object] = {}
    for word in finding.change.split():
        key, _, value = word.partition("=")
        if word in options:
            found |= options[word]
        elif "." in key and value.isdigit():
            found[key] = int(value)
        else:
            return {}
    return found


def shortened(config: Config, steps_per_epoch: int, steps: int, run_dir: str) -> Config:
    """The same run for some steps, of whole epochs, in a directory of its own; test stays sealed."""
    from graft.config import changed
    from graft.rehearsal import TIMED

    epochs = -(-steps // steps_per_epoch)
    return changed(
        config,
        {
            "run_dir": run_dir,
            "trainer.max_epochs": epochs,
            "trainer.max_steps": -1 if steps_per_epoch <= steps else steps,
            "evaluate.test": False,
            "profiler.enabled": True,
            **TIMED,
        },
    )


def predicted_epoch(finding: Finding, records: Records) -> float | None:
    """Seconds of an epoch with the change of a finding; None where the run's own numbers do not tell."""
    from graft.profiler.prediction import cached_epoch_seconds, epoch_seconds, epochs_seen

    if finding.rule == "recomputed_frozen_features":
        return cached_epoch_seconds(records)
    if finding.saved_s is not None:
        return epoch_seconds(records) - finding.saved_s / epochs_seen(records)
    return None


def config_of(run_dir: Path) -> Config:
    """The configuration that a run was made with.

    Raises:
        RunError: the directory has none that can be read.
    """
    from omegaconf import DictConfig, OmegaConf

    from graft.config import parse

    path = run_dir / "config.yaml"
    try:
        tree = OmegaConf.create(path.read_text())
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); accepted is the directory of a run") from error
    if not isinstance(tree, DictConfig):
        raise RunError(f"{path} is a list; accepted is the directory of a run, whose config.yaml holds keys")
    return parse(tree)


if __name__ == "__main__":
    sys.exit(main())
