"""What the page shows of a run, section by section: plain values for the template, and its figures drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from markupsafe import Markup

from graft.data.findings import LEAKS
from graft.diagnosis import Diagnosis, Finding, RuleSummary
from graft.plateau import Settled, settled
from graft.report import charts
from graft.report.drawing import DrawingError, Spec, draw
from graft.report.files import RunFiles
from graft.report.photos import Thumbnails
from graft.report.predictions import Bin, Pair, Prediction, calibration, confused, worst
from graft.report.verdict import Facts, Verdict, judged_split, verdict, weak_classes

PAIRS, MISTAKES, PHOTOS = 8, 12, 3  # pairs, worst mistakes, photos on each side of a pair
COPIES = 4  # pairs of copies shown per finding of the data checks


@dataclass(frozen=True)
class Figure:
    """A drawn figure and what it shows in words; `svg` is None where it could not be drawn, and `words` says why."""

    svg: Markup | None
    words: str


@dataclass(frozen=True)
class Confusion:
    """The judged split: which it is, its most confused pairs, worst mistakes and weakest classes."""

    split: str
    photos: int
    mistakes: int
    pairs: list[Pair]
    worst: tuple[Prediction, ...]
    weak: list[tuple[str, float]]


@dataclass(frozen=True)
class RunView:
    """Everything that the template shows of a run."""

    run: RunFiles
    absent: str
    verdict: Verdict
    settled: Settled | None
    splits: list[str]
    losses: Figure | None
    recorded: bool
    findings: list[Finding]
    rules: list[RuleSummary]
    diagnosed: dict[str, bool]
    utilisation: Figure | None
    phases: dict[str, float]
    phases_figure: Figure | None
    calibration: Figure | None
    bins: list[Bin]
    confusion: Confusion | None
    thumbnails: dict[str, str]
    photos_note: str
    copies: list[list[tuple[str, str]]]
    copy_photos: dict[str, str]


def view_run(run: RunFiles, thumbnails: Thumbnails, absent: str = "") -> RunView:
    """The sections of a run, its figures drawn and its photos read.

    Args:
        run: its files.
        thumbnails: of its photos.
        absent: why there is no run, of a search without a model.
    """
    split = judged_split(run.metrics)
    judged = [p for p in run.predictions if p.split == split]
    bins = calibration(judged)
    confusion = confusion_of(run, split, judged) if split else None
    wanted = list(dict.fromkeys(photos_of(confusion))) if confusion else []
    shown = thumbnails.take(wanted)
    note = photos_note(thumbnails, len(wanted))
    copies, copy_photos = copies_of(run.data.get("findings", ()), thumbnails)
    ended = settled(run.course.evaluations)
    findings = by_cost([run.debugger, run.profiler])
    return RunView(
        run=run,
        absent=absent,
        verdict=verdict(facts_of(run, findings, absent)),
        settled=ended,
        splits=[name for name in ("valid", "test") if f"{name}/accuracy" in run.metrics],
        losses=loss_figure(run, ended),
        recorded=any(losses.recorded for losses in run.course.modes.values()),
        findings=findings,
        rules=[rule for diagnosis in (run.debugger, run.profiler) if diagnosis for rule in diagnosis.rules],
        diagnosed={"debugger": run.debugger is not None, "profiler": run.profiler is not None},
        utilisation=utilisation_figure(run),
        phases=dict(sorted(run.phases.items(), key=lambda phase: -phase[1])),
        phases_figure=phases_figure(run.phases),
        calibration=calibration_figure(bins, run.metrics, split),
        bins=bins,
        confusion=confusion,
        thumbnails=shown,
        photos_note=note,
        copies=copies,
        copy_photos=copy_photos,
    )


def facts_of(run: RunFiles, findings: Sequence[Finding], absent: str) -> Facts:
    """What the verdict rests on."""
    split = judged_split(run.metrics) or "valid"
    return Facts(
        state=run.state.get("state", ""),
        reason=run.state.get("reason", ""),
        absent=absent,
        toy=run.setting("data.kind") == "demo",
        metrics=run.metrics,
        photos=run.data.get("photos", {}),
        leaked=leaked(run.data.get("findings", ())),
        class_accuracy=run.evaluation.get(split, {}).get("per_class_accuracy", {}),
        findings=findings,
        clipped=run.setting("optim.clip_norm") is not None,
    )


def leaked(findings: Iterable[Mapping[str, Any]]) -> int:
    """Photos of test that are in another split too: those named, which are all of them up to a thousand a finding."""
    pairs = (file for finding in findings if finding["check"] in LEAKS for file in finding["files"])
    return len({side for pair in pairs for side in pair.split(" = ") if side.startswith("test/")})


def copies_of(
    findings: Iterable[Mapping[str, Any]], thumbnails: Thumbnails
) -> tuple[list[list[tuple[str, str]]], dict[str, str]]:
    """By finding, the first pairs of photos in two splits that can be shown; and name -> data URI."""
    uris: dict[str, str] = {}
    shown = []
    for finding in findings:
        files = finding["files"][:COPIES] if finding["check"] in LEAKS else ()
        pairs = [(one, other) for one, _, other in (file.partition(" = ") for file in files)]
        found = thumbnails.named(dict.fromkeys(name for pair in pairs for name in pair))
        uris |= found
        shown.append([pair for pair in pairs if pair[0] in found and pair[1] in found])
    return shown, uris


def by_cost(diagnoses: Iterable[Diagnosis | None]) -> list[Finding]:
    """All findings, the dearest first; those without a cost keep their order after them."""
    findings = itertools.chain.from_iterable(diagnosis.findings for diagnosis in diagnoses if diagnosis)
    return sorted(findings, key=lambda finding: -finding.cost_s if finding.cost_s is not None else math.inf)


def confusion_of(run: RunFiles, split: str, judged: Sequence[Prediction]) -> Confusion:
    """What the model takes for what."""
    accuracy = run.evaluation.get(split, {}).get("per_class_accuracy", {})
    return Confusion(
        split=split,
        photos=len(judged),
        mistakes=sum(not prediction.right for prediction in judged),
        pairs=confused(judged, PAIRS),
        worst=worst(judged, MISTAKES),
        weak=weak_classes(accuracy, run.metrics[f"{split}/accuracy"])[:10],
    )


def photos_of(confusion: Confusion) -> Iterable[str]:
    """The paths of the photos that are shown."""
    for pair in confusion.pairs:
        yield from (prediction.path for prediction in [*pair.mistaken[:PHOTOS], *pair.likes[:PHOTOS]])
    yield from (prediction.path for prediction in confusion.worst)


def photos_note(thumbnails: Thumbnails, wanted: int) -> str:
    """What became of photos that are not shown; empty where all are."""
    missing, left_out = len(thumbnails.missing), thumbnails.left_out
    notes = []
    if missing:
        example = thumbnails.missing[0]
        notes.append(f"{missing} of {wanted} photos are no longer where the run read them, such as {example}")
    if left_out:
        notes.append(f"{left_out} photos are left out to keep this page small")
    return "; ".join(notes)


def loss_figure(run: RunFiles, ended: Settled | None) -> Figure | None:
    """The cross-entropy of both modes."""
    if not run.course.modes:
        return None
    parts = [
        f"{mode} from {losses.value[0]:.3f} to {losses.value[-1]:.3f} over {losses.step[-1]} steps"
        for mode, losses in run.course.modes.items()
    ]
    return drawn(charts.loss_chart(run.course.modes, ended), f"Cross-entropy by step: {'; '.join(parts)}.")


def utilisation_figure(run: RunFiles) -> Figure | None:
    """Processor, memory, disk, network and GPU over the run."""
    spec = charts.utilisation_chart(run.samples)
    if spec is None:
        return None
    means = (
        f"{name.replace('_', ' ')} {np.nanmean(values):.0f}"
        for name, values in charts.told_cores(run.samples).items()
        if name.endswith("_percent") and np.isfinite(values).any()
    )
    return drawn(spec, f"Utilisation over time; on average {', '.join(means)}.")


def phases_figure(phases: Mapping[str, float]) -> Figure | None:
    """Where the time went."""
    if not phases:
        return None
    longest = max(phases, key=lambda name: phases[name])
    words = (
        f"Seconds by phase: {longest.replace('_', ' ')} took most, {phases[longest]:.1f} of {sum(phases.values()):.1f}."
    )
    return drawn(charts.phases_chart(phases), words)


def calibration_figure(bins: Sequence[Bin], metrics: Mapping[str, float], split: str | None) -> Figure | None:
    """Confidence against accuracy."""
    if not bins or split is None:
        return None
    error = metrics[f"{split}/ece_calibrated"]
    words = (
        f"Share of photos classified right by calibrated confidence, {len(bins)} bins on {split}: off by {error:.3f}."
    )
    return drawn(charts.calibration_chart(bins), words)


def drawn(spec: Spec, words: str) -> Figure:
    """A figure; where it cannot be drawn, the reason in its place."""
    try:
        return Figure(draw(spec), words)
    except DrawingError as error:
        return Figure(None, str(error))


def file_name(path: str) -> str:
    """The last part of a path or URL."""
    return PurePosixPath(path).name
