"""Best and default with other seeds: what a gain, and a fall of the loss, must exceed to be more than luck."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from graft.config import Config
from graft.search.advice import Gain, gain
from graft.search.joint import HeadTrials
from graft.search.runs import RunTrials
from graft.search.trials import Outcome, Record, from_json, to_json
from graft.storage import write_text

USUAL = 5  # seeds, where heads train together


@dataclass(frozen=True)
class Repeats:
    """Outcomes by seed of the best trial and of trial 0, on the same seeds; empty where not measured."""

    seeds: tuple[int, ...]
    best: tuple[Outcome, ...]
    default: tuple[Outcome, ...]

    def pairs(self) -> list[tuple[float, float]]:
        """Objectives of best and default by seed, but for seeds with which either has none: it failed or diverged."""
        both = zip(self.best, self.default, strict=True)
        return [(b.value, d.value) for b, d in both if b.value is not None and d.value is not None]

    def gain(self, *, maximize: bool) -> Gain | None:
        """Of best over default; None of fewer than two seeds."""
        pairs = self.pairs()
        return gain(*zip(*pairs, strict=True), maximize=maximize) if pairs else None

    def noise(self) -> float | None:
        """Three standard deviations of the best's objective over seeds; None of fewer than three."""
        values = [outcome.value for outcome in self.best if outcome.value is not None]
        return 3 * statistics.stdev(values) if len(values) >= 3 else None


def repeat(
    config: Config, trials: HeadTrials | RunTrials, records: Sequence[Record], best: int, run_dir: Path
) -> Repeats:
    """Train best and default with the seeds after the search's own, or read what an earlier process trained.

    A seed that a trial had is left out: the best trial's may have made it the best.

    Args:
        config: of the search.
        trials: runs them.
        records: of all trials.
        best: number of the best.
        run_dir: of the search; repeats.json is kept there.
    """
    count = config.search.repeats
    if count is None:
        count = USUAL if trials.together else 0
    used = {config.seed} | {record.params.get("seed") for record in records}
    following = ((config.seed + offset) % 2**32 for offset in itertools.count(1))
    seeds = list(itertools.islice((seed for seed in following if seed not in used), count))
    path = run_dir / "repeats.json"
    wanted = {"best": best, "params": records[best].params, "seeds": seeds}
    if path.exists() and all((content := json.loads(path.read_text())).get(key) == wanted[key] for key in wanted):
        of_best, of_default = ([from_json(o) for o in content[name]] for name in ("of_best", "of_default"))
        return Repeats(tuple(seeds), tuple(of_best), tuple(of_default))
    chosen = [records[best].params] if best == 0 else [records[best].params, records[0].params]
    found = trials.repeat(chosen, seeds) if seeds else [[], []]
    parts = {
        name: [to_json(o) for o in part]
        for name, part in zip(("of_best", "of_default"), found[:1] + found[-1:], strict=True)
    }
    write_text(path, json.dumps({**wanted, **parts}, indent=1) + "\n")
    return Repeats(tuple(seeds), tuple(found[0]), tuple(found[-1]))
