"""`python -m serve pack run_dir=PATH`: the model of a run as model.tar.gz, its parity samples checked on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from graft.artifacts import Manifest
from graft.config import ServeConfig, ServingPrecision
from graft.errors import ConfigError, RunError
from graft.terminal import progress_bar
from serve.archive import write_archive
from serve.arguments import read_arguments
from serve.model import ServedModel

if TYPE_CHECKING:
    import openvino as ov

    from graft.quantise import Quantised


def pack(argv: Sequence[str]) -> None:
    """Export, check and archive the model of a run; says where it lies."""
    arguments = read_arguments(argv, places=("run_dir", "output"))
    if "run_dir" not in arguments.places:
        raise ConfigError("run_dir is not set: the run whose model is packed; give run_dir=PATH")
    run_dir = arguments.places["run_dir"]
    archive = arguments.places.get("output", run_dir / "model.tar.gz")
    if not (run_dir / "bundle" / "manifest.json").exists():
        raise RunError(f"run_dir={run_dir} has no bundle; accepted is the directory of a finished run")
    from graft.export import export

    int8 = arguments.config.precision is ServingPrecision.int8
    with tempfile.TemporaryDirectory(prefix="graft-pack-") as temporary:
        folder = Path(temporary) / "model"
        export(run_dir / "bundle", folder, partial(_quantised, arguments.config) if int8 else None)
        model = ServedModel.load(folder, engine="openvino", precision="int8" if int8 else "fp32")
        difference = model.check_parity()
        write_archive(folder, archive)
        figures = model.manifest.export.figures if model.manifest.export else {}
    size = archive.stat().st_size / 1e6
    print(f"packed {archive} ({size:.1f} MB, {model.engine.precision}); parity samples differ by {difference:.1g}")
    if figures:
        from graft.quantise import in_words

        print(f"int8 loses {in_words(figures)}")
    print(f"next: python -m serve predict PHOTO bundle={archive}")


def _quantised(config: ServeConfig, model: ov.Model, manifest: Manifest) -> Quantised:
    """The network in int8, calibrated and judged on the photos of the run."""
    from graft.data.folder import scan
    from graft.data.stores import open_store
    from graft.quantise import quantise, steps

    folder = scan(open_store(manifest.data["root"], "data.root"))
    with progress_bar("int8", steps(folder, config.int8_photos)) as advance:
        return quantise(
            model, folder, manifest.input, photos=config.int8_photos, margin=config.int8_margin, advance=advance
        )
