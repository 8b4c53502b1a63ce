"""train(config): the story of a run, from a folder of photos to a model bundle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytorch_lightning import Callback

from graft.artifacts import RunDirectory
from graft.assembly import (
    build_classifier,
    cache_folder,
    expected_input,
    fit_classifier,
    fitting_team,
    look,
    open_folder,
    open_run_of,
    save_model,
    with_local_weights,
)
from graft.classifier import Classifier
from graft.config import Config, DataKind, config_hash
from graft.data.findings import LEAKS, refuse, summarise
from graft.debugger.judge import why_stopped
from graft.debugger.smdebug_hook import check_backend
from graft.environment import describe_environment
from graft.evaluate import Evaluation, details, evaluate, evaluate_test, write_predictions
from graft.fit import pick_device, quiet_lightning
from graft.photos import Photos
from graft.processes import Team, join_team
from graft.profiler.recorder import Profile
from graft.recording import diagnosed, judged, open_profile
from graft.rehearsal import rehearse
from graft.report.page import make_report
from graft.signals import exit_when_told
from graft.terminal import progress_bar


@dataclass(frozen=True)
class RunResult:
    """What a run left.

    Attributes:
        run_dir: its directory.
        metrics: name -> number; empty in a process that is not the leader of its run.
        toy: whether they are those of drawn photos.
        remarks: what is wrong with the photos, a line each.
        findings: what the debugger found in the training, likewise.
        costs: the profiler's dearest finding, likewise.
        report: its page; None where there is none.
    """

    run_dir: Path
    metrics: dict[str, float]
    toy: bool = False
    remarks: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    costs: tuple[str, ...] = ()
    report: Path | None = None


def train(
    config: Config,
    overrides: tuple[str, ...] = (),
    started: float | None = None,
    watching: Sequence[Callback] = (),
) -> RunResult:
    """Train, evaluate and bundle one model; resumes what an earlier process left in `config.run_dir`.

    Args:
        config: the whole configuration.
        overrides: what the command line said, for the record.
        started: `time.perf_counter()` when the program started, so that imports count.
        watching: Lightning callbacks of the caller, such as a search's pruner.

    Raises:
        GraftError: something a person can mend.
        SystemExit: the run was told to stop; it can be resumed.
    """
    started = time.perf_counter() if started is None else started
    quiet_lightning()
    device = pick_device(config.trainer.accelerator.value)
    check_backend(config.debugger.backend.value if config.debugger.enabled else "")
    with (
        exit_when_told(),
        join_team(device) as team,
        open_run_of(config, overrides, team) as run,
        judged(run, tells=not watching),
        open_profile(config, run, started) as profile,
    ):
        run.write_json("environment.json", {**describe_environment(), "device": device, "processes": team.size})
        classifier, photos = look_at(config, run, device, team, profile)

        fit_started = time.perf_counter()
        fitting = fitting_team(config, team)
        if team.leads or fitting.size > 1:
            classifier = fit_classifier(config, classifier, photos, run, device, fitting, watching, profile)
        if not team.leads:
            return RunResult(run.path, {})
        times = {"features_s": photos.seconds, "fit_s": time.perf_counter() - fit_started}

        metrics = evaluate_and_save(config, run, classifier.to(device), photos, profile)
        times["total_s"] = time.perf_counter() - started
        metrics |= {f"time/{name}": seconds for name, seconds in times.items()}
        run.write_json("metrics.json", metrics)
        if fitting.size == 1:
            rehearse(config, classifier, photos, device, profile)
        findings, costs = diagnosed(run), profile.conclude()
        run.set_state("finished", why_stopped(run.path))
        report = make_report(run.path)
    toy, remarks = config.data.kind is DataKind.demo, tuple(summarise(photos.findings))
    return RunResult(run.path, metrics, toy, remarks, findings, costs, report)


def look_at(config: Config, run: RunDirectory, device: str, team: Team, profile: Profile) -> tuple[Classifier, Photos]:
    """What trains, and the photos that it trains on: each was looked at once.

    Raises:
        GraftError: the weights or the photos are not usable.
    """
    local = with_local_weights(config, team)
    spec = expected_input(local)
    folder = open_folder(config, team)
    classifier = build_classifier(local, folder, spec)
    with profile.watch.measured("look"):
        photos = look(config, folder, classifier, spec, device, team)
    run.write_json("data.json", photos.describe())
    refuse(photos.findings)
    return classifier, photos


def evaluate_and_save(
    config: Config, run: RunDirectory, classifier: Classifier, photos: Photos, profile: Profile
) -> dict[str, float]:
    """The flat metrics of a trained model, with its predictions and its bundle in the run directory."""
    with profile.watch.measured("final_evaluation"):
        evaluations, openings = evaluate_splits(config, run, classifier, photos)
    profile.watch.become("shutdown")
    metrics = flat_metrics(evaluations, openings, photos)
    write_predictions(run.predictions, list(evaluations.values()))
    run.write_json("evaluation.json", {name: details(e) for name, e in evaluations.items()})
    save_model(config, run, classifier.cpu(), photos, evaluations["valid"], metrics)
    return metrics


def evaluate_splits(
    config: Config, run: RunDirectory, classifier: Classifier, photos: Photos
) -> tuple[dict[str, Evaluation], int]:
    """Valid, which fits the temperature, and test, if it is to be opened; with the count of its openings."""
    valid, shown = photos.splits["valid"], config.trainer.progress
    with progress_bar("evaluating valid", len(valid), shown) as advance:
        on_valid = evaluate(valid, photos.source(valid), classifier.logits, seed=config.seed, advance=advance)
    if "test" not in photos.splits or config.evaluate.test is False:
        return {"valid": on_valid}, 0
    test = photos.splits["test"]
    with progress_bar("evaluating test", len(test), shown) as advance:
        on_test, openings = evaluate_test(
            test,
            photos.source,
            classifier.logits,
            ledger=cache_folder(config) / "test_openings.jsonl",
            data_fingerprint=photos.fingerprint("test"),
            config_hash=config_hash(config),
            run_id=run.run_id,
            seed=config.seed,
            temperature=on_valid.temperature,
            advance=advance,
        )
    return {"valid": on_valid, "test": on_test}, openings


def flat_metrics(evaluations: dict[str, Evaluation], openings: int, photos: Photos) -> dict[str, float]:
    """`split/name` -> number, and what it took to compute the features; `train` adds the times."""
    metrics = {f"{split}/{name}": value for split, e in evaluations.items() for name, value in e.metrics.items()}
    if openings:
        metrics["test/openings"] = openings
    metrics["data/truncated"] = sum(len(damage.truncated) for damage in photos.damage)
    metrics["data/undecodable"] = sum(len(damage.undecodable) for damage in photos.damage)
    metrics["data/leaks"] = sum(finding.count for finding in photos.findings if finding.check in LEAKS)
    if photos.views:
        metrics["features/computed"] = photos.computed
        metrics["features/reused"] = photos.reused
        metrics["features/images_per_s"] = photos.computed / photos.seconds
    return metrics
