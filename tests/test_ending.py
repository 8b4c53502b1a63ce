"""What is told of a job that has ended, where its results cannot be had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from graft.errors import CloudError
from graft.launcher.ending import after_the_end
from graft.launcher.ticket import Ticket

JOB = Ticket("graft-1", "training", "train", "us-east-1", "s3://b/j", "s3://b/j/run", "ml.m5.large", 1, 0.36)
LEFT = "nothing of it runs any more, its files remain in s3://b/j/ (S3 storage is billed)"


@pytest.mark.parametrize(
    ("kind", "state", "reason", "told"),
    [
        ("training", "Completed", "", "completed; {}; `python -m graft.launcher follow runs/a` fetches its run"),
        ("training", "Failed", "no photos", "failed: no photos; {}; `python -m graft.launcher follow runs/a` fetches"),
        ("tuning", "Completed", "", "completed; {}; the same command with run_dir=runs/a fetches its trials"),
        ("tuning", "Stopped", "", "stopped; {}; the same command with run_dir=runs/a fetches its trials"),
        # The same command would start another search.
        (
            "tuning",
            "Failed",
            "",
            "failed; {}; `aws sagemaker list-training-jobs-for-hyper-parameter-tuning-job "
            "--hyper-parameter-tuning-job-name graft-1` shows its trials",
        ),
    ],
)
def test_a_fault_after_the_end_says_how_the_job_ended(kind: str, state: str, reason: str, told: str) -> None:
    ticket = replace(JOB, kind=kind, state=state, reason=reason)
    with pytest.raises(CloudError) as caught, after_the_end(ticket, Path("runs/a")):
        raise CloudError("S3 is busy")
    assert str(caught.value).startswith(f"S3 is busy; job graft-1 {told.format(LEFT)}")
