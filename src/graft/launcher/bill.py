"""What a job was planned to cost, and what it cost: for the terminal, and for the pages of its run."""

from __future__ import annotations

import html
from pathlib import Path

from graft.launcher.ticket import Ticket
from graft.storage import write_text

# The page is made in the job, before its bill is known; graft.report leaves this in its head.
_MARK = "<!-- job -->"


def planned_and_actual(ticket: Ticket) -> str:
    """One line: what the job was planned to take, and what it took."""
    minutes, usd = ticket.planned_minutes, ticket.planned_usd
    planned = []
    if minutes:
        planned.append(f"{minutes[0]:.0f} .. {minutes[1]:.0f} minutes")
    if usd:
        planned.append(f"${usd[0]:.2f} .. ${usd[1]:.2f}")
    took = "an unknown time" if ticket.billed_seconds is None else f"{ticket.billed_seconds / 60:.1f} minutes"
    cost = "" if ticket.actual_usd is None else f", ${ticket.actual_usd:.2f}"
    before = f"; jobs before it: ${ticket.spent_usd:.2f}" if ticket.spent_usd else ""
    return f"billed: {took}{cost}; planned: {', '.join(planned) or 'nothing'}{before}"


def note_on_pages(ticket: Ticket, run_dir: Path) -> None:
    """Write the bill into the head of the report.html of a run, or of a search and of its best run, as far as there."""
    machines = f"{ticket.instances} x {ticket.instance_type}"
    line = html.escape(f"SageMaker job {ticket.name} on {machines}; {planned_and_actual(ticket)}")
    for page in (run_dir / "report.html", run_dir / "best" / "report.html"):
        if page.exists():
            write_text(page, page.read_text(encoding="utf-8").replace(_MARK, f'<p class="meta">{line}</p>', 1))
