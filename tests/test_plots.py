"""The figures of a search: what they are drawn from when not all trials have come to their end."""

from __future__ import annotations

from pathlib import Path

from graft.command import Spread
from graft.search.plots import write_plots
from graft.search.space import Space
from graft.search.trials import Outcome, Record

SPACE = Space({"optim.lr": Spread((), 0.001, 0.1, log=True)}, {"optim.lr": 0.001})


def test_a_trial_whose_values_are_still_being_chosen_is_left_out(tmp_path: Path) -> None:
    records = [
        Record(0, {"optim.lr": 0.001}, Outcome("ok", 0.9, "", 1.0)),
        Record(1, {}, None),
        Record(2, {"optim.lr": 0.1}, Outcome("ok", 0.5, "", 1.0)),
    ]
    write_plots(tmp_path, SPACE, records, 2, "valid/loss", [])
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["curves", "history", "importance", "parallel"]
    assert "0.001 .. 0.1" in (tmp_path / "parallel.svg").read_text()
