"""Real breeds from a run to an endpoint: the same answers, and a temple and a flower that are no dogs."""

from __future__ import annotations

import csv
import json
from importlib.resources import files
from pathlib import Path

import pytest

from graft.features.engines import resolve
from serve.__main__ import main
from tests.conftest import REAL_DATA
from tests.training import run

DOGS, WEIGHTS = REAL_DATA / "dogs", REAL_DATA / "weights" / "mobilenet_v2.pth"

pytestmark = [pytest.mark.real_data, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def dogs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 120 breeds, and its model.tar.gz."""
    return trained(tmp_path_factory.mktemp("dogs"), "features.precision=fp32")


def trained(root: Path, *overrides: str) -> Path:
    """The directory of a run on 120 breeds, whose model is packed."""
    place = (
        "data=folder",
        f"data.root={DOGS}",
        "model.backbone=mobilenet_v2",
        f"model.weights={WEIGHTS}",
        f"features.cache_dir={root / 'cache'}",
        "trainer.progress=false",
        f"run_dir={root / 'run'}",
    )
    result = run([*place, *overrides])
    main(["pack", f"run_dir={result.run_dir}"])
    return result.run_dir


def first_classes(dogs: Path, output: Path, *given: str) -> list[tuple[str, str]]:
    """What the run and what a served model says of each photo of test."""
    main(["predict", str(DOGS / "test"), f"output={output}", *given])
    rows = csv.DictReader((dogs / "predictions.csv").read_text().splitlines())
    expected = {row["path"]: row["class_1"] for row in rows if row["split"] == "test"}
    found = csv.DictReader(output.read_text().splitlines())
    return [(expected[row["path"]], row["class_1"]) for row in found]


def test_torch_says_of_every_photo_what_the_run_said(dogs: Path, tmp_path: Path) -> None:
    pairs = first_classes(dogs, tmp_path / "said.csv", f"bundle={dogs / 'bundle'}", "serve.engine=torch")
    assert len(pairs) == 720
    assert [said for _, said in pairs] == [expected for expected, _ in pairs]


def test_openvino_agrees_on_999_of_1000(dogs: Path, tmp_path: Path) -> None:
    pairs = first_classes(dogs, tmp_path / "said.csv", f"bundle={dogs / 'model.tar.gz'}", "serve.precision=fp32")
    assert sum(said == expected for expected, said in pairs) >= 0.999 * len(pairs)


@pytest.mark.skipif(resolve("auto", "auto", "cpu")[1] != "bf16", reason="needs a processor with bf16: else 20 minutes")
def test_a_run_in_bf16_is_served_alike(tmp_path: Path) -> None:
    run_dir = trained(tmp_path, "features.precision=bf16")
    archive = f"bundle={run_dir / 'model.tar.gz'}"
    pairs = first_classes(run_dir, tmp_path / "said.csv", archive, "serve.precision=fp32")
    assert sum(said == expected for expected, said in pairs) >= 0.99 * len(pairs)


def test_a_temple_and_a_flower_are_no_dogs(dogs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = [str(files("sklearn.datasets") / "images" / name) for name in ("china.jpg", "flower.jpg")]
    main(["predict", *photos, "--json", f"bundle={dogs / 'model.tar.gz'}"])
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["not_one_of_these"] for answer in said] == [True, True]


def test_the_rates_of_doubt_stand_in_the_manifest(dogs: Path) -> None:
    rates = json.loads((dogs / "bundle" / "manifest.json").read_text())["doubts"]["rates"]
    assert rates["valid/refused"] == pytest.approx(0.05, abs=0.01)
    assert rates["valid/unsure_wrong"] > 2 * rates["valid/unsure_right"]
    assert rates["valid/sure_right"] > 0.9
    assert rates["held_out/refused"] > 0.15
