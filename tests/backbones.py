"""A backbone small enough for tests that are not about backbones."""

from __future__ import annotations

import torch
from torch import nn

from graft.model import Features

WIDTH = 6


def tiny_backbone(seed: int = 0) -> nn.Sequential:
    """One convolution with BatchNorm, frozen, in eval mode: float32 [B, 3, S, S] -> float32 [B, WIDTH]."""
    backbone = nn.Sequential(
        nn.Conv2d(3, WIDTH, 5, stride=3, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        Features("tiny", WIDTH),
    )
    scramble(backbone, seed)
    return backbone.eval().requires_grad_(False)


def scramble(module: nn.Module, seed: int) -> None:
    """Fill weights and BatchNorm's statistics, which a fresh module has at 0 and 1, from a seed."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, generator=generator)
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(part.bias, 0, 0.2, generator=generator)
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.2, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
