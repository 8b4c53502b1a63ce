"""What watches a run: the debugger's probe and the profiler, and what they found when it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from graft.artifacts import RunDirectory, ended_by
from graft.config import Balance, Config, DebuggerBackend, OnFinding
from graft.data.module import ImageData
from graft.debugger.judge import diagnose, is_reason_to_stop, why_stopped
from graft.debugger.probe import Probe
from graft.debugger.records import Facts
from graft.debugger.smdebug_hook import SmdebugHook
from graft.diagnosis import failing_no_run, told
from graft.environment import available_cores
from graft.photos import Photos
from graft.processes import ALONE, Team
from graft.profiler.recorder import Profile
from graft.profiler.records import Facts as ProfileFacts
from graft.report.page import make_report
from graft.storage import is_remote
from graft.terminal import say


def open_profile(config: Config, run: RunDirectory, started: float) -> Profile:
    """What measures the run, in the process that writes what it leaves."""
    measures = config.profiler.enabled and run.writes
    return Profile(run.path if measures else None, started, config.profiler.interval_s)


def profile_facts(config: Config, photos: Photos, data: ImageData, device: str) -> ProfileFacts:
    """What the profiler's rules must know of the run."""
    return ProfileFacts(
        device=device,
        frozen=config.model.unfreeze == "head",
        cached=config.trains_on_features,
        augment=config.data.augment,
        batch_size=config.data.batch_size,
        workers=data.workers,
        cores=available_cores(),
        photos={name: len(split) for name, split in photos.splits.items()},
        steps_per_epoch=len(data.train_dataloader()),
        remote=is_remote(config.data.root),
        keeps_copies=config.data.cache_gb > 0,
        usd_per_hour=config.profiler.usd_per_hour,
    )


def build_probe(config: Config, data: ImageData, run: RunDirectory, team: Team = ALONE) -> list[Probe]:
    """What records the fit; empty where `debugger.enabled` is false."""
    d = config.debugger
    if not d.enabled:
        return []
    with_smdebug = d.backend is DebuggerBackend.smdebug and team.leads
    facts = Facts(
        num_classes=data.num_classes,
        batch_size=config.data.batch_size,
        steps_per_epoch=len(data.train_dataloader()),
        weighted=config.data.balance is Balance.loss,
        smoothing=config.optim.label_smoothing,
        learning_rate=config.optim.lr,
        clipped=config.optim.clip_norm is not None,
    )
    return [
        Probe(
            run.path,
            facts,
            train_interval=d.train_interval,
            eval_interval=d.eval_interval,
            statistics_interval=d.statistics_interval,
            writes=team.leads,
            beside=SmdebugHook(run.path, d.train_interval, d.eval_interval) if with_smdebug else None,
            stop=partial(is_reason_to_stop, run.path) if d.on_finding is OnFinding.stop else None,
        )
    ]


@contextmanager
def judged(run: RunDirectory, *, tells: bool = True) -> Iterator[None]:
    """A run that fails or is stopped is judged too, by what it recorded until then.

    Args:
        run: its directory.
        tells: whether one that fails says what was found, and has its page; a trial of a search, whose end is ordinary,
            does not.
    """
    try:
        yield
    except BaseException as error:
        found = diagnosed(run)
        if tells and isinstance(error, Exception) and run.writes:
            run.set_state(*ended_by(error))  # by now: the page says it
            _tell_failed(run, found)
        raise


def _tell_failed(run: RunDirectory, found: Sequence[str]) -> None:
    """The findings of a run that failed, and its page where it had looked at the photos: before, there is nothing."""
    for line in found:
        say(f"training: {line}")
    if (run.path / "data.json").exists() and (page := make_report(run.path)):
        say(f"report: {page}")


def diagnosed(run: RunDirectory) -> tuple[str, ...]:
    """What the debugger found, a line each; `debugger/findings.json` has it in full."""
    lines: list[str] = []
    if run.writes:
        with failing_no_run("the training", lines.append):
            lines += filter(None, [why_stopped(run.path)])
            lines += told(diagnose(run.path))
    return tuple(lines)
