"""Training jobs: from CreateTrainingJob to the archives in S3, in a thread each."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.aws.account import Kept, LogStream, arn, download, upload
from tests.aws.machine import Machine
from tests.aws.process import Job

Request = Mapping[str, Any]

GROUP = "/aws/sagemaker/TrainingJobs"
GRACE_S = 120.0  # between SIGTERM and SIGKILL, as StopTrainingJob documents
TURN_S = 0.2
KEEP_S = 1.0  # between two looks at the checkpoints
ENDED = ("Completed", "Failed", "Stopped")


class Failure(Exception):
    """Why a job fails, as DescribeTrainingJob tells it."""


@dataclass
class TrainingJob:
    """A job: what was asked, and what has become of it.

    Attributes:
        request: of CreateTrainingJob.
        url: of the local AWS.
        program: the toolkit's `train`.
        base: folder of the job's machines, empty or left by another job.
        tuning_job: its name, where the job is a trial.
    """

    request: Request
    url: str
    program: Path
    base: Path
    tuning_job: str | None = None
    grace_s: float = GRACE_S
    created: float = field(default_factory=time.time)
    status: str = "InProgress"
    failure: str = ""
    transitions: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    curve: list[float] = field(default_factory=list)
    began: float | None = None
    finished: float | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    interrupting: threading.Event = field(default_factory=threading.Event)
    machines: list[Machine] = field(default_factory=list)
    thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        """Of the job."""
        return str(self.request["TrainingJobName"])

    @property
    def arn(self) -> str:
        """Of the job."""
        return arn("training-job", self.name)

    def start(self) -> None:
        """Run it in a thread."""
        self.enter("Starting", "Preparing the instances for training")
        self.thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self.thread.start()

    def enter(self, status: str, message: str = "") -> None:
        """Note a secondary status."""
        now = time.time()
        if self.transitions:
            self.transitions[-1]["EndTime"] = now
        self.transitions.append({"Status": status, "StartTime": now, "StatusMessage": message})

    def _run(self) -> None:
        from botocore.exceptions import ClientError

        try:
            status, secondary, message = self._lifecycle()
        except (Failure, ClientError) as failure:
            self.failure = str(failure) if isinstance(failure, Failure) else f"ClientError: {failure}"
            status = secondary = "Failed"
            message = self.failure
        self.finished = time.time()
        self.enter(secondary, message)
        self.transitions[-1]["EndTime"] = self.finished
        self.status = status

    def _lifecycle(self) -> tuple[str, str, str]:
        """Status, secondary status and message of the job's end."""
        while True:
            outcome = self._life()
            if outcome != "interrupted":
                break
            if not self.request.get("EnableManagedSpotTraining"):
                raise Failure("InternalServerError: We encountered an internal error. Please try again.")
            self.enter("Interrupted", "Job paused because managed spot training instances were interrupted")
            self.enter("Restarting", "Restarting the training job")
        self.enter("Uploading", "Uploading generated training model")
        self._upload()
        if outcome == "failed":
            raise Failure(self._reason())
        if outcome == "stopped":
            return "Stopped", "Stopped", "Training job stopped"
        if outcome == "too long":
            return "Stopped", "MaxRuntimeExceeded", "Training job runtime exceeded MaxRuntimeInSeconds provided"
        return "Completed", "Completed", "Training job completed"

    def _life(self) -> str:
        """One life on fresh machines: completed, failed, stopped, too long or interrupted."""
        count = self.request["ResourceConfig"]["InstanceCount"]
        hosts = [f"127.0.0.{number}" for number in range(1, count + 1)]
        self.machines = [Machine(self.base / f"algo-{n}", hosts, host) for n, host in enumerate(hosts, 1)]
        self.enter("Downloading", "Downloading input data")
        for machine in self.machines:
            self._furnish(machine)
        checkpoints = self._checkpoints()
        for kept in checkpoints:
            kept.restore()
        self.enter("Training", "Training image download completed. Training in progress.")
        self.began = self.began or time.time()
        streams = [LogStream(self.url, GROUP, f"{self.name}/algo-{n}-{self.began:.0f}") for n in range(1, count + 1)]
        for machine, stream in zip(self.machines, streams, strict=True):
            machine.start(self.program, self.url, self.name, self._environment(), self._listener(stream))
        try:
            return self._watch(streams, checkpoints)
        finally:
            self.end()
            for stream in streams:
                stream.flush()
            if not self.interrupting.is_set():
                for kept in checkpoints:
                    kept.send()
            self.interrupting.clear()

    def _furnish(self, machine: Machine) -> None:
        """Settings and data of a machine."""
        channels = {}
        for channel in self.request.get("InputDataConfig", []):
            name, source = channel["ChannelName"], channel["DataSource"]["S3DataSource"]
            channels[name] = {
                "TrainingInputMode": channel.get("InputMode", "File"),
                "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
                "RecordWrapperType": "None",
            }
            folder = machine.base / "input" / "data" / name
            folder.mkdir()
            if not download(self.url, source["S3Uri"], folder):
                raise Failure(
                    f"ClientError: Data download failed:NoSuchKey (404): No S3 objects found under S3 URL "
                    f'"{source["S3Uri"]}" given in input data source'
                )
        machine.write_settings(self.request.get("HyperParameters", {}), channels)

    def _checkpoints(self) -> list[Kept]:
        uri = self.request.get("CheckpointConfig", {}).get("S3Uri")
        return [Kept(self.url, machine.base / "checkpoints", uri) for machine in self.machines] if uri else []

    def _environment(self) -> dict[str, str]:
        return {"TRAINING_JOB_ARN": self.arn, **self.request.get("Environment", {})}

    def _listener(self, stream: LogStream) -> Callable[[str], None]:
        """What takes the lines of a machine: they are logged, and metrics are found in them."""
        definitions = self.request["AlgorithmSpecification"].get("MetricDefinitions", [])
        patterns = {entry["Name"]: re.compile(entry["Regex"]) for entry in definitions}

        def tell(line: str) -> None:
            stream.write(line)
            for name, pattern in patterns.items():
                if found := pattern.search(line):
                    self.metrics[name] = (float(found[1]), time.time())
                    if name == self.objective:
                        self.curve.append(float(found[1]))

        return tell

    @property
    def objective(self) -> str:
        """The metric that a tuning job looks at; empty for other jobs."""
        return str(self.request.get("HyperParameters", {}).get("_tuning_objective_metric", ""))

    def _watch(self, streams: list[LogStream], checkpoints: list[Kept]) -> str:
        outcome, deadline, keep = "", math.inf, time.monotonic() + KEEP_S
        while self._goes_on(deadline):
            time.sleep(TURN_S)
            for stream in streams:
                stream.flush()
            if time.monotonic() > keep:
                for kept in checkpoints:
                    kept.send()
                keep = time.monotonic() + KEEP_S
            if not outcome and (outcome := self._told_to_end()):
                deadline = time.monotonic() + self.grace_s
                for process in self._processes():
                    process.terminate()
        if self.interrupting.is_set():
            return "interrupted"
        failed = any(machine.exit_code for machine in self.machines)
        return outcome or ("failed" if failed else "completed")

    def _goes_on(self, deadline: float) -> bool:
        """Whether the machines are to be left alone: one that fails ends the job."""
        codes = [machine.exit_code for machine in self.machines]
        ends = self.interrupting.is_set() or any(codes) or time.monotonic() > deadline
        return not ends and any(code is None for code in codes)

    def _told_to_end(self) -> str:
        """Why the job is to end before it has: stopped, or too long; empty where it is not."""
        assert self.began is not None
        if self.stopping.is_set():
            return "stopped"
        longest = self.request["StoppingCondition"].get("MaxRuntimeInSeconds", 86_400)
        return "too long" if time.time() > self.began + longest else ""

    def _reason(self) -> str:
        for machine in self.machines:
            if machine.exit_code:
                said = machine.failure() or "See job logs for more information"
                return f"AlgorithmError: {said}, exit code: {machine.exit_code}"
        return ""

    def _upload(self) -> None:
        place = self.output_uri
        leader = self.machines[0]
        for folder, name in (("model", "model.tar.gz"), ("output/data", "output.tar.gz")):
            if archive := leader.archive(folder):
                upload(self.url, archive, f"{place}/{name}")

    @property
    def output_uri(self) -> str:
        """Where the archives of the job lie."""
        return f"{self.request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{self.name}/output"

    def stop(self) -> None:
        """Stop it, in good order."""
        self.status = "Stopping"
        self.enter("Stopping", "Stopping the training job")
        self.stopping.set()

    def end(self) -> None:
        """Kill all that runs on its machines."""
        for process in self._processes():
            process.end()

    def processes(self) -> list[psutil.Process]:
        """All that runs on its machines."""
        return [process for job in self._processes() for process in job.processes()]

    def _processes(self) -> list[Job]:
        return [machine.process for machine in self.machines if machine.process]

    def describe(self) -> dict[str, Any]:
        """The answer of DescribeTrainingJob."""
        last = self.finished or time.time()
        known = {
            **self.request,
            "TrainingJobArn": self.arn,
            "TrainingJobStatus": self.status,
            "SecondaryStatus": self.transitions[-1]["Status"],
            "SecondaryStatusTransitions": self.transitions,
            "CreationTime": self.created,
            "LastModifiedTime": self.transitions[-1]["StartTime"],
            "ModelArtifacts": {"S3ModelArtifacts": f"{self.output_uri}/model.tar.gz"},
            "FinalMetricDataList": [
                {"MetricName": name, "Value": value, "Timestamp": at} for name, (value, at) in self.metrics.items()
            ],
        }
        known.pop("Tags", None)
        if self.failure:
            known["FailureReason"] = self.failure
        if self.tuning_job:
            known["TuningJobArn"] = arn("hyper-parameter-tuning-job", self.tuning_job)
        if self.began:
            known["TrainingStartTime"] = self.began
            known["TrainingTimeInSeconds"] = known["BillableTimeInSeconds"] = round(last - self.began)
        if self.finished:
            known["TrainingEndTime"] = self.finished
        return known

    def summary(self) -> dict[str, Any]:
        """The job in the answer of ListTrainingJobs."""
        described = self.describe()
        names = ("TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingEndTime", "LastModifiedTime")
        return {name: described[name] for name in (*names, "TrainingJobStatus", "SecondaryStatus") if name in described}
