"""Several heads in one set of tensors: one batch goes through all of them by batched matrix products.

Shapes: K heads, B photos, D features, H hidden units, C classes. Every product is a `bmm`, and every sum runs
within one head: no operation reads two heads, so that one of them, whatever becomes of it, cannot touch another.

The gradient is written out instead of taken by autograd. It is five lines, and it can then be written into tensors
that stay: autograd would allocate those of K heads anew in every step, which costs more than computing them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from graft.model import build_head
from graft.optim import build_optimizer, build_schedule
from graft.search.heads_course import HeadTrial

# nn.Sequential's names of the head's tensors, in the order in which they stand in a stack
NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")


class Stack:
    """Heads of the same shape which see the same batches; each has the optimiser that `train()` would give it.

    Args:
        trials: of the heads; they agree in `hidden`.
        width: D.
        num_classes: C.
        class_weights: weight of each class in the loss, [C], for trials with balance=loss.
        steps_per_epoch: for schedules.
        device: cpu or cuda.
        dtype: of everything.

    Raises:
        ConfigError: an unknown algorithm or schedule.
    """

    def __init__(
        self,
        trials: Sequence[HeadTrial],
        *,
        width: int,
        num_classes: int,
        class_weights: torch.Tensor | None,
        steps_per_epoch: int,
        device: str,
        dtype: torch.dtype,
    ) -> None:
        k, hidden = len(trials), trials[0].hidden
        # Weights as [in, out], the transpose of nn.Linear's: at batch 32 the product is a third faster so.
        shapes = (width, hidden), (1, hidden), (hidden, num_classes), (1, num_classes)
        self.parameters = [torch.empty(k, *shape, device=device, dtype=dtype) for shape in shapes]
        self.gradients = [torch.empty_like(tensor) for tensor in self.parameters]
        self._fill(trials, width, num_classes)
        self.own = [self._views(slot) for slot in range(k)]
        self.optimizers = [
            build_optimizer(
                own, algorithm=trial.algorithm, lr=trial.lr, weight_decay=trial.weight_decay, backbone_lr_factor=1.0
            )
            for trial, own in zip(trials, self.own, strict=True)
        ]
        self.schedules = [
            build_schedule(optimizer, schedule=trial.schedule, total_steps=steps_per_epoch * trial.max_epochs)
            for trial, optimizer in zip(trials, self.optimizers, strict=True)
        ]
        self.smoothing = torch.tensor([trial.label_smoothing for trial in trials], device=device, dtype=dtype)
        limits = [math.inf if trial.clip_norm is None else trial.clip_norm for trial in trials]
        self.clip_norms = torch.tensor(limits, device=device, dtype=dtype)
        self.clips = any(math.isfinite(limit) for limit in limits)
        self.classes = torch.arange(num_classes, device=device)
        self.class_weights = torch.ones(k, num_classes, device=device, dtype=dtype)
        for slot, trial in enumerate(trials):
            if trial.balance == "loss" and class_weights is not None:
                self.class_weights[slot] = class_weights

    def __len__(self) -> int:
        return len(self.own)

    @torch.no_grad()
    def step(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One optimiser step of every head on inputs [B, D] and labels int64 [B]; the losses before it, [K]."""
        hidden, logits = self._forward(inputs)
        targets = self._targets(labels)
        logs = logits.log_softmax(2)
        losses = -(targets * logs).sum((1, 2))
        self._backward(inputs, hidden, logs.exp_().mul_(targets.sum(2, keepdim=True)).sub_(targets))
        if self.clips:
            self._clip()
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            if schedule is not None:
                schedule.step()
        return losses

    @torch.no_grad()
    def evaluate(self, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over B photos of the plain cross-entropy and of the right answers, [K] each."""
        _, logits = self._forward(inputs)
        right = logits.argmax(2) == labels
        picked = logits.log_softmax(2).gather(2, labels.expand(len(self), -1)[..., None])
        return -picked.sum((1, 2)), right.sum(1)

    def keep(self, slots: Sequence[int]) -> None:
        """Go on with the heads at `slots`, ascending; the others leave, and their work with them."""
        for tensor in (*self.parameters, *self.gradients, self.smoothing, self.clip_norms, self.class_weights):
            for new, old in enumerate(slots):
                if new != old:
                    tensor[new] = tensor[old]
        count = len(slots)
        self.parameters = [tensor[:count] for tensor in self.parameters]
        self.gradients = [tensor[:count] for tensor in self.gradients]
        self.smoothing, self.class_weights = self.smoothing[:count], self.class_weights[:count]
        self.clip_norms = self.clip_norms[:count]
        self.own = [self.own[slot] for slot in slots]
        self.optimizers = [self.optimizers[slot] for slot in slots]
        self.schedules = [self.schedules[slot] for slot in slots]
        for slot, own in enumerate(self.own):
            for parameter, value, gradient in zip(own, self.parameters, self.gradients, strict=True):
                parameter.data, parameter.grad = value[slot], gradient[slot]

    def weights(self, slot: int) -> dict[str, torch.Tensor]:
        """A copy on the CPU of a head, as the state of `build_head`'s module."""
        mine = [tensor[slot].detach() for tensor in self.parameters]
        state = mine[0].T, mine[1][0], mine[2].T, mine[3][0]
        return {
            name: value.cpu().clone(memory_format=torch.contiguous_format)
            for name, value in zip(NAMES, state, strict=True)
        }

    def _forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden units after ReLU [K, B, H], and logits [K, B, C]."""
        weight, bias, out_weight, out_bias = self.parameters
        hidden = torch.baddbmm(bias, inputs.expand(len(self), -1, -1), weight).relu_()
        return hidden, torch.baddbmm(out_bias, hidden, out_weight)

    def _targets(self, labels: torch.Tensor) -> torch.Tensor:
        """[K, B, C] such that the loss of torch's cross_entropy is -sum(targets * log_softmax(logits))."""
        smoothing, weights = self.smoothing[:, None, None], self.class_weights
        hard = (labels[:, None] == self.classes).to(weights.dtype)
        scale = weights / weights[:, labels].sum(1, keepdim=True)
        return (hard * (1 - smoothing) + smoothing / weights.shape[1]) * scale[:, None]

    def _backward(self, inputs: torch.Tensor, hidden: torch.Tensor, d_logits: torch.Tensor) -> None:
        """Fill the gradients from that of the logits, [K, B, C]."""
        weight, bias, out_weight, out_bias = self.gradients
        torch.bmm(hidden.mT, d_logits, out=out_weight)
        torch.sum(d_logits, 1, keepdim=True, out=out_bias)
        # hidden is 0 where ReLU was shut, and its sign 1 where it was open
        d_hidden = torch.bmm(d_logits, self.parameters[2].mT).mul_(hidden.sign_())
        torch.bmm(inputs.expand(len(self), -1, -1).mT, d_hidden, out=weight)
        torch.sum(d_hidden, 1, keepdim=True, out=bias)

    def _clip(self) -> None:
        """Shorten each head's own gradient, as torch's `clip_grad_norm_` does."""
        squares = [tensor.square().sum((1, 2)) for tensor in self.gradients]
        factors = (self.clip_norms / (torch.stack(squares).sum(0).sqrt() + 1e-6)).clamp_(max=1.0)
        factors[self.clip_norms.isinf()] = 1.0  # also where the gradient is not finite
        for tensor in self.gradients:
            tensor.mul_(factors[:, None, None])

    def _fill(self, trials: Sequence[HeadTrial], width: int, num_classes: int) -> None:
        for slot, trial in enumerate(trials):
            state = build_head(width, trial.hidden, num_classes, seed=trial.seed).state_dict()
            for tensor, name in zip(self.parameters, NAMES, strict=True):
                tensor[slot] = state[name].t()

    def _views(self, slot: int) -> list[nn.Parameter]:
        own = []
        for value, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter = nn.Parameter(value[slot])
            parameter.grad = gradient[slot]
            own.append(parameter)
        return own
