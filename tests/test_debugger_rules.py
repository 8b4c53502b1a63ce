"""Each rule of the debugger: a record that triggers it, one at its threshold that does not, and what it tells."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from graft.config import knobs
from graft.debugger.judge import EXPLAINS, RULES, causes_first, judge
from graft.debugger.loss_rules import relative_noise, required_fall
from graft.debugger.records import TRAIN, Facts, Records
from graft.diagnosis import Finding
from graft.errors import ConfigError
from tests.recorded import EPOCH, FACTS, answered, recorded

CHANCE = math.log(FACTS.num_classes)
FALLING = np.linspace(1.3, 0.1, 100).tolist()
NAN = float("nan")


def at_the_end(loss: float, start: float = 20.0) -> list[float]:
    """A hundred steps: nine tenths as at the start, then another loss."""
    return [start] * 90 + [loss] * 10


def jagged(height: float) -> list[float]:
    """Sixty steps of a mean of one whose noise is `height`: neighbours differ by 2 d, which is noise of d sqrt(2)."""
    return [1 + sign * height / math.sqrt(2) for sign in (1, -1) * 30]


def norms(*values: float) -> list[dict[str, float]]:
    return [{"step": step, "gradient_norm": value} for step, value in enumerate(values)]


def fresh(*fan_ins: float) -> list[dict[str, object]]:
    """Layers of the head at the first step, their weights of a standard deviation of one."""
    return [{"step": 0, "layer": f"head.{n}", "weight_std": 1.0, "fan_in": f} for n, f in enumerate(fan_ins)]


def weak_gradient(mean: float) -> list[dict[str, float]]:
    return [{"step": 0, "gradient_mean": mean, "gradient_norm": 1.0}]


def evaluated(answers: list[dict[str, Any]]) -> Records:
    """Answers of the only evaluation."""
    return recorded(valid=[1.0], answers=answers)


def early(count: int, suspected: int) -> Records:
    """Answers of training in the second epoch."""
    return recorded([1.0] * EPOCH, answers=answered(count, suspected=suspected, mode=TRAIN, step=EPOCH))


OVERFITTED = [1.0, 1.101, 1.101]
# Rule -> a record that it finds something in, and the same with its threshold met but not passed.
CASES: dict[str, list[tuple[Records, Records]]] = {
    "nan_or_inf": [
        (recorded([*FALLING, NAN]), recorded(FALLING)),
        (recorded(FALLING, [1.0, math.inf]), recorded(FALLING, [1.0, 1e300])),
        (recorded(FALLING, layers=norms(1, NAN)), recorded(FALLING, layers=norms(1, 1e300))),
        (
            recorded(FALLING, layers=[{"step": 4, "weight_std": math.inf}]),
            recorded(FALLING, layers=[{"step": 4, "weight_std": 1.0}]),
        ),
    ],
    "loss_increasing": [(recorded(at_the_end(21.001)), recorded(at_the_end(21.0)))],
    "loss_not_decreasing": [(recorded(at_the_end(99.01, 100.0)), recorded(at_the_end(99.0, 100.0)))],
    "noisy_loss": [(recorded(jagged(0.5001)), recorded(jagged(0.4999)))],
    "exploding_gradient": [(recorded(layers=norms(1, 10.001)), recorded(layers=norms(1, 10)))],
    "vanishing_gradient": [
        (recorded([CHANCE], layers=weak_gradient(0.99e-7)), recorded([CHANCE], layers=weak_gradient(1e-7))),
        (
            recorded([0.1001 * CHANCE], layers=weak_gradient(0.0)),
            recorded([0.1 * CHANCE], layers=weak_gradient(0.0)),
        ),
    ],
    "poor_weight_initialization": [
        (recorded([2.001 * CHANCE]), recorded([2 * CHANCE])),
        (recorded([CHANCE], layers=fresh(11, 1)), recorded([CHANCE], layers=fresh(10, 1))),
    ],
    "dead_relu": [(recorded(relus=[{"step": 5, "dead": 0.901}]), recorded(relus=[{"step": 5, "dead": 0.9}]))],
    "overfit": [
        (recorded(FALLING[:30], OVERFITTED), recorded(FALLING[:30], [1.0, 1.1, 1.1])),
        (recorded(FALLING[:30], OVERFITTED), recorded(FALLING[:30], [1.0, 1.0, 1.2])),
        (recorded(FALLING[:30], OVERFITTED), recorded([1.0] * 30, OVERFITTED)),
        (recorded(FALLING[:40], [*OVERFITTED, 1.2]), recorded(FALLING[:40], [*OVERFITTED, 1.0])),
    ],
    "overtraining": [
        (recorded(valid=[2.0, 1.0] + [1.0] * 6), recorded(valid=[2.0, 1.0] + [1.0] * 5)),
        (recorded(valid=[2.0] + [1.99] * 6), recorded(valid=[2.0] + [1.98] * 6)),
    ],
    "class_imbalance": [
        (recorded(labels=[1001, 100]), recorded(labels=[1000, 100])),
        (recorded(labels=[460, 40]), recorded(labels=[459, 40])),
        (recorded(labels=[1001, 100]), recorded(labels=[1001, 100], facts=replace(FACTS, weighted=True))),
    ],
    "label_noise_suspected": [
        (evaluated(answered(400, suspected=21)), evaluated(answered(400, suspected=20))),
        (evaluated(answered(200, suspected=50)), evaluated(answered(199, suspected=50))),
        (
            evaluated(answered(200, suspected=20, wrong=80)),
            evaluated(answered(200, suspected=20, wrong=81)),
        ),
        (early(400, suspected=21), early(400, suspected=20)),
    ],
}  # fmt: skip
PAIRS = [pytest.param(name, *pair, id=f"{name}-{n}") for name, pairs in CASES.items() for n, pair in enumerate(pairs)]


def test_every_rule_of_the_issue_is_there_and_has_its_cases() -> None:
    assert set(CASES) == set(RULES)
    assert len(RULES) == 12


@pytest.mark.parametrize(("name", "bad", "good"), PAIRS)
def test_a_rule_finds_what_is_beyond_its_threshold_alone(name: str, bad: Records, good: Records) -> None:
    found = RULES[name].look(bad)
    assert found.finding is not None
    assert found.finding.rule == name
    assert found.triggered > 0
    assert found.points > 0
    assert RULES[name].look(good).finding is None


@pytest.mark.parametrize(("name", "bad", "good"), PAIRS)
def test_a_finding_tells_all_that_a_person_needs(name: str, bad: Records, good: Records) -> None:
    finding = RULES[name].look(bad).finding
    assert finding is not None
    assert finding.seen
    assert len(finding.why) > 20
    assert finding.key in knobs()
    assert finding.key in finding.change
    assert finding.since_step is not None


@pytest.mark.parametrize("name", sorted(RULES))
def test_nothing_recorded_is_nothing_found(name: str) -> None:
    verdict = RULES[name].look(recorded())
    assert (verdict.points, verdict.triggered, verdict.finding) == (0, 0, None)


def test_the_first_step_of_a_finding_is_the_first_bad_one() -> None:
    found = {name: RULES[name].look(pairs[0][0]).finding for name, pairs in CASES.items()}
    since = {name: finding.since_step for name, finding in found.items() if finding}
    assert since == {
        "nan_or_inf": 100,
        "loss_increasing": 0,
        "loss_not_decreasing": 0,
        "noisy_loss": 20,
        "exploding_gradient": 1,
        "vanishing_gradient": 0,
        "poor_weight_initialization": 0,
        "dead_relu": 5,
        "overfit": 20,
        "overtraining": 20,
        "class_imbalance": 0,
        "label_noise_suspected": 0,
    }


def test_an_explosion_is_to_be_clipped_unless_it_was() -> None:
    def found(facts: Facts) -> Finding:
        finding = RULES["exploding_gradient"].look(recorded(layers=norms(1, 3, 30), facts=facts)).finding
        assert finding is not None
        return finding

    # 15 times the mean of 1 and 3; four times that mean is where to clip
    assert found(FACTS).change == "optim.clip_norm=8, or optim.lr=0.001"
    clipped = found(replace(FACTS, clipped=True))
    assert (clipped.change, clipped.key) == ("optim.lr=0.001", "optim.lr")
    assert (
        clipped.seen == "the norm of the gradient was 30, 15 times its mean before, until optim.clip_norm shortened it"
    )


def test_noise_is_that_of_a_loss_about_its_trend() -> None:
    rng = np.random.default_rng(0)
    trend = np.linspace(4, 2, 2000)
    assert relative_noise(trend)[1].max() < 0.001
    noisy = trend * (1 + 0.2 * rng.normal(size=2000))
    assert np.median(relative_noise(noisy)[1]) == pytest.approx(0.2, rel=0.05)


def test_noise_is_judged_while_there_is_much_to_learn() -> None:
    learnt = [0.05 * loss for loss in jagged(0.9)]
    assert RULES["noisy_loss"].look(recorded([1.0] * 60 + learnt)).finding is None
    assert RULES["noisy_loss"].look(recorded(jagged(0.9) + learnt * 5)).finding is not None


def test_a_larger_batch_is_predicted_by_the_square_root() -> None:
    finding = RULES["noisy_loss"].look(recorded(jagged(1.0), facts=replace(FACTS, batch_size=2))).finding
    assert finding is not None
    # noise 1.0 to at most 0.25 takes 16 times the photos
    assert finding.change == "data.batch_size=32"
    assert "25% instead of 100%, in 16 times fewer steps" in finding.gain


def test_a_long_run_need_not_fall_for_ever() -> None:
    assert required_fall(100) == 1.0
    assert required_fall(1000) == 10.0
    assert required_fall(100_000) == 10.0


def test_a_loss_that_jumps_up_by_chance_does_not_rise() -> None:
    rng = np.random.default_rng(1)
    loss = np.concatenate([rng.normal(20, 6, 90), rng.normal(21.5, 6, 10)])
    assert RULES["loss_increasing"].look(recorded(loss.tolist())).finding is None


def test_overtraining_tells_what_stopping_would_have_saved() -> None:
    finding = RULES["overtraining"].look(recorded(valid=[2.0, 1.0] + [1.0] * 6)).finding
    assert finding is not None
    assert finding.change.startswith("trainer.max_epochs=2,")
    assert finding.gain == "60 of 80 steps less: 75% of the training"


def test_evaluations_weigh_their_batches() -> None:
    records = recorded(valid=[1.0, 3.0])
    losses = dict(records.tables["losses"])
    losses["global_step"] = np.array([10, 10])
    losses["photos"] = np.array([30, 10])
    steps, value = Records(FACTS, {"losses": losses}).evaluations()
    assert (steps.tolist(), value.tolist()) == ([10], [1.5])


def test_a_model_that_knows_nothing_is_not_asked_about_labels() -> None:
    ignorant = evaluated(answered(400, suspected=300))
    assert RULES["label_noise_suspected"].look(ignorant).points == 0


def test_honest_mistakes_are_no_wrong_labels() -> None:
    assert RULES["label_noise_suspected"].look(evaluated(answered(400, wrong=190))).finding is None


def test_labels_are_judged_by_the_best_evaluation() -> None:
    answers = [*answered(400, suspected=10), *answered(400, suspected=100, global_step=2 * EPOCH)]
    assert RULES["label_noise_suspected"].look(recorded(valid=[1.0, 1.1], answers=answers)).finding is None
    assert RULES["label_noise_suspected"].look(recorded(valid=[1.0, 0.9], answers=answers)).finding is not None


def test_who_suffers_from_imbalance_is_told() -> None:
    answers = [*answered(90, wrong=9), *({"label": 1, "guess": 0, "global_step": EPOCH},) * 10]
    finding = RULES["class_imbalance"].look(recorded(valid=[1.0], labels=[2000, 100], answers=answers)).finding
    assert finding is not None
    assert "wrong in 100% of their validation photos against 10%" in finding.seen


def named(*rules: str) -> list[Finding]:
    return [Finding(rule, "seen", "why", "change") for rule in rules]


def test_a_cause_takes_its_symptoms_under_it() -> None:
    found = causes_first(named("nan_or_inf", "exploding_gradient", "class_imbalance", "noisy_loss", "overfit"))
    assert [(f.rule, [s.rule for s in f.symptoms]) for f in found] == [
        ("nan_or_inf", ["exploding_gradient", "noisy_loss"]),
        ("class_imbalance", []),
        ("overfit", []),
    ]


def test_causes_come_before_what_they_explain() -> None:
    order = list(RULES)
    for cause, symptoms in EXPLAINS.items():
        assert all(order.index(cause) < order.index(symptom) for symptom in symptoms), cause


def test_the_summary_has_a_row_for_each_rule() -> None:
    diagnosis = judge(recorded(at_the_end(99.01, 100.0)))
    assert [row.rule for row in diagnosis.rules] == list(RULES)
    row = next(row for row in diagnosis.rules if row.rule == "loss_not_decreasing")
    assert (row.triggered, row.points, row.parameters["num_steps"]) == (1, 100, 10)


def test_one_rule_alone_can_be_asked() -> None:
    assert [row.rule for row in judge(recorded(FALLING), ["overfit"]).rules] == ["overfit"]
    with pytest.raises(ConfigError, match=r"--rule overfitt: there is no such rule; accepted: nan_or_inf, .*"):
        judge(recorded(FALLING), ["overfitt"])
