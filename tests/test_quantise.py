"""int8: packed with what it costs, refused where it costs more than the margin."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from graft.artifacts import Export, network_digest, read_manifest, read_tensors, write_manifest
from graft.data.folder import scan
from graft.errors import RunError
from graft.export import export
from graft.inputs import InputSpec
from graft.quantise import compare, images_of, quantise, steps
from graft.stores import LocalStore
from serve.archive import opened
from serve.model import ServedModel
from serve.packing import pack
from tests.pictures import draw_folder

SPEC = InputSpec(32, 32)


FIGURES = {"valid_accuracy_fp32": 0.9, "valid_accuracy_int8": 0.89, "points_lost": 1.0, "valid_photos": 100.0}


@pytest.mark.slow
def test_a_network_in_int8_says_what_it_costs(packed_run: Path, tmp_path: Path) -> None:
    photos = scan(LocalStore(packed_run.parent / "photos"))
    # A small network of random weights suffers from int8 as no trained one does: 33 points.
    export(
        packed_run / "bundle",
        tmp_path / "model",
        lambda model, manifest: quantise(model, photos, manifest.input, photos=30, margin=100),
    )
    manifest = read_manifest(tmp_path / "model")
    assert manifest.export is not None
    assert manifest.export.precision == ServedModel.load(tmp_path / "model", threads=1).engine.precision == "int8"
    figures = manifest.export.figures
    assert (figures["calibration_photos"], figures["valid_photos"]) == (30, 21)
    lost = figures["valid_accuracy_fp32"] - figures["valid_accuracy_int8"]
    assert figures["points_lost"] == pytest.approx(100 * lost)
    weights = read_tensors(packed_run / "bundle").values()
    assert (tmp_path / "model" / "network.bin").stat().st_size < sum(array.nbytes for array in weights) / 2


def test_int8_is_packed_only_within_the_margin(
    packed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("graft.quantise.compare", lambda *_: FIGURES)
    monkeypatch.setattr("nncf.quantize", lambda model, *_, **__: model)
    archive = tmp_path / "int8.tar.gz"
    asked = [f"run_dir={packed_run}", f"output={archive}", "serve.precision=int8", "serve.int8_photos=4"]
    loss = "loses 1.00 points of accuracy on 100 valid photos (0.9000 to 0.8900)"
    message = f"serve.precision=int8 {loss}, more than serve.int8_margin=0.5; nothing was packed"
    with pytest.raises(RunError, match=re.escape(message)):
        pack(asked)
    assert not archive.exists()
    pack([*asked, "serve.int8_margin=1"])
    assert f"int8 {loss}" in capsys.readouterr().out
    with opened(archive) as folder:
        assert read_manifest(folder).export == Export(
            "int8", network_digest(folder), version("openvino"), {**FIGURES, "calibration_photos": 4.0}
        )


def test_a_run_that_a_job_trained_is_packed_with_the_photos_of_its_configuration(
    packed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graft.quantise.compare", lambda *_: FIGURES)
    monkeypatch.setattr("nncf.quantize", lambda model, *_, **__: model)
    shutil.copytree(packed_run / "bundle", tmp_path / "run" / "bundle")
    shutil.copy(packed_run / "config.yaml", tmp_path / "run")
    manifest = read_manifest(tmp_path / "run" / "bundle")
    data = {**manifest.data, "root": "/opt/ml/input/data/photos"}
    write_manifest(tmp_path / "run" / "bundle", replace(manifest, data=data))
    pack([f"run_dir={tmp_path / 'run'}", "serve.precision=int8", "serve.int8_photos=4", "serve.int8_margin=1"])
    assert (tmp_path / "run" / "model.tar.gz").exists()


def test_accuracies_are_counted_on_the_same_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    valid = scan(LocalStore(draw_folder(tmp_path, classes=3, valid=4))).valid
    # The first model says class 0 of every photo, the second class 1; a third of them is right each time.
    said = iter([lambda image: 0, lambda image: 1])
    monkeypatch.setattr("graft.quantise.classify", lambda model: next(said))
    found = compare(None, None, valid, SPEC, lambda count: None)
    assert found == pytest.approx(
        {
            "valid_accuracy_fp32": 1 / 3,
            "valid_accuracy_int8": 1 / 3,
            "points_lost": 0,
            "same_answer": 0,
            "valid_photos": 12,
        }
    )


def test_photos_are_the_same_each_time_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    folder = scan(LocalStore(draw_folder(tmp_path, classes=2, train=10)))
    first = [index for index, _ in images_of(folder.train, 5, SPEC)]
    assert first == sorted(set(first))
    assert first == [index for index, _ in images_of(folder.train, 5, SPEC)]
    assert len(first) == 5
    (tmp_path / folder.train.path(first[2])).write_bytes(b"no photo")
    again = [index for index, _ in images_of(folder.train, 5, SPEC)]
    assert again == [*first[:2], *first[3:]]
    shapes = {image.shape for _, image in images_of(folder.train, 99, SPEC)}
    assert shapes == {(32, 32, 3)}
    assert steps(folder, 5) == 5 + len(folder.valid)
