"""`python -m graft.launcher`: follow, stop, list, prices, and what they refuse."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from graft.errors import CloudError, ConfigError, RunError
from graft.launcher.__main__ import main
from graft.launcher.listing import Listed, cost, in_words, list_jobs, listed
from graft.launcher.prices import Machine, Prices, read_prices, renew_prices
from graft.launcher.ticket import Ticket, read_ticket, write_ticket
from tests.aws.listing import paged
from tests.s3server import CREDENTIALS, forget_account
from tests.scripted import ABSENT, DENIED, Answer, Script, training

JOB = Ticket(
    "graft-1", "training", "train", "us-east-1", "s3://b/j", "s3://b/j/checkpoints/run", "ml.m5.large", 1, 0.36
)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    forget_account(monkeypatch)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return Script(monkeypatch)


def submitted(run_dir: Path, **more: Any) -> None:
    write_ticket(run_dir, Ticket(**{**vars(JOB), "state": "submitted", **more}))


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        (["watch"], ConfigError, "watch is no command; accepted: follow, stop, list, policy, prices, calibrate"),
        (["follow"], ConfigError, "accepted: the run directory of a job, or of a sweep"),
        (["follow", "elsewhere"], RunError, "run_dir=elsewhere has no job.json: no job was submitted for it"),
        (["list"], ConfigError, "launcher.region=null: accepted is the name of a region, such as us-east-1"),
        (["policy", "who=me"], ConfigError, "who=me: accepted is user, role, trust"),
        (["prices"], ConfigError, "accepted: python -m graft.launcher prices REGION"),
    ],
)
def test_what_is_refused(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], error: type[Exception], message: str
) -> None:
    forget_account(monkeypatch)
    with pytest.raises(error) as caught:
        main(argv)
    assert str(caught.value) == message


def test_stop_ends_what_runs(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(tmp_path)
    script.answer("DescribeTrainingJob", training("InProgress"))
    script.answer("StopTrainingJob", (200, {}))
    main(["stop", str(tmp_path)])
    assert "graft-1 is being stopped; billing ends within minutes" in capsys.readouterr().err
    assert script.asked["StopTrainingJob"] == 1


def test_stop_leaves_what_has_ended(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(tmp_path)
    script.answer("DescribeTrainingJob", training("Completed"))
    main(["stop", str(tmp_path)])
    assert capsys.readouterr().err == "graft-1 has ended before: Completed\n"


def test_stop_takes_a_tuning_job(script: Script, tmp_path: Path) -> None:
    submitted(tmp_path, kind="tuning", entry="tune")
    described = {
        "HyperParameterTuningJobStatus": "InProgress",
        "HyperParameterTuningJobConfig": {"Strategy": "Random", "ResourceLimits": {"MaxParallelTrainingJobs": 1}},
    }
    script.answer("DescribeHyperParameterTuningJob", (200, described))
    script.answer("StopHyperParameterTuningJob", (200, {}))
    main(["stop", str(tmp_path)])
    assert script.asked["StopHyperParameterTuningJob"] == 1


def test_a_job_that_is_not_there_is_told(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(tmp_path)
    script.answer("DescribeTrainingJob", ABSENT)
    with pytest.raises(CloudError, match=r"not stopped, and billed where they run: graft-1; the same command"):
        main(["stop", str(tmp_path)])
    told = "error: job graft-1: refused (ValidationException: Requested resource not found)\n"
    assert capsys.readouterr().err == told


def test_a_sweep_is_stopped_past_a_job_that_cannot_be(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("graft-0", "graft-1", "graft-2")):
        submitted(tmp_path / str(number), name=name)
    script.answer("DescribeTrainingJob", training("InProgress"))
    script.answer("StopTrainingJob", (200, {}), DENIED, (200, {}))
    with pytest.raises(CloudError, match="not stopped, and billed where they run: graft-1;"):
        main(["stop", str(tmp_path)])
    err = capsys.readouterr().err
    assert "error: stopping graft-1: denied" in err
    assert [f"{name} is being stopped" in err for name in ("graft-0", "graft-1", "graft-2")] == [True, False, True]


@pytest.mark.parametrize("command", ["stop", "follow"])
def test_a_job_that_was_never_created_is_told_and_not_billed(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    submitted(tmp_path / "0", state="submitting")
    script.answer("DescribeTrainingJob", ABSENT)
    main([command, str(tmp_path)])
    assert (
        "job graft-1 was never created; what was sent stays in s3://b/j/ (S3 storage is billed); the same"
        in capsys.readouterr().err
    )
    ticket = read_ticket(tmp_path / "0")
    assert ticket is not None
    assert (ticket.state, ticket.reason, ticket.actual_usd) == ("Failed", "it was never created", 0.0)


def test_follow_goes_on_with_a_failed_job(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graft.launcher.cloud.fetch_run", lambda location, run_dir: 0)
    submitted(tmp_path)
    script.answer("DescribeTrainingJob", training("Failed", FailureReason="no photos", BillableTimeInSeconds=3600))
    script.answer("DescribeLogStreams", (200, {"logStreams": []}), service="logs")
    with pytest.raises(CloudError, match="job graft-1 failed: no photos"):
        main(["follow", f"run_dir={tmp_path}"])
    ticket = read_ticket(tmp_path)
    assert ticket is not None
    assert ticket.actual_usd == pytest.approx(0.36)


def summary(name: str, state: str, ago: float) -> dict[str, Any]:
    """An entry of ListTrainingJobs."""
    return {
        "TrainingJobName": name,
        "TrainingJobArn": "a" * 20,
        "TrainingJobStatus": state,
        "CreationTime": (datetime.now(UTC) - timedelta(seconds=ago)).timestamp(),
    }


def test_what_is_billed_is_listed_however_old_it_is(script: Script) -> None:
    def respond(request: dict[str, Any]) -> Answer:
        asked = [
            job for job in jobs if request.get("StatusEquals", job["TrainingJobStatus"]) == job["TrainingJobStatus"]
        ]
        return 200, paged("TrainingJobSummaries", asked, request)

    jobs = [summary(f"graft-{number}", "Completed", number) for number in range(60)]
    jobs += [summary(f"graft-running-{number}", "InProgress", 100 + number) for number in range(101)]
    jobs += [summary("graft-ending", "Stopping", 1000)]
    machines = {"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1}
    script.reply("ListTrainingJobs", respond)
    script.answer("ListHyperParameterTuningJobs", (200, {"HyperParameterTuningJobSummaries": []}))
    script.answer("DescribeTrainingJob", training("InProgress", ResourceConfig=machines))
    found = list_jobs("us-east-1")
    assert [job.name for job in found[:102]] == [f"graft-running-{number}" for number in range(101)] + ["graft-ending"]
    assert [job.name for job in found[102:]] == [f"graft-{number}" for number in range(50)]


def test_jobs_of_others_are_neither_asked_for_nor_listed(script: Script) -> None:
    def respond(request: dict[str, Any]) -> Answer:
        return 200, paged("TrainingJobSummaries", [job for job in jobs if "StatusEquals" not in request], request)

    # More of them than are asked for at once: ours are behind them.
    jobs = [summary(f"team-graft-{number}", "InProgress", number) for number in range(60)]
    jobs += [summary("graft-ours", "Completed", 100)]
    script.reply("ListTrainingJobs", respond)
    script.answer("ListHyperParameterTuningJobs", (200, {"HyperParameterTuningJobSummaries": []}))
    script.answer("DescribeTrainingJob", DENIED)
    assert [job.name for job in list_jobs("us-east-1")] == ["graft-ours"]


def test_list_shows_what_is_billed_first(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [summary("graft-old", "Completed", 10), summary("graft-new", "InProgress", 7200)]
    script.answer("ListTrainingJobs", (200, {"TrainingJobSummaries": jobs}))
    script.answer("ListHyperParameterTuningJobs", (200, {"HyperParameterTuningJobSummaries": []}))
    machines = {"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 1}
    script.answer("DescribeTrainingJob", training("InProgress", ResourceConfig=machines))
    main(["list", "features.cache_dir=nowhere"])
    out = capsys.readouterr().out
    assert out.index("graft-new") < out.index("graft-old")
    assert "$2.95" in out  # two hours of two machines
    assert "1 of 2 jobs are billed now; `python -m serve list` shows endpoints" in out


def test_ages_in_words() -> None:
    assert [in_words(seconds) for seconds in (300, 7200, 200_000)] == ["5 min", "2.0 h", "2.3 days"]


def test_a_job_without_a_price_says_so() -> None:
    prices = Prices("2026-01-01", "us-east-1", "a test", {})
    assert cost(Listed("a", "training", "InProgress", 1, 1, ("ml.x1.large", 1)), "us-east-1", prices) == (
        "no price of ml.x1.large"
    )
    assert cost(Listed("a", "tuning", "InProgress", 1, 1), "us-east-1", prices) == ""


def test_a_job_that_has_ended_ran_until_then() -> None:
    now = datetime.now(UTC)
    times = {"CreationTime": now - timedelta(hours=2), "TrainingEndTime": now - timedelta(hours=1)}
    assert listed("a", "training", "Completed", times, "TrainingEndTime").ran_s == pytest.approx(3600)


def product(name: str, usd: str) -> str:
    """An entry of AWS's price list."""
    price = {"unit": "Hrs", "pricePerUnit": {"USD": usd}}
    return json.dumps(
        {
            "product": {"attributes": {"instanceName": name, "vCpu": "4", "gpu": "1"}},
            "terms": {"OnDemand": {"a": {"priceDimensions": {"b": price}}}},
        }
    )


def price_list(script: Script, **by_component: list[str]) -> None:
    """Answer what is asked of a component of SageMaker with its entries."""

    def respond(request: dict[str, Any]) -> Answer:
        (component,) = (term["Value"] for term in request["Filters"] if term["Field"] == "component")
        return 200, {"PriceList": by_component.get(component, [])}

    script.reply("GetProducts", respond, service="pricing")


def test_prices_are_renewed_and_counted_by_plans(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Some machines only serve; where AWS lists both, training counts.
    serving = [product("ml.m5.large-Hosting", "0.13"), product("ml.g4dn.xlarge-Hosting", "0.95")]
    price_list(script, Training=[product("ml.g4dn.xlarge-Training", "0.92")], Hosting=serving)
    main(["prices", "eu-central-1"])
    assert capsys.readouterr().out.startswith("2 machines in eu-central-1 on ")
    prices = read_prices(tmp_path / "cache", "eu-central-1")
    machines = {"ml.g4dn.xlarge": Machine(0.92, 4, 1), "ml.m5.large": Machine(0.13, 4, 1)}
    assert (prices.region, prices.machines) == ("eu-central-1", machines)


def test_prices_of_one_region_hide_those_of_no_other(script: Script, tmp_path: Path) -> None:
    price_list(script, Training=[product("ml.g4dn.xlarge-Training", "0.92")])
    renew_prices("eu-central-1", tmp_path)
    shipped = read_prices(tmp_path, "us-east-1")
    assert (shipped.region, shipped.of("ml.g4dn.xlarge", "us-east-1")) == ("us-east-1", 0.7364)
    assert read_prices(tmp_path, None) == shipped
    assert read_prices(tmp_path, "eu-west-1").of("ml.g4dn.xlarge", "eu-west-1") is None
    renew_prices("us-east-1", tmp_path)
    assert read_prices(tmp_path, None).of("ml.g4dn.xlarge", "us-east-1") == 0.92
    assert read_prices(tmp_path, "eu-central-1").of("ml.g4dn.xlarge", "eu-central-1") == 0.92


def test_a_region_without_prices_is_told(script: Script) -> None:
    script.answer("GetProducts", (200, {"PriceList": []}), service="pricing")
    with pytest.raises(CloudError, match="region mars-1: AWS's price list has no prices of machines there"):
        main(["prices", "mars-1"])
