"""What all tests share: where real photos lie, and the skip where they are absent."""

from __future__ import annotations

import gc
import os
import signal
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest

# As train.py has it, and before torch is loaded: the tests of another process share the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
# SageMaker's training toolkit: `make toolkit` builds its environment, VENV_TOOLKIT names another one.
TOOLKIT = Path(os.environ.get("VENV_TOOLKIT", ".venv-toolkit")).absolute() / "bin" / "train"


def pytest_configure() -> None:
    """Heed Ctrl-C and SIGHUP, also where a shell, or nohup, has them ignored: some tests send them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests, with the reason in the summary, where what they need is not there; slow ones have more time."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))
    needs = {
        "real_data": (REAL_DATA.is_dir(), f"needs real photos and weights in {REAL_DATA}"),
        "toolkit": (TOOLKIT.exists(), f"needs SageMaker's training toolkit in {TOOLKIT}: make toolkit"),
        "torchserve": (
            "GRAFT_TORCHSERVE" in os.environ and which("java") is not None,
            "needs AWS's serving stack, and Java: make test-torchserve",
        ),
        "smdebug": (find_spec("smdebug") is not None, "needs smdebug: make test-smdebug"),
    }
    for marker, (is_there, reason) in needs.items():
        for item in items:
            if not is_there and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """What is imported by now stays: looking for garbage in it takes a twentieth of the time of all tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def packed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on tiny photos, beside them in photos/: its bundle/ and its model.tar.gz."""
    # Imported here: tests that pack nothing are not to load torch.
    from serve.packing import pack
    from tests.pictures import draw_folder
    from tests.training import run, tiny

    root = tmp_path_factory.mktemp("packed")
    photos = draw_folder(root / "photos", train=16, valid=7, test=4)
    result = run(tiny(photos, root / "run"))
    pack([f"run_dir={result.run_dir}"])
    return result.run_dir
