"""All rules over the records of a run: what they found, causes first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from graft.debugger import evaluation_rules, label_rules, layer_rules, loss_rules
from graft.debugger.records import FOLDER, Records, has_records, read_records
from graft.debugger.rule import Rule, Verdict
from graft.diagnosis import Diagnosis, Finding, RuleSummary, write_diagnosis
from graft.errors import ConfigError
from graft.storage import write_text

_ALL = (*loss_rules.RULES, *layer_rules.RULES, *evaluation_rules.RULES, *label_rules.RULES)
# The gravest first: what comes before explains more.
_ORDER = (
    "nan_or_inf",
    "loss_increasing",
    "exploding_gradient",
    "poor_weight_initialization",
    "dead_relu",
    "vanishing_gradient",
    "loss_not_decreasing",
    "label_noise_suspected",
    "class_imbalance",
    "noisy_loss",
    "overfit",
    "overtraining",
)
RULES: dict[str, Rule] = {name: rule for name in _ORDER for rule in _ALL if rule.name == name}

_AFTER_AN_EXPLOSION = ("dead_relu", "vanishing_gradient", "loss_not_decreasing", "noisy_loss")
# Cause -> what is only its symptom in the same run.
EXPLAINS: dict[str, tuple[str, ...]] = {
    "nan_or_inf": ("loss_increasing", "exploding_gradient", *_AFTER_AN_EXPLOSION),
    "loss_increasing": ("exploding_gradient", *_AFTER_AN_EXPLOSION, "overfit", "overtraining"),
    "exploding_gradient": _AFTER_AN_EXPLOSION,
    "dead_relu": ("vanishing_gradient", "loss_not_decreasing"),
    "vanishing_gradient": ("loss_not_decreasing",),
    "loss_not_decreasing": ("overtraining",),
    "label_noise_suspected": ("overfit",),
    "overfit": ("overtraining",),
}


def judge(records: Records, names: Sequence[str] = ()) -> Diagnosis:
    """What the rules say of a run: those of `names`, or all.

    Raises:
        ConfigError: there is no rule of such a name.
    """
    unknown = [name for name in names if name not in RULES]
    if unknown:
        raise ConfigError(f"--rule {unknown[0]}: there is no such rule; accepted: {', '.join(RULES)}")
    verdicts = {name: rule.look(records) for name, rule in RULES.items() if not names or name in names}
    found = [verdict.finding for verdict in verdicts.values() if verdict.finding]
    return Diagnosis(tuple(causes_first(found)), tuple(_summary(RULES[name], v) for name, v in verdicts.items()))


def causes_first(findings: Sequence[Finding]) -> list[Finding]:
    """Findings in the order of `RULES`; each that another one explains stands below the first such."""
    left = list(findings)
    causes = []
    while left:
        cause, *left = left
        symptoms = [finding for finding in left if finding.rule in EXPLAINS.get(cause.rule, ())]
        left = [finding for finding in left if finding not in symptoms]
        causes.append(replace(cause, symptoms=tuple(symptoms)))
    return causes


def diagnose(run_dir: Path) -> Diagnosis:
    """Judge a run by its records and write `debugger/findings.json`; without records, find nothing and write nothing.

    Raises:
        RunError: a record is damaged.
    """
    if not has_records(run_dir):
        return Diagnosis((), ())
    diagnosis = judge(read_records(run_dir))
    write_diagnosis(run_dir / FOLDER / "findings.json", diagnosis)
    return diagnosis


def is_reason_to_stop(run_dir: Path, step: int) -> bool:
    """Whether any rule finds something by now, after `step` optimiser steps; the first one is noted for the end."""
    findings = judge(read_records(run_dir)).findings
    if not findings:
        return False
    first = findings[0]
    content = {"step": step, "reason": f"{first.rule}: {first.seen}"}
    write_text(run_dir / FOLDER / "stopped.json", json.dumps(content, indent=1) + "\n")
    return True


def why_stopped(run_dir: Path) -> str:
    """Why `debugger.on_finding=stop` ended the training of a run; empty where it did not."""
    try:
        content = json.loads((run_dir / FOLDER / "stopped.json").read_text())
    except FileNotFoundError:
        return ""
    return f"debugger.on_finding=stop ended the training at step {content['step']}: {content['reason']}"


def _summary(rule: Rule, verdict: Verdict) -> RuleSummary:
    return RuleSummary(rule.name, rule.checks, verdict.triggered, verdict.points, rule.parameters)
