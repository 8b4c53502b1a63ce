"""`python -m graft.profiler findings | apply RUN_DIR`: why a run took its time, and whether the advice helps."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
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
    # The configuration, and torch with the training, load late: --help does not pay for them.
    from graft.config import changed
    from graft.profiler.causes import judge
    from graft.profiler.records import read_records
    from graft.trainer import train

    before = read_records(run_dir)
    finding = next((finding for finding in judge(before).findings if overrides_of(finding)), None)
    if finding is None:
        print(f"no finding of {run_dir} names a key to change: nothing to apply")
        return 1
    advice, config = overrides_of(finding), _config_of(run_dir)
    if config.processes > 1:
        t = config.trainer
        raise ConfigError(
            f"trainer.devices={t.devices} x trainer.num_nodes={t.num_nodes}: apply trains in one process, whose times "
            f"tell nothing of {config.processes}; accepted is the directory of a run of one. The advice was: "
            f"{finding.change}"
        )
    print(f"{finding.rule}: {steps} steps with {finding.change}")
    with tempfile.TemporaryDirectory(prefix="graft-apply-") as folder:
        trial = shortened(config, before.facts.steps_per_epoch, steps, folder)
        train(changed(trial, advice))
        after = read_records(Path(folder))
    for line in compared(finding, before, after):
        print(line)
    return 0


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


def compared(finding: Finding, before: Records, after: Records) -> list[str]:
    """Predicted against measured, a line each: seconds of an epoch, and what the run would have saved."""
    from graft.profiler.prediction import cached_epoch_seconds, epoch_seconds, epochs_seen

    was, measured = epoch_seconds(before), epoch_seconds(after)
    lines = [f"an epoch took {was:.3g} s; with the change {measured:.3g} s, {was / measured:.3g} times less"]
    if finding.rule == "recomputed_frozen_features":
        predicted = cached_epoch_seconds(before)
    elif finding.saved_s is not None:
        predicted = was - finding.saved_s / epochs_seen(before)
    else:
        return [*lines, "the run's own numbers predict nothing here"]
    lines.append(f"predicted was {predicted:.3g} s: measured differs by {measured / predicted - 1:+.0%}")
    lines.append(f"saved in an epoch: {was - measured:.3g} s, predicted {was - predicted:.3g} s")
    return lines


def _config_of(run_dir: Path) -> Config:
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
