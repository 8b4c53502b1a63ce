"""A tuning job's trials, as SageMaker tells them, become the files of a search."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from graft.command import Spread
from graft.errors import RunError
from graft.launcher.bill import note_on_pages
from graft.launcher.ticket import Ticket
from graft.launcher.trials import TunedTrial, best_trial, trial_of
from graft.report.trials import read_search
from graft.search.space import Space
from graft.search.tuned import print_tuned, record_of, write_search

SPACE = Space(
    {
        "optim.lr": Spread((), 0.001, 0.1, log=True),
        "data.batch_size": Spread((32, 64)),
        "trainer.max_epochs": Spread((2, 5)),
    },
    {"optim.lr": 0.001, "data.batch_size": 128, "trainer.max_epochs": 8},
)


def trial(number: int, value: float | None, state: str = "Completed", reason: str = "", epochs: int = 5) -> TunedTrial:
    params = {"optim.lr": f"0.0{number + 1}", "data.batch_size": "64", "trainer.max_epochs": str(epochs)}
    return TunedTrial(f"graft-tune-{number:03d}", params, state, value, reason, 60)


TRIALS = [
    trial(1, 0.9),
    trial(2, 0.5),
    trial(3, 0.7, "Stopped"),
    trial(4, None, "Failed", "AlgorithmError: no photos\n\nTraceback"),
    trial(5, float("nan")),
    trial(6, 0.6, epochs=2),
    trial(7, 0.65, epochs=2),
]


def test_the_files_are_those_of_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["trainer=sagemaker_gpu", "search.backend=tuning_job", "optim.weight_decay=0"]
    search = write_search(tmp_path, SPACE, "valid/loss", TRIALS, given, seed=0)
    study = json.loads((tmp_path / "study.json").read_text())
    assert study["best"] == search.best == 2
    assert [row["state"] for row in study["trials"]] == ["ok", "ok", "pruned", "failed", "diverged", "ok", "ok"]
    assert study["trials"][1]["params"] == {"optim.lr": 0.03, "data.batch_size": 64, "trainer.max_epochs": 5}
    # By SageMaker, or by a person who stopped all of it: an entry does not tell.
    assert study["trials"][2]["reason"] == "stopped early, or with its tuning job"
    assert study["trials"][3]["reason"] == "AlgorithmError: no photos"
    assert (tmp_path / "best.yaml").read_text() == (
        '- "trainer=sagemaker_gpu"\n- "optim.weight_decay=0"\n- "optim.lr=0.03"\n- "data.batch_size=64"\n'
        '- "trainer.max_epochs=5"\n'
    )
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert (rows[0]["optim.lr"], rows[0]["value"], rows[0]["seconds"]) == ("0.02", "0.9", "60.000")
    files = read_search(tmp_path)
    assert files.finished
    assert files.logarithmic == {"optim.lr"}
    assert (tmp_path / "report.html").exists()
    print_tuned(search)
    out = capsys.readouterr().out
    assert "trials: 7, 4 ok, 1 pruned, 1 diverged, 1 failed" in out
    assert "trial 4 failed" in out
    assert f"next: python train.py overrides_from={tmp_path}/best.yaml" in out


def test_the_pages_of_a_search_and_of_its_best_run_say_what_it_cost(tmp_path: Path) -> None:
    search = write_search(tmp_path, SPACE, "valid/loss", TRIALS, [], seed=0)
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "report.html").write_text("<header><!-- job --></header>")
    ticket = Ticket("graft-tune-1", "tuning", "tune", "us-east-1", "s3://b/j", "s3://b/j", "ml.m5.large", 1)
    note_on_pages(replace(ticket, planned_usd=(1.0, 2.0), billed_seconds=90, actual_usd=1.5), tmp_path)
    assert search.report is not None
    for page in (search.report, tmp_path / "best" / "report.html"):
        said = "SageMaker job graft-tune-1 on 1 x ml.m5.large; billed: 1.5 minutes, $1.50; planned: $1.00 .. $2.00"
        assert f'<p class="meta">{said}</p>' in page.read_text()


def test_more_may_be_better(tmp_path: Path) -> None:
    assert write_search(tmp_path, SPACE, "valid/accuracy", TRIALS, [], seed=0).best == 1


def test_enough_trials_say_what_mattered(tmp_path: Path) -> None:
    trials = [trial(number, 0.1 * number) for number in range(1, 9)] + [trial(9, 0.2), trial(9, 0.3), trial(9, 0.4)]
    search = write_search(tmp_path, SPACE, "valid/loss", trials, [], seed=0)
    assert any(sentence.startswith("importance: ") and "optim.lr" in sentence for sentence in search.sentences)


def test_a_search_of_which_nothing_ended_well_says_why(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="none of 1 trials ended well: AlgorithmError: no photos"):
        write_search(tmp_path, SPACE, "valid/loss", [TRIALS[3]], [], seed=0)
    assert json.loads((tmp_path / "study.json").read_text())["best"] is None


def test_a_summary_of_the_service_is_read() -> None:
    start = datetime(2026, 11, 27, tzinfo=UTC)
    summary = {
        "TrainingJobName": "graft-tune-1",
        "TrainingJobStatus": "Completed",
        "TrainingStartTime": start,
        "TrainingEndTime": start + timedelta(seconds=90),
        "TunedHyperParameters": {"optim__lr": "0.05", "data__batch_size": '"64"', "_tuning_objective_metric": "x"},
        "FinalHyperParameterTuningJobObjectiveMetric": {"MetricName": "valid/loss", "Value": 0.5},
    }
    assert trial_of(summary, instances=2) == TunedTrial(
        "graft-tune-1", {"optim.lr": "0.05", "data.batch_size": "64"}, "Completed", 0.5, "", 180
    )
    assert trial_of({"TrainingJobName": "a", "TrainingJobStatus": "InProgress"}).billed_seconds == 0


def test_the_best_trial_came_to_its_end() -> None:
    best = best_trial([TRIALS[4], *TRIALS[:4]], maximize=False)
    assert best is not None
    assert best.name == "graft-tune-002"
    assert best_trial(TRIALS[2:5], maximize=False) is None


def test_a_parameter_has_the_type_of_its_key() -> None:
    assert record_of(1, TRIALS[0]).params == {"optim.lr": 0.02, "data.batch_size": 64, "trainer.max_epochs": 5}


def test_a_search_over_names_is_written_and_read(tmp_path: Path) -> None:
    space = Space({"optim.algorithm": Spread(("adam", "adamw"))}, {"optim.algorithm": "adam"})
    trials = [
        TunedTrial(f"graft-tune-{number:03d}", {"optim.algorithm": name}, "Completed", value, "", 60)
        for number, (name, value) in enumerate([("adam", 0.9), ("adamw", 0.5), ("adam", 0.8), ("adamw", 0.6)], 1)
    ]
    write_search(tmp_path, space, "valid/loss", trials, [], seed=0)
    assert (tmp_path / "best.yaml").read_text() == "- \"optim.algorithm='adamw'\"\n"
    study = json.loads((tmp_path / "study.json").read_text())
    assert [row["params"]["optim.algorithm"] for row in study["trials"]] == ["adam", "adamw", "adam", "adamw"]
