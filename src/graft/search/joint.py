"""Trials on a frozen backbone, trained together over its cached features."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

import torch

from graft.assembly import build_classifier, expected_input, look, open_folder, with_local_weights
from graft.config import Config, TrainingPrecision, changed
from graft.data.findings import refuse
from graft.data.folder import Folder
from graft.data.module import inverse_frequency
from graft.errors import GraftError, RunError
from graft.features.source import FeatureSource
from graft.fit import pick_device
from graft.photos import Photos
from graft.search.heads import train_heads
from graft.search.heads_course import Decision, HeadResult, HeadTrial, Progress, Report
from graft.search.heads_features import Features
from graft.search.runs import AtEnd, known_at_rungs, lengths
from graft.search.runs_watch import AtRung
from graft.search.space import Params, Space
from graft.search.trials import Curve, Outcome, Trial

# What two heads on the same features may differ in.
JOINT = frozenset(
    {
        *("optim.lr", "optim.weight_decay", "optim.algorithm", "optim.schedule", "optim.label_smoothing"),
        "optim.clip_norm",
        *("data.batch_size", "data.balance", "model.hidden", "seed"),
        *("trainer.max_epochs", "trainer.max_steps", "trainer.patience"),
    }
)


def train_together(config: Config, space: Space) -> bool:
    """Whether the trials of a space differ in their heads alone, so that they share one pass over the features."""
    # Augmented views are drawn from the seed, so that trials with other seeds have other features.
    other_features = "seed" in space.spreads and config.features.views > 0
    fp32 = config.trainer.precision is TrainingPrecision.fp32
    known_at_once = known_at_rungs(config.search.objective)
    return known_at_once and config.trains_on_features and fp32 and set(space.spreads) <= JOINT and not other_features


class HeadTrials:
    """Runs the trials of a search a portion at a time, all heads of a portion on one pass over the features.

    Args:
        config: of the search; a trial changes its parameters.
    """

    together = True

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = pick_device(config.trainer.accelerator.value)

    @cached_property
    def folder(self) -> Folder:
        """The splits; test is sealed."""
        return open_folder(self.config)

    @cached_property
    def photos(self) -> Photos:
        """The one look at the photos, taken when the first trial needs it."""
        local = with_local_weights(self.config)
        spec = expected_input(local)
        classifier = build_classifier(local, self.folder, spec)
        photos = look(self.config, self.folder, classifier, spec, self.device)
        refuse(photos.findings)
        return photos

    @cached_property
    def features(self) -> tuple[Features, Features]:
        """Of train and of valid, in memory where they fit; one copy for all portions."""
        train, valid = self.photos.train_source(), self.photos.source(self.photos.splits["valid"])
        assert isinstance(train, FeatureSource)
        assert isinstance(valid, FeatureSource)
        return Features(train, device=self.device), Features(valid, device=self.device)

    def prepare(self) -> None:
        """Look at the photos, before the first trial is claimed."""
        _ = self.photos

    def lengths(self, space: Space) -> tuple[int, int]:
        """Optimiser steps of the shortest and of the longest trial."""
        return lengths(self.config, space, len(self.photos.splits["train"]))

    def run(self, trials: Sequence[Trial], rungs: Sequence[int], at_rung: AtRung, at_end: AtEnd) -> None:
        """Train a portion together; each is told as it ends."""
        curves: dict[int, list[tuple[int, float]]] = defaultdict(list)

        def report(progress: Progress) -> Decision:
            point = progress.point
            curve = curves[progress.number]
            if point is not None and (not curve or curve[-1][0] < point.step):
                curve.append((point.step, point.valid_loss))
            if progress.state != "running":
                at_end(progress.number, _outcome(progress, self.config.search.objective, tuple(curve)))
            elif point is not None and point.step in rungs:
                goes_on = at_rung(progress.number, point.step, point.valid_loss, point.valid_accuracy)
                return "continue" if goes_on else "prune"
            return "continue"

        heads = []
        for trial in trials:
            try:
                heads.append(head_trial(changed(self.config, trial.params), trial.number))
            except GraftError as error:
                at_end(trial.number, Outcome("failed", None, f"{type(error).__name__}: {error}"))
        self._train(heads, report, rungs=rungs)

    def repeat(self, params: Sequence[Params], seeds: Sequence[int]) -> list[list[Outcome]]:
        """By set of parameters: its outcomes with other seeds, all trained together."""
        pairs = [(number, seed) for number in range(len(params)) for seed in seeds]
        trials = [Trial(at, {**params[number], "seed": seed}) for at, (number, seed) in enumerate(pairs)]
        found: dict[int, Outcome] = {}
        self.run(trials, (), lambda *_: True, found.__setitem__)
        return [[found[at] for at, (mine, _) in enumerate(pairs) if mine == number] for number in range(len(params))]

    def state(self, number: int, params: Params) -> dict[str, torch.Tensor]:
        """What a trial trained, as `Classifier` names it; trained once more, which comes out the same to the bit.

        Raises:
            RunError: it cannot be trained again.
        """
        (found,) = self._train([head_trial(changed(self.config, params), number)], _goes_on, keep_weights=True)
        if found.weights is None:
            raise RunError(
                f"trial {number}, the best, cannot be trained again: {found.reason}; the same command tries once more"
            )
        return {f"head.{name}": value for name, value in found.weights.items()}

    def _train(
        self, heads: Sequence[HeadTrial], report: Report, *, rungs: Sequence[int] = (), keep_weights: bool = False
    ) -> list[HeadResult]:
        classes = len(self.folder.class_names)
        return train_heads(
            heads,
            *self.features,
            num_classes=classes,
            report=report,
            # as the ordinary path counts them: over all photos of train, damaged ones included
            class_weights=inverse_frequency(self.folder.train.labels(), classes).tolist(),
            rungs=rungs,
            keep_weights=keep_weights,
        )


def _goes_on(progress: Progress) -> Decision:
    return "continue"


def _outcome(progress: Progress, objective: str, curve: Curve) -> Outcome:
    value = None
    if progress.best is not None and progress.state in ("ok", "pruned"):
        value = progress.best.valid_accuracy if objective == "valid/accuracy" else progress.best.valid_loss
    last = curve[-1][0] if curve else 0
    return Outcome(progress.state, value, progress.reason, progress.seconds, curve, last)


def head_trial(config: Config, number: int) -> HeadTrial:
    """The head of a configuration."""
    o, t = config.optim, config.trainer
    return HeadTrial(
        number=number,
        lr=o.lr,
        weight_decay=o.weight_decay,
        batch_size=config.data.batch_size,
        max_epochs=t.max_epochs,
        max_steps=t.max_steps,
        patience=t.patience,
        seed=config.seed,
        hidden=config.model.hidden,
        algorithm=o.algorithm.value,
        schedule=o.schedule.value,
        label_smoothing=o.label_smoothing,
        clip_norm=o.clip_norm,
        balance=config.data.balance.value,
    )
