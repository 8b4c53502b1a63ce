"""What a rule is: a pure function over the records of a run, with its thresholds and where they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from graft.debugger.records import Records
from graft.diagnosis import Finding


@dataclass(frozen=True)
class Verdict:
    """What a rule says of a run.

    Attributes:
        points: data points that it looked at; 0 where the run has too few to judge.
        triggered: at how many of them it saw what it looks for.
        finding: what it tells a person; None where all is well.
    """

    points: int
    triggered: int = 0
    finding: Finding | None = None


@dataclass(frozen=True)
class Rule:
    """One rule; docs/debugger.md explains each.

    Attributes:
        name: as in findings.
        checks: what it looks for, in a sentence.
        look: the rule itself.
        parameters: name -> threshold.
        source: where the thresholds come from.
    """

    name: str
    checks: str
    look: Callable[[Records], Verdict]
    parameters: dict[str, float] = field(default_factory=dict)
    source: str = ""
