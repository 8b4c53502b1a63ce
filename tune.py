"""Search for better settings: `python tune.py data=folder data.root=PATH 'optim.lr=interval(1e-4, 1e-1)'`."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

STARTED = time.perf_counter()
# See train.py. Must be set before torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import hydra  # noqa: E402  (the clock starts before the first slow import)
from omegaconf import DictConfig  # noqa: E402

from graft.command import SearchLine, overrides_given, prepare, take_sweeps  # noqa: E402
from graft.config import Config, LauncherKind, SearchBackend, parse  # noqa: E402
from graft.errors import ConfigError  # noqa: E402
from graft.launcher import launch  # noqa: E402
from graft.launcher.job import Entry  # noqa: E402
from graft.startup import without_collecting  # noqa: E402
from graft.terminal import plain_errors, say  # noqa: E402

if TYPE_CHECKING:
    from graft.search.search import SearchResult
    from graft.search.space import Space

SEARCHED = SearchLine([], {}, frozenset())


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(tree: DictConfig) -> None:
    """Compose, check, search, print."""
    with plain_errors(str(tree.run_dir)):
        config = parse(tree)
        if config.processes > 1:
            raise ConfigError(
                f"trainer.devices={config.trainer.devices}: a search runs in one process; accepted is 1 (several "
                "processes share one: start the same command with the same run_dir more than once)"
            )
        # Light modules; they are loaded late as all that is above layer 0.
        from graft.search.space import describe, read_space, trial_count, warnings

        space = read_space(config, SEARCHED)
        searched = dataclasses.replace(config.search, space=describe(config, SEARCHED))
        config = dataclasses.replace(config, search=searched)
        for warning in warnings(space):
            say(warning)
        trials = trial_count(config, space)
        if config.launcher.kind is LauncherKind.sagemaker and config.search.backend is SearchBackend.tuning_job:
            tune_by_service(config, space, trials)
        elif result := launch(config, search, Entry.tune, trials):
            from graft.search.publish import publish
            from graft.search.summary import print_summary

            print_summary(result, publish(result))


def tune_by_service(config: Config, space: Space, trials: int) -> None:
    """Have SageMaker run the trials as a tuning job, and show what came of it."""
    from graft.launcher.cloud import Work, tune_in_cloud

    found = tune_in_cloud(Work(config, Entry.tune, overrides_given(), trials, space.spreads))
    if found:
        from graft.launcher.bill import note_on_pages
        from graft.launcher.ticket import read_ticket
        from graft.search.tuned import print_tuned, write_search

        run_dir, s = Path(config.run_dir).expanduser(), config.search
        searched = write_search(run_dir, space, s.objective, found, overrides_given(), s.seed)
        if ticket := read_ticket(run_dir):
            note_on_pages(ticket, run_dir)
        print_tuned(searched)


def search(config: Config) -> SearchResult:
    """Search in this process. torch is imported only when the space is known to be right."""
    from graft.search.space import read_space

    with without_collecting():
        from graft.search import search as story
        from graft.trainer import train
    return story.search(config, read_space(config, SEARCHED), train, overrides_given(), STARTED)


if __name__ == "__main__":
    with plain_errors():
        SEARCHED = take_sweeps(sys.argv[1:])
        now = time.strftime("%Y-%m-%d_%H-%M-%S")
        command = prepare(SEARCHED.argv, now=now, conf=Path(__file__).with_name("conf"))
    sys.argv[1:] = command.argv
    main()
