"""The story of a command that SageMaker runs: plan, check, submit, follow, fetch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from graft.artifacts import record_failure
from graft.command import Spread, sweep_size, value_of
from graft.config import OBJECTIVES, Config, SearchBackend, changed, sweep_member, to_yaml
from graft.errors import CloudError, ConfigError
from graft.launcher.account import found_region, require
from graft.launcher.bill import note_on_pages, planned_and_actual
from graft.launcher.calibration import read_calibration
from graft.launcher.earlier import earlier_job, is_to_be_repeated
from graft.launcher.ending import after_the_end, ended_badly
from graft.launcher.fetch import fetch_output, fetch_run
from graft.launcher.follow import follow, how_to_follow
from graft.launcher.job import Entry
from graft.launcher.plan import ALONE, Others, Plan, check_budget, make_plan
from graft.launcher.plan_text import compare_backends, describe
from graft.launcher.planned import note_planned
from graft.launcher.prices import Prices, read_prices
from graft.launcher.stopping import heed_stop
from graft.launcher.submit import Submission, submit
from graft.launcher.sweep import going_on, others_of, submitted, wait_for_turn
from graft.launcher.ticket import Ticket, read_ticket
from graft.launcher.trials import TunedTrial, best_trial, read_trials, with_bill
from graft.signals import exit_when_told
from graft.storage import local_path, write_text
from graft.terminal import run_table, say


@dataclass(frozen=True)
class Work:
    """What a command wants to be done.

    Attributes:
        config: of the run or the search.
        entry: which of the two.
        overrides: what the command line said.
        trials: of a search.
        spreads: of a search: key -> its values.
    """

    config: Config
    entry: Entry = Entry.train
    overrides: tuple[str, ...] = ()
    trials: int = 1
    spreads: Mapping[str, Spread] = field(default_factory=dict)

    @property
    def is_tuning_job(self) -> bool:
        """Whether SageMaker runs the search."""
        return self.entry is Entry.tune and self.config.search.backend is SearchBackend.tuning_job


def run_in_cloud(work: Work) -> Ticket | None:
    """Do it on SageMaker, or only say what that would take.

    Returns:
        The job, ended and its run fetched; None where nothing was sent, or where it goes on by itself.

    Raises:
        ConfigError: something is missing, contradictory, not accepted by the service, or above the budget.
        CloudError: the job failed, or AWS refuses.
        RunError: the run directory is finished, or holds another run, or its sweep was stopped meanwhile.
    """
    config = work.config
    run_dir = local_path(config.run_dir, "run_dir")
    region, cache = found_region(config), local_path(config.features.cache_dir, "features.cache_dir")
    prices = read_prices(cache, region)
    if not config.launcher.plan:
        heed_stop(run_dir)
        require(config)
    ticket = read_ticket(run_dir) if config.launcher.plan else earlier_job(config, run_dir)
    others = _others(run_dir, ticket)
    plan = _plan(work, prices, cache, region, others)
    if config.launcher.plan:
        print("\n".join(_plan_lines(work, plan, prices, cache, region)))
        if member := sweep_member():
            note_planned(member.parent, plan, config)
        check_budget(plan, config, others.usd)
        return None
    if ticket is None or is_to_be_repeated(ticket, run_dir, searches=work.is_tuning_job):
        check_budget(plan, config, others.usd)
        for line in _plan_lines(work, plan, prices, cache, region):
            say(line)
        if member := sweep_member():
            wait_for_turn(member, config.launcher.max_parallel)
        ticket = _submit(work, plan, run_dir, ticket)
    if sweep_member() or not (config.launcher.wait or ticket.has_ended):
        say(f"submitted {how_to_follow(ticket, run_dir)}")
        return None
    return conclude(ticket if ticket.has_ended else follow(ticket, run_dir), run_dir)


def tune_in_cloud(work: Work) -> list[TunedTrial]:
    """Have SageMaker run a search, and fetch the run of its best trial to best/.

    Returns:
        Its trials; none where nothing was sent, or where it goes on by itself.

    Raises:
        ConfigError: as `run_in_cloud`.
        CloudError: the tuning job failed, or AWS refuses.
        RunError: the run directory is finished, or holds another run.
    """
    ticket = run_in_cloud(work)
    if ticket is None:
        return []
    run_dir, objective = Path(work.config.run_dir).expanduser(), work.config.search.objective
    with after_the_end(ticket, run_dir):
        trials = read_trials(ticket)
    if not trials:
        raise CloudError(f"{ticket.name} was stopped before a trial began; another run_dir starts another search")
    best = best_trial(trials, maximize=OBJECTIVES[objective])
    if best:
        # Where the photos are for a person, not for the container; the one that is fetched does not replace it.
        params = {key: value_of(key, text) for key, text in best.params.items()}
        of_best = changed(work.config, {**params, "run_dir": str(run_dir / "best")})
        write_text(run_dir / "best" / "config.yaml", to_yaml(of_best))
        with after_the_end(ticket, run_dir):
            fetch_output(f"{ticket.results}/{best.name}/output/output.tar.gz", run_dir / "best")
    return trials


def conclude(ticket: Ticket, run_dir: Path) -> Ticket:
    """Fetch the run of a job that has ended, or the bill of a tuning job's trials, and say what it came to.

    Raises:
        CloudError: the job failed or was stopped; the message says why and what remains.
    """
    if not ticket.was_created:
        raise CloudError(ended_badly(ticket, run_dir))
    if ticket.kind == "training":
        with after_the_end(ticket, run_dir):
            count = fetch_run(ticket.results, run_dir)
        say(f"fetched {count} files from {ticket.results} to {run_dir}")
        say(planned_and_actual(ticket))
        note_on_pages(ticket, run_dir)
    else:
        with after_the_end(ticket, run_dir):
            ticket = with_bill(ticket, run_dir)
        say(planned_and_actual(ticket))
        if ticket.state == "Stopped":
            say(ended_badly(ticket, run_dir))  # the trials that ended are read all the same
            return ticket
    if ticket.state != "Completed":
        raise CloudError(ended_badly(ticket, run_dir))
    if ticket.entry == Entry.train.name and ticket.kind == "training":
        report = run_dir / "report.html"
        run_table(run_dir, _metrics(run_dir), toy=False, report=report if report.exists() else None)
    elif ticket.kind == "training":
        say(f"report: {run_dir}/report.html")
        say(f"next: python train.py overrides_from={run_dir}/best.yaml")
    return ticket


def conclude_member(ticket: Ticket, run_dir: Path) -> None:
    """Fetch the run of a sweep's job; what is wrong with it is kept there, and the sweep goes on."""
    try:
        if not ticket.was_created:
            raise CloudError(ended_badly(ticket, run_dir))
        with after_the_end(ticket, run_dir):
            fetch_run(ticket.results, run_dir)
        note_on_pages(ticket, run_dir)
        if ticket.state != "Completed":
            raise CloudError(ended_badly(ticket, run_dir))
        _metrics(run_dir)
    except CloudError as error:
        say(f"{run_dir.name}: {error}")
        record_failure(run_dir, str(error))
    say(f"{run_dir.name}: {planned_and_actual(ticket)}")


def _others(run_dir: Path, ticket: Ticket | None) -> Others:
    """The jobs of this run before this one, and the other jobs of its sweep."""
    others = others_of(run_dir, sweep_size()) if sweep_member() else ALONE
    return replace(others, usd=others.usd + ticket.most_usd) if ticket and ticket.has_ended else others


def _plan(work: Work, prices: Prices, cache: Path, region: str | None, others: Others = ALONE) -> Plan:
    return make_plan(work.config, work.entry, work.trials, prices, read_calibration(cache), region, others)


def _plan_lines(work: Work, plan: Plan, prices: Prices, cache: Path, region: str | None) -> list[str]:
    lines = list(describe(plan, work.config, prices, region))
    if work.entry is Entry.tune:
        one, many = (
            _plan(replace(work, config=_with_backend(work.config, backend)), prices, cache, region)
            for backend in SearchBackend
        )
        lines.append(compare_backends(one, many, work.config.search.backend))
    return lines


def _with_backend(config: Config, backend: SearchBackend) -> Config:
    return replace(config, search=replace(config.search, backend=backend))


def _submit(work: Work, plan: Plan, run_dir: Path, earlier: Ticket | None) -> Ticket:
    spreads = work.spreads if work.is_tuning_job else {}
    if work.is_tuning_job and not spreads:
        raise ConfigError("search.space is empty: a tuning job needs something to search")
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / "config.yaml", to_yaml(work.config))
    submission = Submission(work.config, work.entry, work.overrides, plan, spreads)
    try:
        with exit_when_told():
            return submit(submission, run_dir, earlier)
    except (KeyboardInterrupt, SystemExit):
        ticket = read_ticket(run_dir)
        if ticket and not ticket.has_ended:
            say(f"\ninterrupted while the job was created; if it was, {how_to_follow(ticket, run_dir)}")
        if (member := sweep_member()) and (others := submitted(member.parent)):
            say(going_on(others, member.parent))
        raise


def _metrics(run_dir: Path) -> dict[str, float]:
    """The metrics of a run that was fetched."""
    try:
        metrics: dict[str, float] = json.loads((run_dir / "metrics.json").read_text())
    except (OSError, ValueError) as error:
        raise CloudError(
            f"the job is completed, but {run_dir}/metrics.json cannot be read ({error}); "
            f"`python -m graft.launcher follow {run_dir}` fetches it again"
        ) from error
    return metrics
