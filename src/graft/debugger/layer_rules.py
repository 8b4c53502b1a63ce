"""Rules over gradients, weights and activations of the layers that train."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from graft.debugger.loss_rules import LEARNT, SAGEMAKER
from graft.debugger.records import TRAIN, Records
from graft.debugger.rule import Rule, Verdict
from graft.diagnosis import Finding

VANISHED = 1e-7  # VanishingGradient.threshold
EXPLODED = 10.0
CLIPPING = 4.0  # times the mean norm: healthy heads stay below it
VARIANCE_RATIO = 10.0  # PoorWeightInitialization.threshold
INITIAL_LOSS = 2.0
DEAD_SHARE = 0.9  # DeadRelu.threshold_layer is 0.5, which healthy heads exceed on features that are much alike


def vanishing_gradient(records: Records) -> Verdict:
    """A layer whose gradients are next to nothing although the loss is not."""
    layers = records.table("layers")
    small = (layers["gradient_mean"] < VANISHED) & (_loss_at(records, layers["step"]) > LEARNT * _chance(records))
    if not small.any():
        return Verdict(len(small))
    first = int(np.flatnonzero(small)[0])
    names = sorted(set(layers["layer"][small].tolist()))
    return Verdict(
        len(small),
        int(small.sum()),
        Finding(
            rule="vanishing_gradient",
            seen=f"the mean gradient of {', '.join(names)} was {layers['gradient_mean'][first]:.2g}, "
            f"below {VANISHED:g}",
            why="such a layer stays as it is, whatever the photos show",
            change="a higher optim.lr does not help a gradient of zero: unfreeze less (model.unfreeze), or look "
            "whether the layers after it are dead or saturated",
            key="model.unfreeze",
            since_step=int(layers["step"][first]),
        ),
    )


def exploding_gradient(records: Records) -> Verdict:
    """The norm of all gradients together, against what it was on average before."""
    steps, norms = gradient_norms(records)
    finite = norms[np.isfinite(norms)]
    if len(finite) < 2 or len(finite) < len(norms):
        return Verdict(0)
    before = np.cumsum(norms)[:-1] / np.arange(1, len(norms))
    high = norms[1:] > EXPLODED * before
    if not high.any():
        return Verdict(len(norms))
    first = int(np.flatnonzero(high)[0])
    lower, clipped = f"optim.lr={records.facts.learning_rate / 10:g}", records.facts.clipped
    return Verdict(
        len(norms),
        int(high.sum()),
        Finding(
            rule="exploding_gradient",
            seen=f"the norm of the gradient was {norms[1 + first]:.4g}, {norms[1 + first] / before[first]:.0f} "
            f"times its mean before{', until optim.clip_norm shortened it' if clipped else ''}",
            why="the step was as long as any, but such gradients come of a rate that is too high"
            if clipped
            else "one such step undoes many good ones",
            change=lower if clipped else f"optim.clip_norm={CLIPPING * before[first]:.3g}, or {lower}",
            key="optim.lr" if clipped else "optim.clip_norm",
            since_step=int(steps[1 + first]),
        ),
    )


def gradient_norms(records: Records) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Of each look: its step, and the norm of the gradients of all layers together."""
    layers = records.table("layers")
    steps, group = np.unique(layers["step"], return_inverse=True)
    with np.errstate(invalid="ignore", over="ignore"):
        return steps, np.sqrt(np.bincount(group, layers["gradient_norm"] ** 2, len(steps)))


def poor_weight_initialization(records: Records) -> Verdict:
    """The loss before the first step, and the spread of the head's weights, each for its number of inputs."""
    layers, losses = records.table("layers"), records.losses(TRAIN)
    if not len(losses.step) or losses.step[0] or not math.isfinite(losses.value[0]):
        return Verdict(0)
    fresh = (layers["step"] == 0) & np.char.startswith(layers["layer"].astype(str), "head.")
    variance = layers["weight_std"][fresh] ** 2 * layers["fan_in"][fresh]
    complaints = []
    if losses.value[0] > INITIAL_LOSS * _chance(records):
        complaints.append(
            f"the first loss is {losses.value[0]:.4g}, where a model that has learnt nothing has "
            f"ln {records.facts.num_classes} = {_chance(records):.4g}"
        )
    if len(variance) and variance.max() > VARIANCE_RATIO * variance.min():
        complaints.append(
            f"the weights' variance times their inputs differs between layers by a factor of "
            f"{variance.max() / max(variance.min(), np.finfo(np.float64).tiny):.3g}"
        )
    points = 1 + len(variance)
    if not complaints:
        return Verdict(points)
    return Verdict(
        points,
        len(complaints),
        Finding(
            rule="poor_weight_initialization",
            seen="; ".join(complaints),
            why="the first steps are spent on undoing the start, and layers of other scales learn at other speeds",
            change="model.mean, model.std and model.weights must be of one model: features far from one make the "
            "first answers extreme",
            key="model.weights",
            since_step=0,
        ),
    )


def dead_relu(records: Records) -> Verdict:
    """The share of a layer's units that answer next to no photo, when the layer was last looked at."""
    relus = records.table("relus")
    last = {name: index for index, name in enumerate(relus["layer"].tolist())}
    dead = {name: float(relus["dead"][at]) for name, at in last.items() if relus["dead"][at] > DEAD_SHARE}
    if not dead:
        return Verdict(len(relus["step"]))
    above = relus["dead"] > DEAD_SHARE
    first = int(np.flatnonzero(above & np.isin(relus["layer"], list(dead)))[0])
    listed = ", ".join(f"{share:.0%} of {name}" for name, share in dead.items())
    return Verdict(
        len(relus["step"]),
        int(above.sum()),
        Finding(
            rule="dead_relu",
            seen=f"units that answer less than 1 % of the photos: {listed}",
            why="a unit that never answers has no gradient and does not come back: the layer is as good as smaller",
            change=f"optim.lr={records.facts.learning_rate / 10:g}",
            key="optim.lr",
            since_step=int(relus["step"][first]),
        ),
    )


def _chance(records: Records) -> float:
    """The cross-entropy of a model that knows nothing, in nats."""
    return math.log(max(records.facts.num_classes, 2))


def _loss_at(records: Records, steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """The training loss at steps, or at the last recorded one before; infinite where there is none."""
    losses = records.losses(TRAIN)
    if not len(losses.step):
        return np.full(len(steps), np.inf)
    at = np.searchsorted(losses.step, steps, side="right") - 1
    return np.where(at >= 0, losses.value[np.maximum(at, 0)], np.inf)


RULES = (
    Rule(
        "exploding_gradient",
        "the norm of the gradient stays near what it was",
        exploding_gradient,
        {"times_mean": EXPLODED},
        "Pascanu, Mikolov, Bengio 2013 (https://arxiv.org/abs/1211.5063): half to ten times the average norm is where "
        "to clip",
    ),
    Rule(
        "vanishing_gradient",
        "every layer that trains has gradients",
        vanishing_gradient,
        {"threshold": VANISHED, "learnt": LEARNT},
        f"VanishingGradient of {SAGEMAKER}",
    ),
    Rule(
        "poor_weight_initialization",
        "the first loss is that of chance, and the head's layers start with weights of one scale",
        poor_weight_initialization,
        {"threshold": VARIANCE_RATIO, "initial_loss": INITIAL_LOSS},
        f"PoorWeightInitialization.threshold of {SAGEMAKER}",
    ),
    Rule(
        "dead_relu",
        "the units of every ReLU answer photos",
        dead_relu,
        {"threshold_inactivity": 0.01, "threshold_layer": DEAD_SHARE},
        f"DeadRelu of {SAGEMAKER}",
    ),
)
