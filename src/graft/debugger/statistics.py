"""Gradients, weights and outputs of the layers that train, looked at in a single step; nothing waits for a GPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

# SageMaker's DeadRelu calls a unit dead that answers less than 1 % of the inputs: it takes a hundred to tell.
PHOTOS_TO_TELL = 100
_RELUS = (nn.ReLU, nn.ReLU6)

Row = dict[str, torch.Tensor]


class LayerStatistics:
    """Watches the trainable layers of a module from `watch` to `release`.

    Args:
        module: what trains; its frozen parts are left alone.
        answers: the part whose output are the logits.
    """

    def __init__(self, module: nn.Module, answers: nn.Module) -> None:
        self.layers = {name: part for name, part in module.named_modules() if _trains(part)}
        self.relus = _relus(module, self.layers)
        self.answers = answers
        self.logits: torch.Tensor | None = None
        self._outputs: dict[str, Row] = {}
        self._active: dict[str, torch.Tensor] = {}  # units' counts of photos that they answered
        self._photos: dict[str, int] = defaultdict(int)
        self._handles: list[RemovableHandle] = []

    def watch(self) -> None:
        """Look at every layer in the next forward pass."""
        self._outputs = {}
        for name, part in self.layers.items():
            self._hook(part, self._note_output(name))
        for name, part in self.relus.items():
            self._hook(part, self._note_activity(name))

    def watch_answers(self) -> None:
        """Keep the logits of the next forward pass."""
        self.logits = None
        self._hook(self.answers, self._note_logits)

    def release(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def rows(self) -> dict[str, Row]:
        """Layer -> column -> scalar, with the gradients that are there and the weights that made them."""
        return {name: _of_layer(part) | self._outputs.get(name, {}) for name, part in self.layers.items()}

    def dead_relus(self) -> dict[str, tuple[torch.Tensor, int]]:
        """Of each ReLU that has seen enough photos since it was last told: share of dead units, and those photos."""
        told = {}
        for name in [name for name, photos in self._photos.items() if photos >= PHOTOS_TO_TELL]:
            photos = self._photos.pop(name)
            active = self._active.pop(name)
            told[name] = ((active < 0.01 * photos).float().mean(), photos)
        return told

    def _hook(self, part: nn.Module, note: Callable[..., None]) -> None:
        self._handles.append(part.register_forward_hook(note))

    def _note_output(self, name: str) -> Callable[..., None]:
        def note(part: nn.Module, inputs: Any, output: Any) -> None:
            answer = output[0] if isinstance(output, tuple) else output  # of attention, its weights come second
            if isinstance(answer, torch.Tensor):
                std, mean = torch.std_mean(answer.detach().float(), correction=0)
                self._outputs[name] = {"output_mean": mean, "output_std": std}

        return note

    def _note_activity(self, name: str) -> Callable[..., None]:
        calls = 0  # a residual block calls one module for each of its activations

        def note(part: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            nonlocal calls
            place = f"{name}.{calls}" if calls else name
            calls += 1
            positive = output.detach() > 0
            active = positive.flatten(2).any(2) if positive.dim() > 2 else positive
            self._active[place] = self._active.get(place, 0) + active.sum(0)
            self._photos[place] += len(output)

        return note

    def _note_logits(self, part: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self.logits = output.detach()


def _trains(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters(recurse=False))


def _relus(module: nn.Module, layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """ReLUs beside, or below the parent of, a layer that trains."""
    parents = {name.rpartition(".")[0] for name in layers}
    parts = dict(module.named_modules())
    return {
        name: part for name, part in parts.items() if isinstance(part, _RELUS) and name.rpartition(".")[0] in parents
    }


def _of_layer(layer: nn.Module) -> Row:
    own = [parameter for parameter in layer.parameters(recurse=False) if parameter.requires_grad]
    gradients = [parameter.grad.detach() for parameter in own if parameter.grad is not None]
    row: Row = {}
    if gradients:
        count = sum(gradient.numel() for gradient in gradients)
        row["gradient_norm"] = torch.stack([torch.linalg.vector_norm(g) for g in gradients]).square().sum().sqrt()
        row["gradient_mean"] = torch.stack([torch.linalg.vector_norm(g, ord=1) for g in gradients]).sum() / count
    weight = next((p.detach() for p in own if p.dim() > 1), own[0].detach())
    row["weight_std"], row["weight_mean"] = torch.std_mean(weight.float(), correction=0)
    row["fan_in"] = torch.tensor(weight[0].numel())  # a layer's weights are [outputs, inputs, ..]
    return row
