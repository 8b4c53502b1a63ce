"""optim.py against steps worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from graft.errors import ConfigError
from graft.optim import build_optimizer, build_schedule


def parameter(value: float, *, gradient: float = 0.0, trains: bool = True) -> nn.Parameter:
    made = nn.Parameter(torch.tensor([value]), requires_grad=trains)
    made.grad = torch.tensor([gradient]) if trains else None
    return made


def optimizer(
    head: list[nn.Parameter],
    backbone: list[nn.Parameter] | None = None,
    *,
    algorithm: str = "adam",
    lr: float = 0.1,
    weight_decay: float = 0.0,
    backbone_lr_factor: float = 0.1,
) -> torch.optim.Optimizer:
    return build_optimizer(
        head,
        backbone or [],
        algorithm=algorithm,
        lr=lr,
        weight_decay=weight_decay,
        backbone_lr_factor=backbone_lr_factor,
    )


@pytest.mark.parametrize("algorithm", ["adam", "adamw"])
def test_first_step_is_lr_against_the_gradients_sign(algorithm: str) -> None:
    """Adam's first step is lr * g / |g| whatever the gradient's size (Kingma and Ba, section 2.1)."""
    head, backbone = parameter(1.0, gradient=3.0), parameter(1.0, gradient=-0.02)
    optimizer([head], [backbone], algorithm=algorithm, backbone_lr_factor=0.2).step()
    assert head.item() == pytest.approx(0.9)
    assert backbone.item() == pytest.approx(1.02)


def test_adam_decays_through_the_gradient_and_adamw_by_lr_times_decay() -> None:
    coupled, decoupled = parameter(2.0), parameter(2.0)
    optimizer([coupled], algorithm="adam", weight_decay=0.5).step()
    optimizer([decoupled], algorithm="adamw", weight_decay=0.5).step()
    assert coupled.item() == pytest.approx(1.9)  # the decay is all of the gradient: a step of lr
    assert decoupled.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5))


def test_frozen_parameters_are_in_no_group() -> None:
    head, open_, frozen = parameter(1.0), parameter(1.0), parameter(1.0, trains=False)
    groups = optimizer([head], [frozen, open_]).param_groups
    assert [(group["name"], group["params"], group["lr"]) for group in groups] == [
        ("head", [head], 0.1),
        ("backbone", [open_], pytest.approx(0.01)),
    ]
    assert [group["name"] for group in optimizer([head], [frozen]).param_groups] == ["head"]


def test_cosine_goes_from_lr_to_zero_in_all_groups() -> None:
    built = optimizer([parameter(1.0)], [parameter(1.0)], lr=0.2, backbone_lr_factor=0.5)
    schedule = build_schedule(built, schedule="cosine", total_steps=8)
    assert schedule is not None
    for step in range(9):
        expected = 0.2 * (1 + math.cos(math.pi * step / 8)) / 2
        assert schedule.get_last_lr() == pytest.approx([expected, expected / 2], abs=1e-9)
        built.step()
        schedule.step()


def test_constant_is_no_schedule() -> None:
    assert build_schedule(optimizer([parameter(1.0)]), schedule="constant", total_steps=8) is None


def test_cosine_resumes_where_it_was() -> None:
    built = optimizer([parameter(1.0)])
    schedule = build_schedule(built, schedule="cosine", total_steps=4)
    assert schedule is not None
    built.step()
    schedule.step()
    again = optimizer([parameter(1.0)])
    resumed = build_schedule(again, schedule="cosine", total_steps=4)
    assert resumed is not None
    again.load_state_dict(built.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    again.step()
    resumed.step()
    assert resumed.get_last_lr() == pytest.approx([0.05])  # half-way


def test_other_words_are_refused_with_those_accepted() -> None:
    with pytest.raises(ConfigError) as error:
        optimizer([parameter(1.0)], algorithm="sgd")
    assert str(error.value) == "optim.algorithm=sgd: accepted: adam, adamw"
    with pytest.raises(ConfigError) as error:
        build_schedule(optimizer([parameter(1.0)]), schedule="linear", total_steps=1)
    assert str(error.value) == "optim.schedule=linear: accepted: constant, cosine"
