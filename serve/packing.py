"""`python -m serve pack run_dir=PATH`: the model of a run as model.tar.gz, its parity samples checked on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from graft.artifacts import Manifest, read_manifest
from graft.config import ServeConfig, ServingPrecision
from graft.errors import ConfigError, RunError
from graft.storage import is_remote
from graft.terminal import progress_bar, say
from serve.archive import code_files, opened, write_archive
from serve.arguments import read_arguments
from serve.model import ServedModel

if TYPE_CHECKING:
    import openvino as ov

    from graft.quantise import Quantised

ARCHIVE = "model.tar.gz"  # of a run, in its directory


def pack(argv: Sequence[str]) -> None:
    """Export, check and archive the model of the run that the command line names."""
    arguments = read_arguments(argv, places=("run_dir", "output"))
    if "run_dir" not in arguments.places:
        raise ConfigError("run_dir is not set: the run whose model is packed; give run_dir=PATH")
    run_dir = arguments.places["run_dir"]
    archive = arguments.places.get("output", run_dir / ARCHIVE)
    pack_run(run_dir, archive, arguments.config)
    print(f"next: python -m serve predict PHOTO bundle={archive}")


def archive_of_run(run_dir: Path, config: ServeConfig) -> Path:
    """model.tar.gz of a run: as it was packed before where that is what is asked for, else packed now.

    Raises:
        RunError: there is no bundle, or it cannot be packed so.
    """
    archive = run_dir / ARCHIVE
    if archive.exists():
        reason = _why_not_kept(archive, run_dir / "bundle", config)
        if not reason:
            say(f"{archive} was packed from this run before; it is taken as it is")
            return archive
        say(f"{archive} is replaced: {reason}")
    pack_run(run_dir, archive, config)
    return archive


def _why_not_kept(archive: Path, bundle: Path, config: ServeConfig) -> str:
    """What an archive is otherwise than packing the bundle would make it; empty where it serves."""
    try:
        with opened(archive) as folder:
            manifest, code = read_manifest(folder), code_files()
            is_current = all((folder / name).is_file() and (folder / name).read_bytes() == code[name] for name in code)
    except RunError as error:
        return str(error)
    packed, asked = manifest.export, config.precision
    if packed is None or replace(manifest, export=None) != read_manifest(bundle):
        return "it holds another model than the run"
    if not is_current:
        return "another release packed it"
    if asked is not ServingPrecision.auto and (packed.precision == "int8") != (asked is ServingPrecision.int8):
        return f"it was packed in {packed.precision}, and serve.precision={asked.value} is asked for"
    return _other_int8(packed.figures, config) if packed.precision == "int8" else ""


def _other_int8(figures: dict[str, float], config: ServeConfig) -> str:
    """What was quantised otherwise than is asked for; empty where it serves."""
    if figures["points_lost"] > config.int8_margin:
        return (
            f"int8 lost {figures['points_lost']:.2f} points, and serve.int8_margin={config.int8_margin:g} is asked for"
        )
    if config.int8_photos not in (ServeConfig().int8_photos, figures["calibration_photos"]):
        photos = f"{figures['calibration_photos']:.0f} photos"
        return f"int8 was calibrated on {photos}, and serve.int8_photos={config.int8_photos} is asked for"
    return ""


def pack_run(run_dir: Path, archive: Path, config: ServeConfig) -> None:
    """Export, check and archive the model of a run; says where it lies.

    Raises:
        RunError: there is no bundle, or it cannot be packed so.
    """
    if not (run_dir / "bundle" / "manifest.json").exists():
        raise RunError(f"run_dir={run_dir} has no bundle; accepted is the directory of a finished run")
    from graft.export import export

    int8 = config.precision is ServingPrecision.int8
    with tempfile.TemporaryDirectory(prefix="graft-pack-") as temporary:
        folder = Path(temporary) / "model"
        export(run_dir / "bundle", folder, partial(_quantised, run_dir, config) if int8 else None)
        model = ServedModel.load(folder, engine="openvino", precision="int8" if int8 else "fp32")
        difference = model.check_parity()
        write_archive(folder, archive)
        figures = model.manifest.export.figures if model.manifest.export else {}
    size = archive.stat().st_size / 1e6
    print(f"packed {archive} ({size:.1f} MB, {model.engine.precision}); parity samples differ by {difference:.1g}")
    if figures:
        from graft.quantise import in_words

        print(f"int8 loses {in_words(figures)}")


def _quantised(run_dir: Path, config: ServeConfig, model: ov.Model, manifest: Manifest) -> Quantised:
    """The network in int8, calibrated and judged on the photos of the run."""
    from graft.data.folder import scan
    from graft.data.stores import open_store
    from graft.quantise import quantise, steps

    folder = scan(open_store(photos_of(run_dir, manifest), "data.root"))
    with progress_bar("int8", steps(folder, config.int8_photos)) as advance:
        return quantise(
            model, folder, manifest.input, photos=config.int8_photos, margin=config.int8_margin, advance=advance
        )


def photos_of(run_dir: Path, manifest: Manifest) -> str:
    """Where the photos of a run are: as its manifest says, else as its config.yaml or that of its search does.

    The manifest of a job once had the place that its machine had the photos at; the fetched config.yaml has the one
    that the user gave. Where none of them is there, it is the manifest's.
    """
    of_manifest: str = manifest.data["root"]
    of_configs = (_root_in(folder / "config.yaml") for folder in (run_dir, run_dir.parent))
    there = (root for root in chain([of_manifest], of_configs) if root and (is_remote(root) or Path(root).is_dir()))
    return next(there, of_manifest)


def _root_in(path: Path) -> str | None:
    """data.root of a config.yaml; None where there is no such file, or it is not graft's."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    data = content.get("data") if isinstance(content, dict) else None
    return data.get("root") if isinstance(data, dict) else None
