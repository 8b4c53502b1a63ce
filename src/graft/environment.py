"""What a run ran on: code, packages, hardware. For the record beside its figures."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "hydra-core",
    "openvino",
    "numpy",
    "pillow",
    "simplejpeg",
    "opencv-python-headless",
)


def describe_environment() -> dict[str, Any]:
    """Git sha, package versions, processor, GPU and operating system, as plain JSON values."""
    return {
        "git_sha": git_sha(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "gpu": _gpu(),
        "cores": os.cpu_count(),
        "argv": [without_passwords(argument) for argument in sys.argv],
    }


def without_passwords(text: str) -> str:
    """A text in which no URL tells its password, for files and errors: `search.storage` may have one."""
    # Where SQLAlchemy and libpq look for it: after the user's name, or among the parameters.
    text = re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s'\"]*", r"\1***", text)


def available_cores() -> int:
    """Cores that this process may use; its share of them where torchrun started several processes.

    All cores of the machine count where the system does not tell which are ours, as macOS.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def git_sha() -> str:
    """The commit of the code that runs, with `-dirty` where it was changed; `unknown` outside a checkout."""
    # An installed copy may lie in a .venv inside of somebody else's checkout, whose commit says nothing here.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return "unknown"
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or "unknown"


def _git(*command: str) -> str | None:
    """What git prints about the folder of this file; None where it fails or is not there."""
    try:
        done = subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str:
    from importlib import metadata  # with its parsers the slowest to import of all here

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _processor() -> str:
    """The processor's own name; `platform.processor()` says nothing on most Linux systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu() -> str | None:
    """Name and memory of the first GPU; None where torch sees none, or is not loaded."""
    torch = sys.modules.get("torch")  # never imported for this: this module is light
    if torch is None or not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
