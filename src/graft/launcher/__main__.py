"""`python -m graft.launcher follow|stop|list|policy|prices|calibrate`: jobs of an account, and what they cost.

  follow RUN_DIR       watch the job of a run directory, or of a sweep, and fetch its run
  stop RUN_DIR         end it; of a sweep, no further job is created either
  list                 the jobs of the account that graft made: state, age and dollars
  policy KEY=VALUE ..  the IAM policies that a configuration needs; who=user|role|trust prints one alone,
                       endpoint=NAME adds what `python -m serve deploy` and its like take
  prices REGION        read today's prices of a region from AWS
  calibrate            measure this machine for about 20 s, for plans

list takes launcher.region=REGION; policy takes what train.py takes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from graft.config import Config
from graft.errors import CloudError, ConfigError, RunError
from graft.launcher.account import found_region
from graft.launcher.cloud import conclude, conclude_member
from graft.launcher.ending import ended_badly
from graft.launcher.follow import follow, stop
from graft.launcher.listing import list_jobs, table
from graft.launcher.policy import policies
from graft.launcher.presence import confirmed
from graft.launcher.prices import read_prices, renew_prices, renewed_path
from graft.launcher.source import CHECKOUT
from graft.launcher.status import ask
from graft.launcher.stopping import mark_stopped
from graft.launcher.sweep import follow_sweep, members
from graft.launcher.ticket import Ticket, read_ticket
from graft.terminal import plain_errors, say

COMMANDS = ("follow", "stop", "list", "policy", "prices", "calibrate")


def main(argv: Sequence[str]) -> None:
    """Run one command.

    Raises:
        GraftError: something a person can mend.
    """
    command, *rest = argv or ["help"]
    if command in ("help", "--help", "-h"):
        print(__doc__)
    elif command == "follow":
        _follow(_place(rest))
    elif command == "stop":
        _stop(_place(rest))
    elif command == "list":
        _list(rest)
    elif command == "policy":
        _policy(rest)
    elif command == "prices":
        _prices(rest)
    elif command == "calibrate":
        _calibrate(rest)
    else:
        raise ConfigError(f"{command} is no command; accepted: {', '.join(COMMANDS)}")


def _follow(run_dir: Path) -> None:
    if jobs := members(run_dir):
        follow_sweep(run_dir, conclude_member)
        say(f"all {len(jobs)} jobs of {run_dir} have ended")
        return
    ticket = confirmed(_ticket(run_dir), run_dir)
    ticket = conclude(ticket if ticket.has_ended else follow(ticket, run_dir), run_dir)
    if ticket.kind == "tuning" and ticket.state == "Completed":
        say("its trials: the command that started the search, with the same run_dir, reads them")


def _stop(run_dir: Path) -> None:
    if members(run_dir):
        mark_stopped(run_dir)
        say(f"no further job of {run_dir} is created; the command that started the sweep, given again, goes on with it")
    refused = []
    for run, ticket in (members(run_dir) or {run_dir: _ticket(run_dir)}).items():
        try:
            say(_stopped(ticket, run))
        except CloudError as error:
            say(f"error: {error}")
            refused.append(ticket.name)
    if refused:
        raise CloudError(
            f"not stopped, and billed where they run: {', '.join(refused)}; the same command tries again, "
            "`python -m graft.launcher list` shows what is billed"
        )


def _stopped(ticket: Ticket, run_dir: Path) -> str:
    """Stop a job where it runs; what became of it, in words."""
    ticket = confirmed(ticket, run_dir)
    if not ticket.was_created:
        return ended_badly(ticket, run_dir)
    state = ticket if ticket.has_ended else ask(ticket)
    if state.has_ended:
        return f"{ticket.name} has ended before: {state.state}"
    stop(ticket)
    return f"{ticket.name} is being stopped; billing ends within minutes: `python -m graft.launcher follow {run_dir}`"


def _list(rest: Sequence[str]) -> None:
    config = _configured(rest)
    region = found_region(config)
    if region is None:
        raise ConfigError("launcher.region=null: accepted is the name of a region, such as us-east-1")
    table(list_jobs(region), region, read_prices(_cache(config), region))


def _policy(rest: Sequence[str]) -> None:
    who = next((word.removeprefix("who=") for word in rest if word.startswith("who=")), None)
    endpoint = next((word.removeprefix("endpoint=") for word in rest if word.startswith("endpoint=")), None)
    found = policies(_configured([word for word in rest if not word.startswith(("who=", "endpoint="))]), endpoint)
    if who is not None and who not in found:
        raise ConfigError(f"who={who}: accepted is {', '.join(found)}")
    print(json.dumps(found[who] if who else found, indent=2))


def _prices(rest: Sequence[str]) -> None:
    if len(rest) != 1:
        raise ConfigError("accepted: python -m graft.launcher prices REGION")
    cache = _cache(_configured([]))
    prices = renew_prices(rest[0], cache)
    path = renewed_path(cache, prices.region)
    print(f"{len(prices.machines)} machines in {prices.region} on {prices.date}; plans use them ({path})")


def _calibrate(rest: Sequence[str]) -> None:
    from graft.launcher.calibration import write_calibration
    from graft.launcher.measure import measure

    found = measure()
    path = write_calibration(found, _cache(_configured(rest)))
    print(
        f"a core of {found.machine}: {found.decoded_per_s:.0f} photos decoded a second, {found.gflops:.0f} GFLOP/s in "
        f"the backbone; plans use it ({path})"
    )


def _configured(overrides: Sequence[str]) -> Config:
    """What train.py composes from these overrides, for a set of photos where none is named."""
    from hydra import compose, initialize_config_dir

    from graft.command import prepare
    from graft.config import parse

    conf = CHECKOUT / "conf"
    given = prepare(list(overrides), now="now", conf=conf).argv
    with initialize_config_dir(str(conf), version_base="1.3"):
        return parse(compose("config", given))


def _cache(config: Config) -> Path:
    return Path(config.features.cache_dir).expanduser()


def _place(rest: Sequence[str]) -> Path:
    if len(rest) != 1:
        raise ConfigError("accepted: the run directory of a job, or of a sweep")
    return Path(rest[0].removeprefix("run_dir=")).expanduser()


def _ticket(run_dir: Path) -> Ticket:
    ticket = read_ticket(run_dir)
    if ticket is None:
        raise RunError(f"run_dir={run_dir} has no job.json: no job was submitted for it")
    return ticket


if __name__ == "__main__":
    with plain_errors():
        main(sys.argv[1:])
