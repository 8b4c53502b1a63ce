"""A rule of graft as one of smdebug's, so that its `invoke_rule` can judge a trial."""

from __future__ import annotations

from typing import Any

import numpy as np

from graft.debugger.judge import RULES
from graft.debugger.records import EVAL, LOSS, TRAIN, Facts, Records
from graft.diagnosis import Finding


def smdebug_rule(trial: Any, name: str, facts: Facts) -> Any:
    """An object of a subclass of `smdebug.rules.rule.Rule` over the losses of a trial.

    It is met at the first step whose losses so far make the rule find something; `finding` then holds that.

    Args:
        trial: from `smdebug.trials.create_trial`.
        name: of a rule that needs losses only.
        facts: of the run, which a trial does not tell.
    """
    from smdebug.rules.rule import Rule

    class GraftRule(Rule):  # type: ignore[misc]  # smdebug has no types
        finding: Finding | None = None

        def invoke_at_step(self, step: int) -> bool:
            self.finding = RULES[name].look(records_of_trial(trial, facts, step)).finding
            return self.finding is not None

    return GraftRule(trial, action_str="")


def records_of_trial(trial: Any, facts: Facts, until: int) -> Records:
    """The losses of a trial up to a global step of smdebug's, which counts batches of both modes together."""
    from smdebug import modes

    tensor = trial.tensor(LOSS)
    rows = sorted(
        (trial.global_step(mode, step), name, step, float(tensor.value(step, mode=mode)))
        for name, mode in ((TRAIN, modes.TRAIN), (EVAL, modes.EVAL))
        for step in tensor.steps(mode=mode)
    )
    rows = [row for row in rows if row[0] <= until]
    at, mode, step, value = (np.array([row[column] for row in rows]) for column in range(4))
    # Batches of both modes before this one, less those of this mode, are those of the other.
    taken = np.where(mode == TRAIN, step, at - step)
    columns = {
        "mode": mode, "name": np.full(len(rows), LOSS), "step": step, "global_step": taken, "value": value,
        "photos": np.full(len(rows), facts.batch_size), "learning_rate": np.full(len(rows), np.nan),
    }  # fmt: skip
    return Records(facts, {"losses": columns})
