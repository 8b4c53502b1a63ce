"""`python -m serve`: what each command prints, writes and refuses."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from graft.errors import ConfigError, DataError
from serve.__main__ import main
from serve.arguments import bundle_of, read_arguments
from serve.predicting import find_photos


def photos_of(packed_run: Path) -> Path:
    return packed_run.parent / "photos" / "test"


def test_a_folder_becomes_a_csv_that_says_what_the_run_said(
    packed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "said.csv"
    for bundle in ("bundle", "model.tar.gz"):
        main(["predict", str(photos_of(packed_run)), f"bundle={packed_run / bundle}", f"output={output}"])
        assert "12 photos answered, 0 not readable" in capsys.readouterr().out
        expected = csv.DictReader((packed_run / "predictions.csv").read_text().splitlines())
        of_test = [row for row in expected if row["split"] == "test"]
        found = list(csv.DictReader(output.read_text().splitlines()))
        assert [row["class_1"] for row in found] == [row["class_1"] for row in of_test]
        for row, other in zip(found, of_test, strict=True):
            assert float(row["probability_1"]) == pytest.approx(float(other["probability_1"]), abs=1e-4)


def test_what_is_no_photo_is_told_and_the_others_are_answered(
    packed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "a.jpg"
    shutil.copy(photos_of(packed_run) / "class_0" / "000.jpg", photo)
    broken = tmp_path / "b.jpg"
    broken.write_text("no photo")
    bundle = f"bundle={packed_run / 'model.tar.gz'}"
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(photo), str(broken), bundle, "--json", "serve.top_k=2"])
    assert ended.value.code == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["photo"], len(first["predictions"])) == (str(photo), 2)
    assert second["problem"].startswith("the photo cannot be read: 8 bytes starting b'no photo'")
    with pytest.raises(SystemExit):
        main(["predict", str(photo), str(broken), bundle])
    table = capsys.readouterr().out
    assert "class_" in table
    assert "cannot be read" in table
    with pytest.raises(SystemExit):
        main(["predict", str(tmp_path), bundle, f"output={tmp_path / 'said.csv'}"])
    rows = list(csv.DictReader((tmp_path / "said.csv").read_text().splitlines()))
    assert [bool(row["class_1"]) for row in rows] == [True, False]
    assert [bool(row["problem"]) for row in rows] == [False, True]


def test_check_says_that_a_model_is_whole(packed_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", f"bundle={packed_run / 'model.tar.gz'}"])
    assert "model.tar.gz: 3 classes, fp32, reproduces its parity samples" in capsys.readouterr().out


def test_bench_says_what_a_photo_takes(
    packed_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.bench.milliseconds", lambda work: [work(), 4.0][1])
    main(["bench", f"bundle={packed_run / 'model.tar.gz'}"])
    first, *sizes = capsys.readouterr().out.splitlines()
    assert first.endswith("model.tar.gz, fp32: 4.0 ms a photo in the engine, all cores")
    assert sizes[2] == "4000 x 3000: 4.0 ms to decode on one core; 125.0 photos/s one after the other"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["predcit"], "predcit is no command; accepted: pack, predict, local, check, bench, deploy, delete, list"),
        (["pack"], "run_dir is not set: the run whose model is packed; give run_dir=PATH"),
        (["pack", "run_dir=nowhere"], "run_dir=nowhere has no bundle; accepted is the directory of a finished run"),
        (["pack", "output"], "output is not accepted; accepted: run_dir=PATH, output=PATH, serve.KEY=VALUE"),
        (["predict"], "no photo is given; accepted: PHOTO..., or a folder of photos"),
        (["predict", "a.jpg", "--csv"], "--csv is not accepted; accepted: bundle=PATH, output=PATH, --json"),
        (["check", "bundle=nowhere"], "bundle=nowhere does not exist; accepted is a run's bundle/ or a model.tar.gz"),
        (["check", "serve.precision=fp16"], "serve.precision=fp16: accepted is auto, fp32, bf16 or int8"),
        (["check", "serve.thread=2"], "serve.thread is not a key of the configuration; the nearest: serve.threads"),
    ],
)
def test_a_wrong_command_line_is_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_the_latest_run_is_asked_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = read_arguments([], places=("bundle",))
    with pytest.raises(ConfigError, match=r"bundle is not set, and runs/ holds none"):
        bundle_of(arguments)
    for at, run in enumerate("ab"):
        manifest = tmp_path / "runs" / run / "bundle" / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.touch()
        os.utime(manifest, (at, at))
    assert bundle_of(arguments) == Path("runs/b/bundle")
    (tmp_path / "runs" / "b" / "model.tar.gz").touch()
    assert bundle_of(arguments) == Path("runs/b/model.tar.gz")
    search = Path("runs/search/best/bundle/manifest.json")
    search.parent.mkdir(parents=True)
    search.touch()
    os.utime(search, (3, 3))
    assert bundle_of(arguments) == Path("runs/search/best/bundle")


def test_a_photo_may_hold_an_equals_sign_and_a_misspelt_key_is_no_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bundle=x.jpg").touch()
    found = read_arguments(["bundle=x.jpg", "a.jpg", "bundle=runs/a"], places=("bundle",), words=True)
    assert (found.words, found.places) == (("bundle=x.jpg", "a.jpg"), {"bundle": Path("runs/a")})
    with pytest.raises(ConfigError, match=r"bundel=runs/a is not accepted; accepted: bundle=PATH, serve\.KEY=VALUE"):
        read_arguments(["a.jpg", "bundel=runs/a"], places=("bundle",), words=True)


def test_photos_are_found_below_folders_and_a_wrong_place_is_named(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/c.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found, folders = find_photos([tmp_path, tmp_path / "notes.txt"])
    assert [path.name for path in found] == ["c.jpg", "b.PNG", "notes.txt"]
    assert folders
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no photo; accepted are \.jpeg, \.jpg, \.png, \.webp"):
        find_photos([tmp_path / "empty"])
    with pytest.raises(DataError, match=r"nowhere\.jpg does not exist"):
        find_photos([tmp_path / "nowhere.jpg"])
