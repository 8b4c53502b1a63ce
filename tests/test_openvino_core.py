"""One Core for a process: signals are handled whatever became of the engines, and OpenVINO is imported lightly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Engines are made here and given up by another thread; then a signal is handled, on this thread's own stack for that.
GIVEN_UP = """
import faulthandler, signal, threading
faulthandler.enable()

{make}

heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append("heard"))
engines = [make(), make()]
gone = threading.Thread(target=engines.clear)
gone.start()
gone.join()
signal.raise_signal(signal.SIGUSR1)
print(*heard)
"""
SERVED = """
from pathlib import Path
import numpy, openvino
from openvino import opset13
from serve.engines import OpenVinoEngine

pixels = opset13.parameter([-1, 4, 4, 3], numpy.uint8)
network = openvino.Model([opset13.add(opset13.convert(pixels, "f32"), numpy.float32(1))] * 2, [pixels])
openvino.save_model(network, "network.xml")
make = lambda: OpenVinoEngine(Path("network.xml"), "auto", 1, 1)
"""
FEATURES = """
from graft.features.engines import Normalised, make_engine
from graft.inputs import IMAGENET_MEAN, IMAGENET_STD
from tests.backbones import tiny_backbone

network = Normalised(tiny_backbone(), IMAGENET_MEAN, IMAGENET_STD).eval()
about = dict(engine="openvino", precision="fp32", device="cpu", batch_size=1, image_size=32)
make = lambda: make_engine(network, **about, receive=print)
"""


@pytest.mark.parametrize(
    "make", [pytest.param(SERVED, id="serve"), pytest.param(FEATURES, id="features", marks=pytest.mark.slow)]
)
def test_a_signal_is_handled_after_engines_went_out_of_turn(make: str, tmp_path: Path) -> None:
    assert run_alone(GIVEN_UP.format(make=make), tmp_path) == "heard"


def test_the_conversion_tool_is_left_out_and_stays_importable(tmp_path: Path) -> None:
    code = """
import sys
from graft.openvino_core import core
core()
print("openvino.tools.ovc" in sys.modules)
from openvino.tools.ovc import convert_model
"""
    assert run_alone(code, tmp_path) == "False"


def run_alone(code: str, folder: Path) -> str:
    """What a fresh process prints."""
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'src')!r}]\n"
    ended = subprocess.run([sys.executable, "-c", path + code], cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, (ended.returncode, ended.stderr)
    return ended.stdout.strip()
