"""What rules found in a run: one form for the debugger, the profiler and the report. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from graft.errors import RunError
from graft.storage import write_text


@dataclass(frozen=True)
class Finding:
    """One thing that a rule found, in words for a person.

    Attributes:
        rule: name of the rule.
        seen: what was seen, with its numbers.
        why: why it matters.
        change: what to change, as an override (`optim.lr=1e-4`), or a sentence where no key does it.
        key: dotted key of the configuration that `change` turns; empty where there is none.
        gain: what the change would bring by the run's own numbers; empty where they do not say.
        since_step: optimiser steps taken when it was first seen; None for a run as a whole.
        cost_s: seconds it cost in this run; None where it cost none that could be measured.
        saved_s: seconds that the change is predicted to save in this run; None where that cannot be told.
        symptoms: findings that this one explains.
    """

    rule: str
    seen: str
    why: str
    change: str
    key: str = ""
    gain: str = ""
    since_step: int | None = None
    cost_s: float | None = None
    saved_s: float | None = None
    symptoms: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class RuleSummary:
    """What became of one rule: a row of the report's rules table.

    Attributes:
        rule: its name.
        checks: what it looks for, in a sentence.
        triggered: how often it did.
        points: data points that it looked at; 0 where the run recorded nothing for it.
        parameters: name -> threshold.
    """

    rule: str
    checks: str
    triggered: int
    points: int
    parameters: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """All that the rules of one kind say of a run; findings are ordered by what they cost, the dearest first."""

    findings: tuple[Finding, ...]
    rules: tuple[RuleSummary, ...]


Records = TypeVar("Records")


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
class Rule(Generic[Records]):
    """One rule, a pure function over the records of a run; docs/debugger.md and docs/profiler.md explain each.

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

    def summary(self, verdict: Verdict) -> RuleSummary:
        """What became of it in a run."""
        return RuleSummary(self.name, self.checks, verdict.triggered, verdict.points, self.parameters)


def under_their_causes(findings: Sequence[Finding], explains: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Findings in the order given, but each that an earlier one explains stands below the first such."""
    left = list(findings)
    causes = []
    while left:
        cause, *left = left
        symptoms = [finding for finding in left if finding.rule in explains.get(cause.rule, ())]
        left = [finding for finding in left if finding not in symptoms]
        causes.append(replace(cause, symptoms=tuple(symptoms)))
    return causes


def write_diagnosis(path: Path, diagnosis: Diagnosis) -> None:
    """Write one as JSON, atomically."""
    write_text(path, json.dumps(asdict(diagnosis), indent=1, allow_nan=False) + "\n")


def read_diagnosis(path: Path) -> Diagnosis:
    """What `write_diagnosis` wrote.

    Raises:
        RunError: the file is missing or not one of those.
    """
    try:
        content = json.loads(path.read_text())
        rules = tuple(RuleSummary(**row) for row in content["rules"])
        return Diagnosis(_findings(content["findings"]), rules)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} cannot be read as findings: {error}") from error


@contextmanager
def failing_no_run(what: str, tell: Callable[[str], object]) -> Iterator[None]:
    """No run fails by being watched: what could not be judged inside, and why, is told in a sentence instead."""
    try:
        yield
    except Exception as error:  # any, a fault in a rule too: the model is there all the same
        tell(f"{what} could not be judged: {type(error).__name__}: {error}")


def told(diagnosis: Diagnosis) -> tuple[str, ...]:
    """A line for each finding, for the end of a run; the symptoms of a cause are named beside it."""
    return tuple(_line(finding) for finding in diagnosis.findings)


def _line(finding: Finding) -> str:
    since = "" if finding.since_step is None else f" (since step {finding.since_step})"
    symptoms = f"; explains {', '.join(symptom.rule for symptom in finding.symptoms)}" if finding.symptoms else ""
    return f"{finding.rule}{since}: {finding.seen}; change: {finding.change}{symptoms}"


def in_full(finding: Finding, indent: str = "") -> list[str]:
    """All that a finding says, a line each; its symptoms below it."""
    since = "" if finding.since_step is None else f", since step {finding.since_step}"
    lines = [f"{indent}{finding.rule}{since}"]
    for name in ("seen", "why", "change", "gain"):
        text = getattr(finding, name)
        lines += [f"{indent}  {name}: {text}"] if text else []
    for symptom in finding.symptoms:
        lines += [f"{indent}  its symptom:", *in_full(symptom, f"{indent}    ")]
    return lines


def _findings(rows: Sequence[dict[str, Any]]) -> tuple[Finding, ...]:
    return tuple(Finding(**{**row, "symptoms": _findings(row["symptoms"])}) for row in rows)
