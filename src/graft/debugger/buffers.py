"""What a probe has noted since the last flush: tensors where the training left them, until they become columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from graft.debugger.records import LOSS, TABLES


class Buffers:
    """What was recorded since the last flush, as tensors where the training left them."""

    def __init__(self) -> None:
        self.losses: list[tuple[str, int, int, torch.Tensor, int, float]] = []
        self.labels: list[torch.Tensor] = []
        self.layers: list[tuple[int, dict[str, dict[str, torch.Tensor]]]] = []
        self.relus: list[tuple[int, str, torch.Tensor, int]] = []
        self.answers: list[tuple[str, int, int, torch.Tensor, torch.Tensor]] = []

    def tables(self, last_step: int, num_classes: int) -> list[tuple[str, dict[str, Any]]]:
        """Table -> columns; waits for the device once for each kind of tensor."""
        return [
            ("losses", self._losses()),
            ("labels", self._label_counts(last_step, num_classes)),
            ("layers", self._layers()),
            ("relus", self._relus()),
            ("answers", self._answers()),
        ]

    def _losses(self) -> dict[str, Any]:
        mode, step, global_step, _, photos, rate = zip(*self.losses, strict=True) if self.losses else [()] * 6
        return {
            "mode": mode, "name": [LOSS] * len(mode), "step": step, "global_step": global_step,
            "value": _scalars([row[3] for row in self.losses]), "photos": photos, "learning_rate": rate,
        }  # fmt: skip

    def _label_counts(self, last_step: int, num_classes: int) -> dict[str, Any]:
        if not self.labels:
            return dict.fromkeys(TABLES["labels"], ())
        counts = torch.bincount(torch.cat(self.labels), minlength=num_classes).cpu().numpy()
        present = np.flatnonzero(counts)
        return {"step": np.full(len(present), last_step), "label": present, "count": counts[present]}

    def _layers(self) -> dict[str, Any]:
        rows = [(step, name, row) for step, layers in self.layers for name, row in layers.items()]
        columns = [name for name in TABLES["layers"] if name not in ("step", "layer")]
        absent = torch.tensor(float("nan"))
        values = {name: _scalars([row.get(name, absent) for _, _, row in rows]) for name in columns}
        return {"step": [step for step, _, _ in rows], "layer": [name for _, name, _ in rows], **values}

    def _relus(self) -> dict[str, Any]:
        step, layer, dead, photos = zip(*self.relus, strict=True) if self.relus else [()] * 4
        return {"step": step, "layer": layer, "dead": _scalars(list(dead)), "photos": photos}

    def _answers(self) -> dict[str, Any]:
        if not self.answers:
            return dict.fromkeys(TABLES["answers"], ())
        sizes = [len(row[3]) for row in self.answers]
        whole = torch.cat([row[3] for row in self.answers]).cpu().numpy()
        shares = torch.cat([row[4] for row in self.answers]).cpu().numpy()
        mode, step, global_step = (np.repeat([row[column] for row in self.answers], sizes) for column in range(3))
        return {
            "mode": mode, "step": step, "global_step": global_step, "label": whole[:, 0], "guess": whole[:, 1],
            "p_label": shares[:, 0], "p_guess": shares[:, 1],
        }  # fmt: skip


def told_by(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(label, guess) int64 [B, 2] and their probabilities, float32 [B, 2], on the device of the logits [B, C]."""
    labels = labels.to(logits.device)
    top, guess = logits.max(dim=1)
    given = logits.gather(1, labels[:, None])[:, 0]
    scale = logits.logsumexp(dim=1)
    return torch.stack([labels, guess], 1), torch.stack([given - scale, top - scale], 1).exp()


def _scalars(tensors: list[torch.Tensor]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """float64 [N] of N scalars."""
    if not tensors:
        return np.empty(0)
    device = tensors[0].device
    return torch.stack([tensor.to(device) for tensor in tensors]).double().cpu().numpy()
