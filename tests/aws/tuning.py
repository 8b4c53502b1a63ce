"""Tuning jobs: ranges sampled, jobs run with the parallel limit, hopeless ones stopped early."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.aws.account import arn
from tests.aws.training import ENDED, TrainingJob

Request = Mapping[str, Any]
TURN_S = 0.2
# "Training job early stopping": a job is stopped when its objective is worse than the median of the running averages
# of all completed jobs up to the same step.
FEWEST_CURVES = 2


def samples(config: Request) -> Iterator[dict[str, str]]:
    """Hyperparameters of one trial after the other: all combinations of a grid, else at random from the ranges."""
    ranges = config["ParameterRanges"]
    if config["Strategy"] == "Grid":
        entries = ranges.get("CategoricalParameterRanges", [])
        names = [entry["Name"] for entry in entries]
        for values in itertools.product(*(entry["Values"] for entry in entries)):
            yield dict(zip(names, values, strict=True))
        return
    rng = random.Random(config.get("RandomSeed", 0))
    while True:
        yield {
            **{e["Name"]: str(round(_between(e, rng))) for e in ranges.get("IntegerParameterRanges", [])},
            **{e["Name"]: repr(_between(e, rng)) for e in ranges.get("ContinuousParameterRanges", [])},
            **{e["Name"]: rng.choice(e["Values"]) for e in ranges.get("CategoricalParameterRanges", [])},
        }


def _between(entry: Mapping[str, str], rng: random.Random) -> float:
    low, high = float(entry["MinValue"]), float(entry["MaxValue"])
    if entry.get("ScalingType") == "Logarithmic":
        return min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high)
    return rng.uniform(low, high)


def is_hopeless(curve: list[float], others: list[list[float]], *, minimise: bool) -> bool:
    """The median rule of SageMaker's documentation, at the last step of `curve`."""
    comparable = [other for other in others if len(other) >= len(curve)]
    if not curve or len(comparable) < FEWEST_CURVES:
        return False
    middle = statistics.median(statistics.fmean(other[: len(curve)]) for other in comparable)
    return min(curve) > middle if minimise else max(curve) < middle


@dataclass
class TuningJob:
    """A tuning job and its trials.

    Attributes:
        request: of CreateHyperParameterTuningJob.
        create: starts a training job.
    """

    request: Request
    create: Callable[[Request, str], TrainingJob]
    created: float = field(default_factory=time.time)
    finished: float | None = None
    status: str = "InProgress"
    failure: str = ""
    trials: list[TrainingJob] = field(default_factory=list)
    given: dict[str, dict[str, str]] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        """Of the tuning job."""
        return str(self.request["HyperParameterTuningJobName"])

    @property
    def config(self) -> Request:
        """How it searches."""
        config: Request = self.request["HyperParameterTuningJobConfig"]
        return config

    @property
    def minimises(self) -> bool:
        """Whether less is better."""
        return bool(self.config["HyperParameterTuningJobObjective"]["Type"] == "Minimize")

    @property
    def metric(self) -> str:
        """Name of its objective."""
        return str(self.config["HyperParameterTuningJobObjective"]["MetricName"])

    def start(self) -> None:
        """Run it in a thread."""
        self.thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        limits = self.config["ResourceLimits"]
        most, beside = limits["MaxNumberOfTrainingJobs"], limits["MaxParallelTrainingJobs"]
        end = self.created + limits.get("MaxRuntimeInSeconds", math.inf)
        ahead = itertools.islice(samples(self.config), most)
        more = True
        while more or self._running():
            if self.stopping.is_set() or time.time() > end:
                more = False
                self._stop_trials()
            while more and len(self._running()) < beside:
                drawn = next(ahead, None)
                more = drawn is not None
                if drawn is not None:
                    self._start_trial(drawn)
            self._stop_hopeless()
            time.sleep(TURN_S)
        self._conclude()

    def _start_trial(self, drawn: Mapping[str, str]) -> None:
        definition = dict(self.request["TrainingJobDefinition"])
        static = definition.pop("StaticHyperParameters", {})
        number = len(self.trials) + 1
        name = f"{self.name}-{number:03d}-{random.getrandbits(32):08x}"
        algorithm = dict(definition["AlgorithmSpecification"])
        request = {
            **definition,
            "AlgorithmSpecification": algorithm,
            "TrainingJobName": name,
            "HyperParameters": {**static, **drawn, "_tuning_objective_metric": self.metric},
        }
        self.given[name] = dict(drawn)
        self.trials.append(self.create(request, self.name))

    def _running(self) -> list[TrainingJob]:
        return [trial for trial in self.trials if trial.finished is None]

    def _stop_trials(self) -> None:
        for trial in self._running():
            if not trial.stopping.is_set():
                trial.stop()

    def _stop_hopeless(self) -> None:
        if self.config.get("TrainingJobEarlyStoppingType", "Off") != "Auto":
            return
        done = [list(trial.curve) for trial in self.trials if trial.status == "Completed"]
        for trial in self._running():
            if not trial.stopping.is_set() and is_hopeless(list(trial.curve), done, minimise=self.minimises):
                trial.stop()

    def _conclude(self) -> None:
        self.finished = time.time()
        if self.stopping.is_set():
            self.status = "Stopped"
        elif self.best:
            self.status = "Completed"
        else:
            self.status, self.failure = "Failed", "All training jobs failed. Please see the training jobs for reasons."

    @property
    def best(self) -> TrainingJob | None:
        """The trial with the best objective; None where none has one."""
        ended = ("Completed", "Stopped")
        known = [trial for trial in self.trials if self.metric in trial.metrics and trial.status in ended]
        if not known:
            return None
        return (min if self.minimises else max)(known, key=lambda trial: trial.metrics[self.metric][0])

    def stop(self) -> None:
        """Stop it and its trials."""
        self.status = "Stopping"
        self.stopping.set()

    def describe(self) -> dict[str, Any]:
        """The answer of DescribeHyperParameterTuningJob."""
        known: dict[str, Any] = {
            **{key: value for key, value in self.request.items() if key != "Tags"},
            "HyperParameterTuningJobArn": arn("hyper-parameter-tuning-job", self.name),
            "HyperParameterTuningJobStatus": self.status,
            "CreationTime": self.created,
            "LastModifiedTime": self.finished or time.time(),
            "TrainingJobStatusCounters": self._counters(),
            "ObjectiveStatusCounters": self._objectives(),
        }
        if self.finished:
            known["HyperParameterTuningEndTime"] = self.finished
        if self.failure:
            known["FailureReason"] = self.failure
        if self.best:
            known["BestTrainingJob"] = self.trial_summary(self.best)
        return known

    def _counters(self) -> dict[str, int]:
        count = {status: sum(trial.status == status for trial in self.trials) for status in ENDED}
        failed = {"RetryableError": 0, "NonRetryableError": count["Failed"]}
        return {
            "Completed": count["Completed"],
            "Stopped": count["Stopped"],
            "InProgress": len(self._running()),
            **failed,
        }

    def _objectives(self) -> dict[str, int]:
        told = sum(self.metric in trial.metrics for trial in self.trials if trial.finished)
        waiting = len(self._running())
        return {"Succeeded": told, "Pending": waiting, "Failed": len(self.trials) - told - waiting}

    def trial_summary(self, trial: TrainingJob) -> dict[str, Any]:
        """A trial in the answer of ListTrainingJobsForHyperParameterTuningJob."""
        known: dict[str, Any] = {
            "TrainingJobName": trial.name,
            "TrainingJobArn": trial.arn,
            "TrainingJobStatus": trial.status,
            "CreationTime": trial.created,
            "TunedHyperParameters": self.given[trial.name],
            "ObjectiveStatus": "Pending" if trial.finished is None else "Failed",
        }
        if trial.began:
            known["TrainingStartTime"] = trial.began
        if trial.finished:
            known["TrainingEndTime"] = trial.finished
        if trial.failure:
            known["FailureReason"] = trial.failure
        if self.metric in trial.metrics:
            kind = self.config["HyperParameterTuningJobObjective"]["Type"]
            known["FinalHyperParameterTuningJobObjectiveMetric"] = {
                "Type": kind,
                "MetricName": self.metric,
                "Value": trial.metrics[self.metric][0],
            }
            known["ObjectiveStatus"] = "Succeeded" if trial.finished else "Pending"
        return known

    def summary(self) -> dict[str, Any]:
        """The tuning job in the answer of ListHyperParameterTuningJobs."""
        known = self.describe()
        names = ("Name", "Arn", "Status")
        return {
            **{f"HyperParameterTuningJob{name}": known[f"HyperParameterTuningJob{name}"] for name in names},
            "Strategy": self.config["Strategy"],
            "CreationTime": self.created,
            "LastModifiedTime": known["LastModifiedTime"],
            "TrainingJobStatusCounters": known["TrainingJobStatusCounters"],
            "ObjectiveStatusCounters": known["ObjectiveStatusCounters"],
            "ResourceLimits": self.config["ResourceLimits"],
        }
