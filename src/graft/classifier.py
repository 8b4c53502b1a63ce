"""Classifier: the LightningModule of a pretrained backbone and its two-layer head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.nn import functional
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from graft.errors import WeightsError
from graft.model import build_backbone, build_head, feature_width, fingerprint, freeze, set_modes
from graft.optim import build_optimizer, build_schedule
from graft.transforms import normalise


class Classifier(pl.LightningModule):
    """Backbone and head, whichever of them trains.

    A batch is (inputs, labels int64 [B]); inputs are images, uint8 [B, S, S, 3], or features that
    the same backbone gave for them, float32 [B, D]. Every argument is a plain value, so that a
    checkpoint loads with `weights_only` and says all there is to say.

    Args:
        backbone: torchvision model name.
        num_classes: C.
        hidden: width of the head's hidden layer.
        mean: per channel, of pixels in 0..1.
        std: likewise.
        weights: where the backbone's weights came from; read again when a checkpoint without them is loaded.
        unfreeze: `head`, `all`, or a part of the backbone.
        algorithm: `adam` or `adamw`.
        lr: learning rate of the head.
        weight_decay: of the optimiser.
        label_smoothing: in 0..1.
        clip_norm: longest gradient (L2) of all that trains together; None for any.
        schedule: `constant` or `cosine`.
        backbone_lr_factor: learning rate of unfrozen parts, as a factor of `lr`.
        class_weights: weight of each class in the loss, [C]; None for equal weights.
        seed: of the initialisation.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        hidden: int = 512,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        weights: str = "none",
        unfreeze: str = "head",
        algorithm: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        label_smoothing: float = 0.0,
        clip_norm: float | None = None,
        schedule: str = "constant",
        backbone_lr_factor: float = 0.1,
        class_weights: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = build_backbone(backbone, weights=weights, seed=seed)
        self.backbone_fingerprint = fingerprint(self.backbone)  # of the weights as they were loaded
        self.head = build_head(feature_width(self.backbone), hidden, num_classes, seed=seed)
        freeze(self.backbone, unfreeze)
        set_modes(self.backbone, unfreeze)
        self.loss_weights: torch.Tensor | None
        self.register_buffer("loss_weights", None if class_weights is None else torch.tensor(class_weights))
        self.valid_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.valid_loss = MeanMetric(nan_strategy="disable")  # by default it leaves out what is not a number

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, S, S, 3] -> logits float32 [B, C]."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Features float32 [B, D] of images, uint8 [B, S, S, 3], on any device; features stay what they are."""
        inputs = inputs.to(self.device)
        if inputs.dtype != torch.uint8:
            return inputs
        found: torch.Tensor = self.backbone(normalise(inputs, self.hparams["mean"], self.hparams["std"]))
        return found

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits float32 [B, C] of images, uint8 [B, S, S, 3], or of features, float32 [B, D], on any device."""
        logits: torch.Tensor = self.head(self.features(inputs))
        return logits

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        """Cross-entropy, weighted and smoothed as configured; the mean over the batch of all processes."""
        inputs, labels = batch
        total = self._batch_weight(labels)
        if len(labels):
            options = {"weight": self.loss_weights, "label_smoothing": self.hparams["label_smoothing"]}
            loss = functional.cross_entropy(self.logits(inputs), labels, reduction="sum", **options) / total
        elif self.device.type == "cuda":
            # A short batch left this process no photo: it takes part with a gradient of zero, and in the statistics
            # that BatchNorm gathers from all GPUs, for which the others wait.
            loss = self.logits(inputs).sum() * 0
        else:  # torch's BatchNorm refuses no photos on a CPU, where nothing is gathered
            loss = torch.stack([p.sum() * 0 for p in self.parameters() if p.requires_grad]).sum()
        self.log("train/loss", loss, on_step=True, on_epoch=False, prog_bar=True, sync_dist=self._is_one_of_several())
        return loss

    def _batch_weight(self, labels: torch.Tensor) -> torch.Tensor:
        """The weight of a batch's photos; of several processes, the mean, for their gradients are averaged too."""
        weights = torch.ones(len(labels), device=self.device)
        if self.loss_weights is not None:
            weights = self.loss_weights[labels]
        total = weights.sum()
        if self._is_one_of_several():
            total = self.trainer.strategy.reduce(total, reduce_op="mean")
        return total

    def _is_one_of_several(self) -> bool:
        return self._trainer is not None and self._trainer.world_size > 1

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> dict[str, torch.Tensor] | None:
        """Plain cross-entropy, so that runs with other weights or smoothing compare.

        Returns:
            `logits` [B, C] and `losses` [B], for callbacks; None where this process has no photo of the batch.
        """
        inputs, labels = batch
        answers = None
        if len(labels):
            logits = self.logits(inputs)
            losses = functional.cross_entropy(logits, labels, reduction="none")
            self.valid_accuracy.update(logits, labels)
            self.valid_loss.update(losses)
            answers = {"logits": logits, "losses": losses}
        self.log("valid/loss", self.valid_loss, prog_bar=True)
        self.log("valid/accuracy", self.valid_accuracy, prog_bar=True)
        return answers

    def on_train_batch_start(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        """Dropout draws from (seed, step, process) alone, so that a resumed run drops what the whole one did."""
        if self.hparams["unfreeze"] != "head":
            seeds = np.random.SeedSequence([self.hparams["seed"], self.global_step, self.global_rank])
            torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))

    def on_train_epoch_start(self) -> None:
        """Frozen parts in eval mode: `requires_grad` alone leaves BatchNorm's statistics moving."""
        set_modes(self.backbone, self.hparams["unfreeze"])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Shorten a long gradient; Lightning's own clipping refuses a fused optimiser in bf16."""
        if self.hparams["clip_norm"] is not None:
            trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
            torch.nn.utils.clip_grad_norm_(trained, self.hparams["clip_norm"])

    def configure_optimizers(self) -> Any:
        """One optimiser over what trains, and the schedule where there is one."""
        h = self.hparams
        optimizer = build_optimizer(
            list(self.head.parameters()),
            [parameter for parameter in self.backbone.parameters() if parameter.requires_grad],
            algorithm=h["algorithm"],
            lr=h["lr"],
            weight_decay=h["weight_decay"],
            backbone_lr_factor=h["backbone_lr_factor"],
        )
        if h["schedule"] == "constant":
            return optimizer
        schedule = build_schedule(optimizer, schedule=h["schedule"], total_steps=self._total_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _total_steps(self) -> int:
        # Not trainer.estimated_stepping_batches: it starts the loader before a checkpoint has told it where
        # the interrupted epoch stood, and that epoch would begin again.
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        return batches * (self.trainer.max_epochs or 0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the weights that cannot have changed: 94 MB per epoch for a frozen ResNet-50."""
        if self.hparams["unfreeze"] == "head":
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("backbone.")}
            checkpoint["backbone_fingerprint"] = self.backbone_fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put back what `on_save_checkpoint` left out, from this model's own backbone.

        Raises:
            WeightsError: `weights` are no longer those that the checkpoint was made with.
        """
        if checkpoint.get("backbone_fingerprint", self.backbone_fingerprint) != self.backbone_fingerprint:
            raise WeightsError(f"model.weights={self.hparams['weights']} changed since the checkpoint was written")
        own = {f"backbone.{name}": value for name, value in self.backbone.state_dict().items()}
        checkpoint["state_dict"] = {**own, **checkpoint["state_dict"]}
