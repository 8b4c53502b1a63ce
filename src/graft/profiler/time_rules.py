"""Rules over where the time of a run went."""

from __future__ import annotations

import numpy as np

from graft.diagnosis import Finding, Rule, Verdict
from graft.profiler.prediction import cached_epoch_seconds, epoch_seconds, epochs_seen
from graft.profiler.records import STEP_PHASES, Facts, Records

FEW_STEPS = 30  # of which no standard deviation is to be trusted
STANDARD_DEVIATIONS, OUTLIERS = 3.0, 10.0
START_S, START_SHARE, SHORT_START_S = 20 * 60.0, 0.5, 60.0
RECOMPUTED_SHARE = 0.1


def priced(seconds: float, facts: Facts) -> str:
    """Seconds in words, with what they cost where the price of the machine is known."""
    said = f"{seconds:.3g} s" if seconds < 100 else f"{seconds:,.0f} s"
    if facts.usd_per_hour is None:
        return said
    usd = seconds / 3600 * facts.usd_per_hour
    return f"{said} ({usd:,.0f} USD)" if usd >= 10 else f"{said} ({usd:.2g} USD)"


def recomputed_frozen_features(records: Records) -> Verdict:
    """Passes of a frozen backbone whose result was known: all after the first over each photo."""
    facts, epochs = records.facts, epochs_seen(records)
    if facts.cached or not facts.frozen or not len(records.step_seconds):
        return Verdict(len(records.step_seconds) if facts.cached else 0)
    now, then = epoch_seconds(records), cached_epoch_seconds(records)
    cost = epochs * (now - then) + _final_passes(records)
    saved = cost - _first_look(records)
    if saved < RECOMPUTED_SHARE * records.seconds:
        return Verdict(len(records.step_seconds))
    views = " features.views=1" if facts.augment else ""
    return Verdict(
        len(records.step_seconds),
        round(epochs),
        Finding(
            "recomputed_frozen_features",
            f"the frozen backbone saw every photo again in each of {epochs:.3g} epochs: {cost / records.seconds:.0%} "
            f"of the run's {records.seconds:.3g} s",
            "its features of a photo do not change while it is frozen: all passes after the first compute what is known"
            + ("; augmented views are drawn once, as many as are asked for" if facts.augment else ""),
            f"features=cached{views}",
            key="features.enabled",
            gain=f"an epoch takes {then:.3g} s, not {now:.3g} s: {priced(saved, facts)} less in all, the first look "
            "at the photos paid for",
            cost_s=cost,
            saved_s=saved,
        ),
    )


def _first_look(records: Records) -> float:
    """Seconds of one pass of all photos, views and splits, beyond the look that the run took anyway."""
    facts, steps = records.facts, records.steps
    per_batch = np.median(steps["data_wait"] + steps["forward"])
    views = 2 if facts.augment else 1
    photos = sum(facts.photos.values()) + (views - 1) * facts.photos.get("train", 0)
    return float(per_batch * photos / facts.batch_size) - records.phases.get("look", 0.0)


def _final_passes(records: Records) -> float:
    return records.phases.get("final_evaluation", 0.0)


def step_outlier(records: Records) -> Verdict:
    """More than ten steps that took longer than the mean by three standard deviations."""
    seconds = records.step_seconds[1:]  # the first sets everything up
    if len(seconds) < FEW_STEPS:
        return Verdict(0)
    slow = seconds > seconds.mean() + STANDARD_DEVIATIONS * seconds.std()
    if np.count_nonzero(slow) <= OUTLIERS:
        return Verdict(len(seconds), int(np.count_nonzero(slow)))
    cost = float(np.sum(seconds[slow] - np.median(seconds)))
    excess = {name: _excess(records, name, slow) for name in (*STEP_PHASES, "other")}
    phase = max(excess, key=lambda name: excess[name])
    change, key = _OF_OUTLIERS.get(phase, ("look at what else this machine did meanwhile", ""))
    saved = min(excess[phase], cost) if key else None
    return Verdict(
        len(seconds),
        int(np.count_nonzero(slow)),
        Finding(
            "step_outlier",
            f"{np.count_nonzero(slow)} of {len(seconds)} steps took {np.median(seconds[slow]) * 1e3:.3g} ms and more, "
            f"where the median is {np.median(seconds) * 1e3:.3g} ms; most of it in {phase}",
            "a few slow steps hide in an average, and hold up all processes where several train together",
            change,
            key=key,
            gain=f"{priced(saved or cost, records.facts)} at most",
            since_step=int(np.argmax(slow)) + 1,
            cost_s=cost,
            saved_s=saved,
        ),
    )


_OF_OUTLIERS = {
    "data_wait": ("raise data.workers", "data.workers"),
    "transfer": ("lower data.batch_size", "data.batch_size"),
}


def _excess(records: Records, phase: str, slow: np.ndarray) -> float:
    values = records.steps[phase][1:]
    return float(np.sum(values[slow]) - np.count_nonzero(slow) * np.median(values))


def max_initialization_time(records: Records) -> Verdict:
    """A start that takes twenty minutes, or most of a run that is not short."""
    start, whole = records.phases.get("start_up", 0.0), records.seconds
    points = int(whole > 0)
    long = start > START_S or (start > SHORT_START_S and start > START_SHARE * whole)
    if not long:
        return Verdict(points)
    return Verdict(
        points,
        1,
        Finding(
            "max_initialization_time",
            f"{start:.0f} s of the run's {whole:.0f} s passed before its first look or step",
            "the machine is paid for while nothing is learnt",
            "put data.root and model.weights on a local disk, and code on one that is not shared",
            key="data.root",
            cost_s=start,
        ),
    )


RULES = (
    Rule(
        "recomputed_frozen_features",
        "no frozen backbone computes again what it knows",
        recomputed_frozen_features,
        {"share_of_run": RECOMPUTED_SHARE},
        "graft's own: below a tenth of the run, other things matter more",
    ),
    Rule(
        "step_outlier",
        "training steps take about the same time",
        step_outlier,
        {"standard_deviations": STANDARD_DEVIATIONS, "outliers": OUTLIERS},
        "SageMaker's StepOutlier: stddev 3, n_outliers 10",
    ),
    Rule(
        "max_initialization_time",
        "a run begins soon",
        max_initialization_time,
        {"seconds": START_S, "share_of_run": START_SHARE, "seconds_of_share": SHORT_START_S},
        "SageMaker's MaxInitializationTime: threshold 20 minutes; graft's own: half of a run, from a minute",
    ),
)
