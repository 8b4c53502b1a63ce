"""What a rule of the debugger is: a pure function over the records of a run."""

from __future__ import annotations

from graft import diagnosis
from graft.debugger.records import Records
from graft.diagnosis import Verdict

__all__ = ["Rule", "Verdict"]

Rule = diagnosis.Rule[Records]
