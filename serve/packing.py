"""`python -m serve pack run_dir=PATH`: the model of a run as model.tar.gz, its parity samples checked on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from graft.errors import ConfigError, RunError
from serve.archive import write_archive
from serve.arguments import read_arguments
from serve.model import ServedModel


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

    with tempfile.TemporaryDirectory(prefix="graft-pack-") as temporary:
        folder = Path(temporary) / "model"
        export(run_dir / "bundle", folder)
        model = ServedModel.load(folder, engine="openvino", precision="fp32", threads=arguments.config.threads)
        difference = model.check_parity()
        write_archive(folder, archive)
    size = archive.stat().st_size / 1e6
    print(f"packed {archive} ({size:.1f} MB, {model.engine.precision}); parity samples differ by {difference:.1g}")
    print(f"next: python -m serve predict PHOTO bundle={archive}")
