"""OpenVINO's Core: one for the whole process, which is never given up."""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino as ov

# Threads are bound to the first cores otherwise, those of every process to the same.
UNBOUND = {"ENABLE_CPU_PINNING": "NO"}


@cache
def core() -> ov.Core:
    """The one Core.

    Its CPU plugin gives the thread that loads it a stack for signal handlers, and takes it back in the thread that ends
    it (OpenVINO 2026.4). Where that is another one, or where a second Core came and went out of turn, the next signal
    that has a handler is handled on memory that is no more: the process ends at once, silently.
    """
    return _openvino().Core()


def has_bf16() -> bool:
    """Whether the CPU computes in bf16; where it does not, bf16 is slower than fp32 (0.7 to 0.8 times)."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _openvino() -> ModuleType:
    """OpenVINO without its conversion tool, which takes 0.1 s to import and reports its use to its makers meanwhile."""
    tool = "openvino.tools.ovc"
    if "openvino" not in sys.modules:
        sys.modules[tool] = None  # type: ignore[assignment]  # importing it fails, for which openvino is prepared
    import openvino

    if sys.modules.get(tool, openvino) is None:
        del sys.modules[tool]  # the tool itself stays importable
    found: ModuleType = openvino
    return found
