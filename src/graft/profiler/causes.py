"""All rules over the records of a run: findings ordered by the seconds they cost, symptoms under their causes."""

from __future__ import annotations

from collections.abc import Sequence

from graft.diagnosis import Diagnosis, Finding, Rule, under_their_causes
from graft.profiler import gpu_rules, input_rules, time_rules
from graft.profiler.records import Records

RULES: dict[str, Rule[Records]] = {
    rule.name: rule for rule in (*gpu_rules.RULES, *input_rules.RULES, *time_rules.RULES)
}

# Cause -> what is only its symptom in the same run, the symptoms of its symptoms included.
EXPLAINS: dict[str, tuple[str, ...]] = {
    # What an idle GPU shows; the original's author read it as "larger batches".
    "gpu_never_used": ("low_gpu_utilization", "cpu_bottleneck", "batch_size", "load_balancing"),
    # Features take no decoding, and a GPU that decodes nothing waits for nothing.
    "recomputed_frozen_features": (
        "low_gpu_utilization",
        "cpu_bottleneck",
        "io_bottleneck",
        "dataloader",
        "batch_size",
        "small_files_on_s3",
    ),
    "small_files_on_s3": ("io_bottleneck", "dataloader", "cpu_bottleneck", "low_gpu_utilization", "batch_size"),
    "dataloader": ("cpu_bottleneck", "low_gpu_utilization", "batch_size"),
    "io_bottleneck": ("low_gpu_utilization", "batch_size"),
    "cpu_bottleneck": ("low_gpu_utilization", "batch_size"),
    "load_balancing": ("low_gpu_utilization",),
    "batch_size": ("low_gpu_utilization",),
}


def judge(records: Records) -> Diagnosis:
    """What the rules say of a run."""
    verdicts = {name: rule.look(records) for name, rule in RULES.items()}
    found = [verdict.finding for verdict in verdicts.values() if verdict.finding]
    return Diagnosis(tuple(causes_first(found)), tuple(RULES[name].summary(v) for name, v in verdicts.items()))


def causes_first(findings: Sequence[Finding]) -> list[Finding]:
    """Findings in the order of what they cost, the dearest first, but each under what explains it.

    A symptom may cost more seconds than its cause: an idle GPU waits all the time.
    """
    explained = {symptom for finding in findings for symptom in EXPLAINS.get(finding.rule, ())}
    by_cost = sorted(findings, key=lambda finding: (finding.rule in explained, -(finding.cost_s or 0.0)))
    return under_their_causes(by_cost, EXPLAINS)
