"""The two things a run leaves: its run directory and the model bundle. Names, write, read; no torch."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from graft.errors import RunError
from graft.inputs import InputSpec
from graft.locks import held
from graft.storage import write_atomic, write_text

MANIFEST_VERSION = 1
# Keys (the beginnings of them) that change nothing of what a run comes to: it goes on, and is taken for the same, with
# other values of them.
WITHOUT_EFFECT = (
    *("run_dir", "overrides_from", "trainer.progress", "data.workers", "data.hint"),
    *("features.cache_dir", "features.max_gb"),
)
EXPORTED_NETWORK = "network.xml"  # in an unpacked model.tar.gz; its weights lie beside it in network.bin


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run. `run.json` says whether the run is finished and, if not, why.

    A process that is not the leader of its run has one that `writes` nothing.
    """

    path: Path
    run_id: str
    writes: bool = True

    @property
    def config(self) -> Path:
        """The composed configuration; `overrides_from` reads it back."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Flat JSON: metric name -> number."""
        return self.path / "metrics.json"

    @property
    def predictions(self) -> Path:
        """CSV: path, split, label, the five likeliest classes with their probabilities."""
        return self.path / "predictions.csv"

    @property
    def checkpoints(self) -> Path:
        """Lightning's checkpoints: best.ckpt and last.ckpt."""
        return self.path / "checkpoints"

    @property
    def bundle(self) -> Path:
        """The model as it is deployed."""
        return self.path / "bundle"

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run atomically, keys in the order given."""
        if self.writes:
            write_text(self.path / name, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def set_state(self, state: str, reason: str = "") -> None:
        """Record `unfinished`, `failed` (with its reason) or `finished`."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.write_json("run.json", {"id": self.run_id, "state": state, "reason": reason, "at": now})


@contextmanager
def open_run(path: Path, config_yaml: str, overrides: Sequence[str]) -> Iterator[RunDirectory]:
    """Hold a run directory for one process, new or left unfinished by the same configuration.

    The directory is locked while the run goes on; whatever ends the run without `finished` leaves
    it resumable, with the reason in `run.json`.

    Raises:
        RunError: the directory is finished, in use, not empty, not writable, or of another configuration.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"run_dir={path} cannot be made ({error.strerror}); accepted is a new or empty folder where you may write"
        ) from error
    with held(FileLock(path / ".lock"), busy=in_use(path)):
        run = _claim(path, config_yaml)
        write_text(run.config, config_yaml)
        run.write_json("overrides.json", list(overrides))
        try:
            yield run
        except BaseException as error:
            run.set_state(*ended_by(error))
            raise


def in_use(run_dir: Path | str) -> RunError:
    """What a process is told that wants the run directory of another."""
    return RunError(f"run_dir={run_dir} is in use by another process; give another run_dir")


def read_state(path: Path) -> dict[str, str]:
    """`id`, `state`, `reason` and `at` of a run directory; empty where there is no run."""
    try:
        state = json.loads((path / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in state.items()}


def record_failure(path: Path, reason: str) -> None:
    """Say of a run that never opened its directory why it did not."""
    if not read_state(path):
        path.mkdir(parents=True, exist_ok=True)
        RunDirectory(path, uuid.uuid4().hex).set_state("failed", reason)


def ended_by(error: BaseException) -> tuple[str, str]:
    """State and reason of a run that did not finish."""
    code = error.code if isinstance(error, SystemExit) else None
    if isinstance(error, KeyboardInterrupt) or code == 130:  # exit codes as a shell counts them
        return "unfinished", "stopped by Ctrl-C"
    if code in (129, 143):
        return "unfinished", f"stopped by {'SIGTERM' if code == 143 else 'SIGHUP'}"
    return "failed", f"{type(error).__name__}: {error}".splitlines()[0]


def _claim(path: Path, config_yaml: str) -> RunDirectory:
    state = read_state(path)
    if not state:
        _refuse_foreign(path)
        run = RunDirectory(path, uuid.uuid4().hex)
    elif state["state"] == "finished":
        raise RunError(f"run_dir={path} holds a finished run; give another run_dir, or delete that one")
    else:
        run = RunDirectory(path, state["id"])
        _refuse_other_config(run, config_yaml)
    run.set_state("unfinished")
    return run


def _refuse_foreign(path: Path) -> None:
    own = (".lock", ".run.json.")  # the latter is what a kill leaves of the first file
    foreign = sorted(entry.name for entry in os.scandir(path) if not entry.name.startswith(own))
    if foreign:
        raise RunError(f"run_dir={path} is no run directory: it holds {foreign[0]}; give a new or an empty one")


def _refuse_other_config(run: RunDirectory, config_yaml: str) -> None:
    if not run.config.exists():
        return
    if listed := differences(run.config.read_text(), config_yaml, WITHOUT_EFFECT):
        raise RunError(
            f"run_dir={run.path} holds an unfinished run of another configuration: {', '.join(listed)}; "
            "give the same configuration to resume it, or another run_dir"
        )


def differences(before_yaml: str, now_yaml: str, ignored: tuple[str, ...] = ()) -> list[str]:
    """The keys in which two config.yaml differ, in words; those that begin with something `ignored` do not count."""
    before, now = _dotted(before_yaml), _dotted(now_yaml)
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key) and not key.startswith(ignored)]
    return [f"{key}={before.get(key, 'absent')} there and {now.get(key, 'absent')} here" for key in keys]


def _dotted(config_yaml: str) -> dict[str, str]:
    """Dotted key -> value of a config.yaml: sections of keys, and values that may go on over several lines."""
    found: dict[str, str] = {}
    section = key = ""
    for line in config_yaml.splitlines():
        text = line.strip()
        if line.startswith("    ") or text.startswith("- "):
            found[key] = f"{found[key]} {text.removeprefix('- ')}".strip()
            continue
        name, _, value = text.partition(":")
        section = section if line.startswith(" ") else name
        key = f"{section}.{name}" if line.startswith(" ") else name
        found[key] = value.strip()
    return found


@dataclass(frozen=True)
class Doubts:
    """When an answer is doubted, and how often that is right; thresholds and rates come from valid.

    Attributes:
        probability: a calibrated probability of the likeliest class below this is unsure.
        distance: a photo further from the training photos (graft.novelty) than this is none of the classes; None
            where the run kept no features, and nothing tells.
        rates: name -> share in 0..1, as docs/serving.md explains them.
    """

    probability: float
    distance: float | None
    rates: dict[str, float]


@dataclass(frozen=True)
class Export:
    """The network that was exported beside a manifest, and what exporting it cost.

    Attributes:
        precision: fp32 or int8, of the weights in the file.
        sha256: of its two files together, hex.
        openvino: version that wrote it.
        figures: name -> number, as docs/serving.md explains them.
    """

    precision: str
    sha256: str
    openvino: str
    figures: dict[str, float]


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself: enough to rebuild the model and to judge it.

    `doubts` is None in bundles of releases before 0.2, `export` wherever nothing was exported.
    """

    backbone: str
    hidden: int
    class_names: tuple[str, ...]
    input: InputSpec
    temperature: float
    model_id: str
    weights: str
    weights_fingerprint: str
    trained_part: str
    feature_precision: str
    metrics: dict[str, float]
    data: dict[str, Any]
    git_sha: str
    created: str
    toy: bool = False
    doubts: Doubts | None = None
    export: Export | None = None
    version: int = MANIFEST_VERSION


@dataclass(frozen=True)
class ParitySample:
    """A photo as the server would receive it, and the logits the model gave for it.

    `logits` is float32 [C], from the fp32 torch model.
    """

    data: bytes
    logits: NDArray[np.float32]


def write_bundle(
    path: Path,
    manifest: Manifest,
    tensors: dict[str, NDArray[Any]],
    parity: Sequence[ParitySample],
    card: str,
) -> None:
    """Write model.safetensors, the parity samples and the card, and the manifest last."""
    from safetensors.numpy import save

    path.mkdir(parents=True, exist_ok=True)
    write_atomic(path / "model.safetensors", save(tensors))
    (path / "parity").mkdir(exist_ok=True)
    for number, sample in enumerate(parity):
        write_atomic(path / "parity" / f"{number:02d}.image", sample.data)
    logits = [[round(float(value), 6) for value in sample.logits] for sample in parity]
    write_text(path / "parity" / "logits.json", json.dumps(logits))
    write_text(path / "README.md", card)
    write_manifest(path, manifest)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest of a bundle, which makes it whole."""
    write_text(path / "manifest.json", json.dumps(asdict(manifest), indent=2, allow_nan=False) + "\n")


def network_digest(folder: Path) -> str:
    """SHA-256 of both files of an exported network, hex.

    Raises:
        RunError: one of them is missing.
    """
    network = folder / EXPORTED_NETWORK
    digest = hashlib.sha256()
    try:
        for path in (network, network.with_suffix(".bin")):
            with path.open("rb") as file:
                while part := file.read(1 << 20):  # in parts: a server has no memory for a second copy
                    digest.update(part)
    except OSError as error:
        raise RunError(f"{error.filename} cannot be read ({error.strerror}); pack the run again") from error
    return digest.hexdigest()


def read_manifest(path: Path) -> Manifest:
    """The manifest of a bundle.

    Raises:
        RunError: there is no bundle at `path`, or one of a version this release does not read.
    """
    try:
        content = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(
            f"{path} is no model bundle: manifest.json cannot be read ({reason}); accepted is the folder bundle/ of a "
            "finished run"
        ) from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != MANIFEST_VERSION:
        raise RunError(
            f"{path}/manifest.json: version {version}; accepted is {MANIFEST_VERSION}, which this release writes"
        )
    try:
        spec = content.pop("input")
        spec["mean"], spec["std"] = tuple(spec["mean"]), tuple(spec["std"])
        content["class_names"] = tuple(content["class_names"])
        for key, part in (("doubts", Doubts), ("export", Export)):
            content[key] = part(**content[key]) if content.get(key) else None
        return Manifest(input=InputSpec(**spec), **content)
    except (KeyError, TypeError) as error:
        raise RunError(f"{path}/manifest.json is not one of graft's: {error}") from error


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a bundle by name.

    Raises:
        RunError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}/model.safetensors cannot be read ({error}); copy the bundle again") from error


def read_parity(path: Path) -> list[ParitySample]:
    """The parity samples of a bundle.

    Raises:
        RunError: they were left out, or some of them are missing.
    """
    folder = path / "parity"
    files = sorted(folder.glob("*.image"))
    try:
        logits = json.loads((folder / "logits.json").read_text())
        pairs = zip(files, logits, strict=True)
        return [ParitySample(file.read_bytes(), np.asarray(row, np.float32)) for file, row in pairs]
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} has no whole set of parity samples ({error})") from error
