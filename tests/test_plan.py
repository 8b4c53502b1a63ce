"""What a plan says: minutes and dollars by hand, the budget, and that it needs no network and no torch."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from graft.config import Config, SearchBackend, changed
from graft.errors import ConfigError
from graft.launcher.calibration import Calibration, look_seconds
from graft.launcher.job import Entry
from graft.launcher.plan import (
    Others,
    check_budget,
    job_seconds,
    limits_of,
    make_plan,
    search_minutes,
)
from graft.launcher.plan_text import compare_backends, describe
from graft.launcher.planned import note_planned, tell_planned, together
from graft.launcher.prices import Machine, Prices, machines_of, read_prices
from graft.launcher.requests import Limits
from tests.composing import ROOT, composed

PRICES = Prices("2026-01-02", "us-east-1", "a test", {"ml.g4dn.xlarge": Machine(0.72, 4, 1)})
CORE = Calibration("2026-01-01", "a processor", 2, decoded_per_s=100.0, gflops=50.0)


def in_cloud(*more: str) -> Config:
    return composed("data=folder", "data.root=s3://b/photos", "data.images=1000", "trainer=sagemaker_gpu", *more)


def test_cores_decode_while_the_gpu_computes() -> None:
    # Decoding: 1 / (100 x 4) s, half to twice; 2 x 4.09 GFLOP at 2,000 to 4,000 GFLOP/s.
    found = look_seconds(CORE, Machine(1.0, 4, 1), "g4dn", "resnet50")
    assert [*found] == pytest.approx([8.18 / 4000, 0.005])
    # Without a GPU one comes after the other: 8.18 GFLOP at 4 x 50 GFLOP/s, half to twice.
    found = look_seconds(CORE, Machine(1.0, 4, 0), "c5", "resnet50")
    assert [*found] == pytest.approx([0.00125 + 0.02045, 0.005 + 0.0818])


def test_seconds_of_a_job_by_hand() -> None:
    # start 90, copies 1000 x 0.002, looks 1000 x 2.045 ms, head 1000 x 8 epochs x 0.01 ms, end 20
    low = 90 + 2 + 2.045 + 0.08 + 20
    # start 420, copies 12, looks 1000 x 5 ms, head 0.8, end 90
    high = 420 + 12 + 5 + 0.8 + 90
    found = job_seconds(in_cloud(), 1, CORE, PRICES.machines["ml.g4dn.xlarge"])
    assert [*found] == pytest.approx([low, high])


def test_an_unfrozen_backbone_looks_at_every_photo_in_every_epoch() -> None:
    machine = PRICES.machines["ml.g4dn.xlarge"]
    frozen = job_seconds(in_cloud(), 1, CORE, machine)
    free = job_seconds(in_cloud("model.unfreeze=layer4"), 1, CORE, machine)
    assert free.high - frozen.high == pytest.approx(3 * 8 * 1000 * 0.005 - 0.8)


def test_dollars_are_minutes_times_jobs_times_price() -> None:
    plan = make_plan(in_cloud(), Entry.train, 1, PRICES, CORE, "us-east-1")
    assert plan.usd is not None
    assert [*plan.usd] == pytest.approx([114.125 / 3600 * 0.72, 527.8 / 3600 * 0.72])
    many = make_plan(in_cloud("search.backend=tuning_job"), Entry.tune, 8, PRICES, CORE, "us-east-1")
    assert (many.jobs, many.parallel) == (8, 2)
    assert many.usd is not None
    assert many.usd.high == pytest.approx(8 * 527.8 / 3600 * 0.72)
    assert many.minutes.high == pytest.approx(4 * 527.8 / 60)


def test_both_backends_and_their_difference_are_one_sentence() -> None:
    config = in_cloud()
    one = make_plan(config, Entry.tune, 8, PRICES, CORE, None)
    many = make_plan(changed(config, {"search.backend": "tuning_job"}), Entry.tune, 8, PRICES, CORE, None)
    assert compare_backends(one, many, SearchBackend.one_job) == (
        "both: search.backend=one_job (chosen) $0.02 .. $0.11 in 2 .. 9 minutes; search.backend=tuning_job "
        "$0.18 .. $0.84 in 8 .. 35 minutes: 8 jobs, each with a start and a look at the photos of its own, cost "
        "$0.16 .. $0.74 more"
    )


def test_a_price_that_is_not_known_is_said_to_be_unknown() -> None:
    config = in_cloud()
    plan = make_plan(config, Entry.train, 1, PRICES, CORE, "eu-central-1")
    assert plan.usd is None
    lines = list(describe(plan, config, PRICES, "eu-central-1"))
    assert (
        "dollars: unknown: no price of ml.g4dn.xlarge in eu-central-1 here; in us-east-1 it is $0.72 an hour (prices "
        "of 2026-01-02); `python -m graft.launcher prices eu-central-1` reads AWS's list"
    ) in lines
    with pytest.raises(ConfigError, match=r"budget\.usd=5: the price of ml\.g4dn\.xlarge there is not known"):
        check_budget(plan, changed(config, {"budget.usd": 5}))


def test_a_plan_states_its_price_table_and_its_assumptions() -> None:
    config = composed("trainer=sagemaker_gpu")
    text = "\n".join(describe(make_plan(config, Entry.train, 1, PRICES, CORE, None), config, PRICES, None))
    assert "at $0.72 an hour (us-east-1, prices of 2026-01-02, a test)" in text
    assert "assumed: 8,351 photos, as the dogs have; data.images=N says how many yours are" in text
    assert "ends by itself: after 4 h, $2.88 (launcher.max_hours)" in text


def test_gpus_that_are_paid_for_and_not_used_are_told() -> None:
    prices = Prices("2026-01-02", "us-east-1", "a test", {"ml.g4dn.12xlarge": Machine(4.89, 48, 4)})
    one, four = (in_cloud("launcher.instance_type=ml.g4dn.12xlarge", f"trainer.devices={n}") for n in (1, 4))
    plan = make_plan(one, Entry.train, 1, prices, CORE, None)
    assert "1 of the machine's 4 GPUs (trainer.devices=4 uses all)" in plan.assumptions
    assert plan.job_minutes.high > make_plan(four, Entry.train, 1, prices, CORE, None).job_minutes.high


def test_a_budget_refuses_with_the_sum_and_ends_jobs() -> None:
    config = in_cloud("budget.usd=0.01")
    plan = make_plan(config, Entry.train, 1, PRICES, CORE, None)
    with pytest.raises(ConfigError) as caught:
        check_budget(plan, config)
    assert str(caught.value).startswith(
        "budget.usd=0.01: this may cost $0.11 ($0.02 .. $0.11); accepted is budget.usd=0.11 or more"
    )
    check_budget(plan, in_cloud("budget.usd=0.2"))
    with pytest.raises(ConfigError, match=r"this may cost \$0\.26, 0\.15 of it for other jobs of this run or sweep"):
        check_budget(plan, in_cloud("budget.usd=0.2"), spent=0.15)
    # $0.18 are a quarter of an hour of one machine, and half of that where two run at a time.
    two = replace(plan, jobs=8, parallel=2)
    assert limits_of(two, in_cloud("budget.usd=0.18")) == Limits(900, 450)
    assert limits_of(two, in_cloud("budget.usd=0.36"), Others(0.18)) == Limits(900, 450)
    assert limits_of(plan, in_cloud("budget.usd=100")) == Limits(14_400, 500_000)


def test_a_job_of_a_sweep_is_ended_at_its_share_or_at_what_it_is_planned_to_cost() -> None:
    config = in_cloud("budget.usd=0.9")
    plan = make_plan(config, Entry.train, 1, PRICES, CORE, None)  # 528 s, $0.11
    assert limits_of(plan, config, Others(0.18, to_come=2)).seconds == 1800  # half of $0.72
    assert limits_of(plan, config, Others(0.78, to_come=2)).seconds == 527  # a share would be 300 s
    assert limits_of(plan, config, Others(0.18, to_come=None)).seconds == 527
    assert limits_of(plan, config, Others(0.88, to_come=2)).seconds == 100  # what is left


def test_a_search_ends_before_its_job_is_ended() -> None:
    config = in_cloud("budget.usd=0.36")  # 1800 s
    plan = make_plan(config, Entry.tune, 8, PRICES, CORE, None)
    # Beside the trials: start 420, copies 1000 x 0.012, end 90.
    assert search_minutes(plan, config) == pytest.approx((1800 - 522) / 60)
    assert search_minutes(plan, changed(config, {"search.max_minutes": 3})) == 3
    assert search_minutes(replace(plan, limits=Limits(400)), config) == 1


def test_a_tuning_job_is_ended_after_the_minutes_of_the_search() -> None:
    config = in_cloud("search.backend=tuning_job", "search.max_minutes=7.5")
    plan = make_plan(config, Entry.tune, 8, PRICES, CORE, None)
    assert plan.limits == Limits(14_400, 450)
    assert limits_of(plan, changed(config, {"budget.usd": 1.8})) == Limits(9000, 450)
    assert limits_of(plan, changed(config, {"budget.usd": 0.09})) == Limits(450, 225)


def test_what_all_jobs_cost_at_most_is_what_their_limits_allow() -> None:
    many = make_plan(in_cloud("search.backend=tuning_job"), Entry.tune, 8, PRICES, CORE, None)
    assert replace(many, limits=Limits(900)).most_usd == pytest.approx(8 * 0.18)
    assert replace(many, limits=Limits(900, 450)).most_usd == pytest.approx(2 * 0.09)
    one = make_plan(in_cloud("trainer.num_nodes=3"), Entry.train, 1, PRICES, CORE, None)
    assert replace(one, limits=Limits(900, 900)).most_usd == pytest.approx(3 * 0.18)
    assert replace(one, usd_per_hour=None).most_usd is None


def test_all_lives_of_a_spot_job_stay_within_the_budget() -> None:
    # AWS counts MaxRuntimeInSeconds anew after an interruption; MaxWaitTimeInSeconds bounds all lives and the waiting.
    config = in_cloud("launcher.spot=true", "launcher.max_hours=1")
    plan = make_plan(config, Entry.train, 1, PRICES, CORE, None)
    assert plan.limits == Limits(3600, None, 3600 + 86_400)
    assert plan.most_usd == pytest.approx(25 * 0.72)
    tight, wide = (changed(config, {"budget.usd": usd}) for usd in (0.18, 1.8))
    assert limits_of(plan, tight) == Limits(900, 900, 900)
    assert limits_of(plan, wide) == Limits(3600, 9000, 9000)
    assert limits_of(plan, changed(config, {"budget.usd": 100})).spot_seconds == 3600 + 86_400
    assert replace(plan, limits=limits_of(plan, wide)).most_usd == pytest.approx(1.8)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            (),
            "after 25 h, $18.00 at most, waiting and interruptions included (launcher.max_hours and a day); each of "
            "its lives after 1 h (launcher.max_hours)",
        ),
        (("budget.usd=0.18",), "after 0.25 h, $0.18 at most, waiting and interruptions included (budget.usd)"),
        (
            ("budget.usd=1.8",),
            "after 2.5 h, $1.80 at most, waiting and interruptions included (budget.usd); each of its lives after 1 h "
            "(launcher.max_hours)",
        ),
    ],
)
def test_a_plan_says_when_a_spot_job_ends(more: tuple[str, ...], told: str) -> None:
    config = in_cloud("launcher.spot=true", "launcher.max_hours=1", *more)
    lines = list(describe(make_plan(config, Entry.train, 1, PRICES, CORE, None), config, PRICES, None))
    assert f"ends by itself: {told}" in lines
    waits = "assumed: with budget.usd, waiting counts towards the end: an interruption starts a job's own clock again"
    assert (waits in lines) == bool(more)


def test_the_jobs_of_a_sweep_are_summed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = in_cloud("launcher.max_parallel=3")
    plan = make_plan(config, Entry.train, 1, PRICES, CORE, None)  # $0.022825 .. $0.10556, 1.902 .. 8.797 minutes
    for _ in range(4):
        note_planned(tmp_path, plan, config)
    tell_planned(tmp_path)
    assert capsys.readouterr().out == (
        "in all: 4 jobs, $0.09 .. $0.42, 8 .. 35 minutes of jobs, at most 3 at a time (launcher.max_parallel)\n"
    )
    tell_planned(tmp_path)
    assert capsys.readouterr().out == ""
    unknown = make_plan(config, Entry.train, 1, PRICES, CORE, "mars-1")
    assert together([plan, unknown], 2).startswith("in all: 2 jobs, at an unknown price, 4 .. 18 minutes of jobs")


def test_a_sweep_above_the_budget_is_refused_with_its_sum(tmp_path: Path) -> None:
    config = in_cloud("budget.usd=0.2")
    for _ in range(2):
        note_planned(tmp_path, make_plan(config, Entry.train, 1, PRICES, CORE, None), config)
    with pytest.raises(ConfigError, match=r"budget\.usd=0\.2: this may cost \$0\.21, 0\.11 of it for other jobs"):
        tell_planned(tmp_path)


def test_the_shipped_table_is_dated_and_knows_the_original_machine(tmp_path: Path) -> None:
    prices = read_prices(tmp_path, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", prices.date)
    assert prices.of("ml.g4dn.xlarge", "us-east-1") == 0.7364
    assert prices.of("ml.g4dn.xlarge", "eu-west-1") is None
    assert prices.of("ml.m5.large", None) == 0.115


def test_an_entry_of_the_price_list_is_read() -> None:
    product = {
        "product": {"attributes": {"instanceName": "ml.g4dn.xlarge-Training", "vCpu": "4", "gpu": "1"}},
        "terms": {"OnDemand": {"a": {"priceDimensions": {"b": {"unit": "Hrs", "pricePerUnit": {"USD": "0.7364"}}}}}},
    }
    assert list(machines_of(product)) == [("ml.g4dn.xlarge", Machine(0.7364, 4, 1))]
    assert list(machines_of({"product": {"attributes": {}}})) == []


BLOCKED = """
import runpy, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("a plan opened a socket")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    heavy = {"torch", "pytorch_lightning", "sagemaker", "boto3", "optuna", "openvino"} & set(sys.modules)
    print("LOADED", sorted(heavy))
"""


@pytest.mark.parametrize("script", ["train.py", "tune.py"])
def test_a_plan_opens_no_socket_and_loads_no_torch(tmp_path: Path, script: str) -> None:
    command = [sys.executable, "-c", BLOCKED, str(ROOT / script), "trainer=sagemaker_gpu", "launcher.plan=true"]
    env = {"PYTHONPATH": str(ROOT / "src"), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("plan: 1 training job, 1 x ml.g4dn.xlarge, on demand, in us-east-1\n")
    assert done.stdout.endswith("LOADED []\n")
    assert ("search.backend=tuning_job $" in done.stdout) == (script == "tune.py")
    assert list(tmp_path.iterdir()) == []


def test_a_planned_sweep_ends_with_its_sum(tmp_path: Path) -> None:
    sweep = ["-m", "trainer=sagemaker_gpu", "launcher.plan=true", "optim.lr=0.001,0.003,0.01"]
    env = {"PYTHONPATH": str(ROOT / "src"), "PATH": "", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", BLOCKED, str(ROOT / "train.py"), *sweep]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert sum(line.startswith("plan: 1 training job") for line in lines) == 3
    assert re.fullmatch(
        r"in all: 3 jobs, \$\d+\.\d\d \.\. \$\d+\.\d\d, \d+ \.\. \d+ minutes of jobs, at most 2 at a time "
        r"\(launcher\.max_parallel\)",
        lines[-2],
    )
    assert lines[-1] == "LOADED []"
