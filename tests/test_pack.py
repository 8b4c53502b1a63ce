"""From a run to model.tar.gz and back: the same model, the same bytes, and nothing unpacked where it must not be."""

from __future__ import annotations

import ast
import errno
import gzip
import io
import json
import mmap
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from graft.artifacts import read_manifest, read_parity, write_manifest
from graft.config import ServeConfig
from graft.errors import ConfigError, RunError
from graft.images import render
from serve import packing
from serve.archive import opened, opened_meanwhile, unpack, write_archive
from serve.arguments import read_arguments
from serve.engines import DROP_EVERY_S, dropping_pages, load_engine
from serve.model import ServedModel, check_parity, softmax
from serve.packing import archive_of_run, photos_of
from tests.cores import bound_threads
from tests.pictures import draw_folder
from tests.serving import wait_for
from tests.training import run, tiny

in_linux = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc/self/smaps")
HEAVY = ("torch", "torchvision", "pytorch_lightning", "lightning", "hydra", "omegaconf", "boto3", "botocore", "optuna")
# What SageMaker's toolkit does, in a process that sees the archive's code alone.
ALONE = """
import sys
folder, photo = sys.argv[1:]
sys.path[:] = [path for path in sys.path if "site-packages" in path or "lib" in path]
sys.path.insert(0, folder + "/code")
import inference
assert sys.modules["serve.handler"].__file__.startswith(folder), sys.modules["serve.handler"].__file__
assert sys.modules["graft.images"].__file__.startswith(folder)

class Context:
    status = 200
    def set_response_status(self, code, phrase):
        self.status = code

model, context = inference.model_fn(folder), Context()
body, kind = inference.transform_fn(model, open(photo, "rb").read(), "image/jpeg", "application/json", context)
print(body.decode())
body, kind = inference.transform_fn(model, b"no photo", "image/jpeg", "application/json", context)
print(context.status, body.decode())
print(*sys.modules)
"""


# Of Python 3.12 and later, about opened_meanwhile: these tests have threads by then, a server has none.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

Opening = Callable[[Path], AbstractContextManager[Path]]


@contextmanager
def waited_for(archive: Path) -> Iterator[Path]:
    """`opened_meanwhile` in the shape of `opened`."""
    with opened_meanwhile(archive) as wait:
        yield wait()


@pytest.fixture
def unpacked(packed_run: Path, tmp_path: Path) -> Path:
    unpack(packed_run / "model.tar.gz", tmp_path / "model")
    return tmp_path / "model"


def pixels_of(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    samples, spec = read_parity(folder), read_manifest(folder).input
    images = np.stack([render(sample.data, spec).pixels for sample in samples])
    return images, np.stack([sample.logits for sample in samples])


def test_both_engines_give_the_logits_of_the_run(packed_run: Path, unpacked: Path) -> None:
    images, expected = pixels_of(unpacked)
    for folder, name in ((unpacked, "openvino"), (packed_run / "bundle", "torch")):
        model = ServedModel.load(folder, engine=name, precision="fp32", threads=1)
        logits, features = model.engine.run(images)
        np.testing.assert_allclose(logits, expected, atol=1e-4)
        assert features.shape == (len(images), 512)
        # Any number at a time: an export at a fixed one would answer one row, or all alike.
        np.testing.assert_allclose(model.engine.run(images[:1])[0], expected[:1], atol=1e-4)
        np.testing.assert_allclose(model.engine.run(images[:5])[0], expected[:5], atol=1e-4)
        assert model.check_parity() < 1e-3


def test_no_thread_of_a_served_model_is_bound_to_a_core(unpacked: Path) -> None:
    images, _ = pixels_of(unpacked)
    ServedModel.load(unpacked, threads=1).engine.run(images)
    assert bound_threads() == []


def test_features_of_both_engines_are_the_same(packed_run: Path, unpacked: Path) -> None:
    images, _ = pixels_of(unpacked)
    exported = ServedModel.load(unpacked, threads=1).engine.run(images)[1]
    reference = ServedModel.load(packed_run / "bundle", threads=1).engine.run(images)[1]
    np.testing.assert_allclose(exported, reference, atol=1e-4)


def test_answers_are_calibrated_and_name_the_classes(unpacked: Path) -> None:
    images, expected = pixels_of(unpacked)
    model = ServedModel.load(unpacked, threads=1)
    answers = model.predict(images)
    temperature = np.float32(read_manifest(unpacked).temperature)
    np.testing.assert_allclose(
        np.stack([answer.probabilities for answer in answers]),
        softmax((expected / temperature).astype(np.float32)),
        atol=1e-4,
    )
    assert model.labels == ("class_0", "class_1", "class_2")
    assert answers[0].top(1)[0]["label"] == model.labels[int(expected[0].argmax())]


def test_a_model_of_two_classes_answers(tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "photos", classes=2)
    bundle = run(tiny(photos, tmp_path / "run")).run_dir / "bundle"
    images, expected = pixels_of(bundle)
    answers = ServedModel.load(bundle, threads=1).predict(images)
    assert [answer.top(1)[0]["index"] for answer in answers] == expected.argmax(axis=1).tolist()
    assert not any(answer.not_one_of_these for answer in answers)
    # As earlier releases wrote it.
    manifest = read_manifest(bundle)
    assert manifest.doubts is not None
    write_manifest(bundle, replace(manifest, doubts=replace(manifest.doubts, distance=0.0)))
    assert not any(answer.not_one_of_these for answer in ServedModel.load(bundle, threads=1).predict(images))


def test_a_run_says_when_its_answers_are_doubted(packed_run: Path) -> None:
    doubts = read_manifest(packed_run / "bundle").doubts
    assert doubts is not None
    assert doubts.distance is not None
    # Three classes are too few to hold one out.
    assert "held_out/refused" not in doubts.rates
    assert doubts.rates["valid/refused"] == pytest.approx(1 / 21)


def test_softmax_is_that_of_large_numbers_too() -> None:
    np.testing.assert_allclose(softmax(np.array([[1000, 1000 + np.log(3)]], np.float32)), [[0.25, 0.75]], atol=1e-4)


def test_the_archive_holds_what_an_endpoint_needs_and_no_second_copy_of_the_weights(packed_run: Path) -> None:
    with tarfile.open(packed_run / "model.tar.gz") as tar:
        entries = tar.getmembers()
    names = [entry.name for entry in entries]
    assert {"manifest.json", "network.xml", "network.bin", "novelty.safetensors", "code/inference.py"} <= set(names)
    assert "model.safetensors" not in names
    assert names == sorted(names)
    assert {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.mode) for entry in entries} == {(0, 0, 0, "", 0o644)}
    assert read_manifest_of(packed_run)["export"]["precision"] == "fp32"


def test_the_packages_in_the_archive_are_those_that_its_code_imports(unpacked: Path) -> None:
    pins = (unpacked / "code" / "requirements.txt").read_text().splitlines()
    assert f"openvino=={version('openvino')}" in pins
    names = {"cv2": "opencv-python-headless", "PIL": "pillow"}
    trees = [ast.parse(path.read_text()) for path in (unpacked / "code").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    packages = (
        {name.partition(".")[0] for name in imported}
        - sys.stdlib_module_names
        - {
            *("graft", "serve", "torch"),
            "sagemaker_inference",  # of the stack that loads the code, where it is that one
        }
    )
    assert {names.get(package, package) for package in packages} == {pin.partition("==")[0] for pin in pins}


def read_manifest_of(run_dir: Path) -> dict[str, dict[str, str]]:
    with tarfile.open(run_dir / "model.tar.gz") as tar:
        file = tar.extractfile("manifest.json")
        assert file is not None
        content: dict[str, dict[str, str]] = json.load(file)
        return content


def test_the_same_model_gives_the_same_bytes(packed_run: Path, unpacked: Path) -> None:
    shutil.rmtree(unpacked / "code")
    write_archive(unpacked, unpacked.parent / "again.tar.gz")
    assert (unpacked.parent / "again.tar.gz").read_bytes() == (packed_run / "model.tar.gz").read_bytes()


def test_the_archive_alone_answers_a_photo_and_loads_nothing_heavy(unpacked: Path, packed_run: Path) -> None:
    photo = next((packed_run.parent / "photos" / "test" / "class_1").glob("*.jpg"))
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(unpacked), str(photo)],
        capture_output=True,
        text=True,
        cwd=unpacked,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    answer, refusal, modules = done.stdout.splitlines()
    said = json.loads(answer)
    assert said["model"] == read_manifest(unpacked).model_id
    assert {row["label"] for row in said["predictions"]} == {"class_0", "class_1", "class_2"}
    assert refusal.startswith('400 {"error": {"status": 400')
    assert not [name for name in HEAVY if name in modules.split()]


def with_export(archive: Path, **changes: Any) -> None:
    """Have the archive of a run say something else of its network."""
    with opened(archive) as folder:
        manifest = read_manifest(folder)
        assert manifest.export is not None
        write_manifest(folder, replace(manifest, export=replace(manifest.export, **changes)))
        write_archive(folder, archive)


def test_photos_are_where_the_user_said_though_the_job_that_trained_had_them_elsewhere(
    packed_run: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(packed_run / "bundle")
    photos = manifest.data["root"]
    assert photos_of(packed_run, manifest) == photos
    of_job = replace(manifest, data={**manifest.data, "root": "/opt/ml/input/data/photos"})
    assert photos_of(packed_run, of_job) == photos
    best = tmp_path / "search" / "best"
    best.mkdir(parents=True)
    assert photos_of(best, of_job) == "/opt/ml/input/data/photos"  # what is looked for, where nothing is there
    (tmp_path / "search" / "config.yaml").write_text("not of graft\n")
    assert photos_of(best, of_job) == "/opt/ml/input/data/photos"
    # Of a search that was a job, the best run's own file came from the job too.
    (best / "config.yaml").write_text("data:\n  root: /opt/ml/input/data/photos\n")
    (tmp_path / "search" / "config.yaml").write_text("data:\n  root: s3://b/photos\n")
    assert photos_of(best, of_job) == "s3://b/photos"


INT8 = {"precision": "int8", "figures": {"points_lost": 0.4, "calibration_photos": 48.0}}
TAKEN = "was packed from this run before; it is taken as it is"


@pytest.mark.parametrize(
    ("packed", "keys", "said"),
    [
        ({}, (), TAKEN),
        ({}, ("precision=bf16",), TAKEN),
        ({}, ("precision=int8",), "is replaced: it was packed in fp32, and serve.precision=int8 is asked for"),
        (INT8, ("precision=fp32",), "is replaced: it was packed in int8, and serve.precision=fp32 is asked for"),
        (INT8, (), TAKEN),
        (INT8, ("int8_photos=48",), TAKEN),
        (
            INT8,
            ("int8_photos=40",),
            "is replaced: int8 was calibrated on 48 photos, and serve.int8_photos=40 is asked for",
        ),
        (INT8, ("int8_margin=0.1",), "is replaced: int8 lost 0.40 points, and serve.int8_margin=0.1 is asked for"),
    ],
)
def test_what_was_packed_before_is_taken_where_it_is_what_is_asked_for(
    packed_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    packed: dict[str, Any],
    keys: tuple[str, ...],
    said: str,
) -> None:
    archive = tmp_path / "model.tar.gz"
    shutil.copytree(packed_run / "bundle", tmp_path / "bundle")
    shutil.copy(packed_run / "model.tar.gz", archive)
    with_export(archive, **packed)
    anew: list[ServeConfig] = []
    monkeypatch.setattr(packing, "pack_run", lambda run_dir, archive, config: anew.append(config))
    config = read_arguments([f"serve.{key}" for key in keys], places=()).config
    assert archive_of_run(tmp_path, config) == archive
    assert capsys.readouterr().err == f"{archive} {said}\n"
    assert anew == ([] if said == TAKEN else [config])  # all keys of packing are passed on


def test_what_was_packed_of_another_model_or_release_or_is_damaged_is_replaced(
    packed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "model.tar.gz"
    shutil.copytree(packed_run / "bundle", tmp_path / "bundle")
    monkeypatch.setattr(packing, "pack_run", lambda run_dir, archive, config: None)
    shutil.copy(packed_run / "model.tar.gz", archive)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "code_files", lambda: {"code/inference.py": b"of another release"})
        archive_of_run(tmp_path, ServeConfig())
    write_manifest(tmp_path / "bundle", replace(read_manifest(tmp_path / "bundle"), model_id="another"))
    archive_of_run(tmp_path, ServeConfig())
    archive.write_bytes(b"no archive")
    archive_of_run(tmp_path, ServeConfig())
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"{archive} is replaced: another release packed it"
    assert said[1] == f"{archive} is replaced: it holds another model than the run"
    assert said[2].startswith(f"{archive} is replaced: {archive} cannot be unpacked (")


def test_a_network_that_was_exchanged_is_refused(unpacked: Path) -> None:
    (unpacked / "network.bin").write_bytes(b"\0" * (unpacked / "network.bin").stat().st_size)
    with pytest.raises(RunError, match=r"holds another network than manifest\.json says; copy or pack the model again"):
        ServedModel.load(unpacked)


@pytest.mark.parametrize("content", [b"", b"\0" * 100], ids=["empty", "cut"])
def test_a_network_whose_weights_are_cut_off_is_refused(unpacked: Path, content: bytes) -> None:
    (unpacked / "network.bin").write_bytes(content)
    with pytest.raises(RunError, match=r"holds another network than manifest\.json says"):
        ServedModel.load(unpacked)
    with pytest.raises(RunError, match=r"network\.xml cannot be read \(.+\); pack the run again"):
        load_engine(unpacked, "openvino", exported="fp32", precision="fp32", threads=1)


@in_linux
def test_the_file_of_the_weights_leaves_memory_once_they_are_packed(
    unpacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, expected = pixels_of(unpacked)
    engine = load_engine(unpacked, "openvino", exported="fp32", precision="fp32", threads=1)
    assert resident(unpacked / "network.bin") > 0  # compiling has read them
    first = engine.run(images[:1])[0]
    assert resident(unpacked / "network.bin") == 0
    monkeypatch.setattr("serve.engines.dropping_pages", None)  # of the first call alone
    assert np.array_equal(engine.run(images[:1])[0], first)
    # Another shape may be packed anew, from the file.
    assert np.allclose(engine.run(images)[0], expected, atol=1e-3 * float(np.abs(expected).max()))


@in_linux
def test_pages_are_dropped_while_the_file_is_read(tmp_path: Path) -> None:
    path, content = tmp_path / "file", bytes(range(256)) * 4096
    path.write_bytes(content)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        with dropping_pages(mapped):
            assert mapped[:] == content
            until = time.monotonic() + 10
            while resident(path) and time.monotonic() < until:
                time.sleep(0.01)
            assert resident(path) == 0
            assert mapped[:] == content  # read again
        assert resident(path) == 0


def test_memory_that_may_not_be_dropped_is_kept() -> None:
    class Locked:
        def madvise(self, option: int) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    with dropping_pages(cast(mmap.mmap, Locked())):
        time.sleep(3 * DROP_EVERY_S)
    assert not [thread for thread in threading.enumerate() if thread.name == "pages"]


def resident(path: Path) -> int:
    """How much of a mapped file is in memory, in kB over all its mappings."""
    sections = Path("/proc/self/smaps").read_text().split(f" {path}\n")[1:]
    assert sections
    return sum(int(section.partition("Rss:")[2].split()[0]) for section in sections)


def test_logits_that_are_others_than_the_samples_say_are_refused(tmp_path: Path) -> None:
    expected = [np.array([3, 4], np.float32), np.array([0, 5], np.float32)]
    # 0.5 apart, of length 5: a tenth.
    found = np.array([[3, 4], [0, 5.5]], np.float32)
    message = "the fp32 engine does not reproduce parity sample 01: logits differ by 0.1 of their length"
    with pytest.raises(RunError, match=message):
        check_parity(tmp_path, "fp32", found, expected)
    assert check_parity(tmp_path, "int8", found, expected) == pytest.approx(0.1)
    with pytest.raises(RunError, match="does not reproduce parity sample 00"):
        check_parity(tmp_path, "int8", np.full((2, 2), np.nan, np.float32), expected)


def test_precisions_that_a_model_does_not_offer_are_refused(packed_run: Path, unpacked: Path) -> None:
    with pytest.raises(ConfigError, match="was exported in fp32, which serves auto or fp32 or bf16"):
        load_engine(unpacked, "openvino", exported="fp32", precision="int8", threads=1)
    with pytest.raises(ConfigError, match=r"serve\.engine=torch computes in fp32 alone"):
        load_engine(packed_run / "bundle", "torch", exported=None, precision="bf16", threads=1)
    with pytest.raises(ConfigError, match=r"serve\.engine=torch: .* was packed, which serves openvino"):
        ServedModel.load(unpacked, engine="torch")
    with pytest.raises(RunError, match=r"holds no exported network, which serve\.engine=openvino needs"):
        ServedModel.load(packed_run / "bundle", engine="openvino")


def archive_of(path: Path, entry: tarfile.TarInfo, content: bytes = b"") -> Path:
    entry.size = len(content)
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(entry, io.BytesIO(content))
    return path


def linked(kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo("link")
    entry.type, entry.linkname = kind, "/etc/passwd"
    return entry


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (tarfile.TarInfo("../outside"), "would be extracted to"),
        (tarfile.TarInfo("a/../../outside"), "would be extracted to"),
        (linked(tarfile.SYMTYPE), "its entry 'link' is no plain file"),
        (linked(tarfile.LNKTYPE), "its entry 'link' is no plain file"),
        (linked(tarfile.CHRTYPE), "its entry 'link' is no plain file"),
    ],
)
def test_what_leads_out_of_the_folder_is_not_unpacked(tmp_path: Path, entry: tarfile.TarInfo, message: str) -> None:
    archive = archive_of(tmp_path / "model.tar.gz", entry)
    with pytest.raises(RunError, match=message):
        unpack(archive, tmp_path / "in" / "model")
    assert not list(tmp_path.rglob("outside"))


@pytest.mark.parametrize("opening", [opened, waited_for])
def test_a_damaged_archive_is_refused(tmp_path: Path, packed_run: Path, opening: Opening) -> None:
    whole = (packed_run / "model.tar.gz").read_bytes()
    no_deflate = whole[:10] + b"\xff" + whole[11:]
    at = whole.index(b"class_1")
    other_name = whole[:at] + b"klass_1" + whole[at + 7 :]
    # Of an entry that is not the first: tarfile takes it for the end.
    header = whole.index(b"network.xml")
    cut_short = whole[:header] + b"n3twork.xml" + whole[header + 11 :]
    longer = gzip.compress(gzip.decompress(whole) + bytes(1 << 20))
    contents = (b"", b"no archive", whole[: len(whole) // 2], no_deflate, other_name, cut_short, longer)
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.tar.gz").write_bytes(content)
        with pytest.raises(RunError, match="cannot be unpacked"), opening(tmp_path / f"{number}.tar.gz"):
            pass


@pytest.mark.parametrize("opening", [opened, waited_for])
def test_an_archive_is_open_in_a_folder_that_goes_again(packed_run: Path, unpacked: Path, opening: Opening) -> None:
    with opening(packed_run / "model.tar.gz") as folder:
        assert files_of(folder) == files_of(unpacked)
    assert not folder.exists()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("opening", [opened, waited_for])
def test_a_folder_is_open_as_it_is(packed_run: Path, opening: Opening) -> None:
    with opening(packed_run / "bundle") as folder:
        assert folder == packed_run / "bundle"
    assert folder.is_dir()


def test_an_archive_is_unpacked_before_anybody_waits_for_it(packed_run: Path) -> None:
    with opened_meanwhile(packed_run / "model.tar.gz") as wait:
        wait_for(lambda: multiprocessing.active_children() == [], seconds=10)
        assert (wait() / "manifest.json").exists()


def test_a_process_that_ends_while_it_unpacks_is_told(
    packed_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("serve.archive.unpack", lambda archive, folder: os._exit(1))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RunError, match="that did it was ended"), waited_for(packed_run / "model.tar.gz"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_who_does_not_wait_leaves_no_process_and_no_folder(
    packed_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("serve.archive.unpack", lambda archive, folder: time.sleep(60))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    begun = time.monotonic()
    with opened_meanwhile(packed_run / "model.tar.gz"):
        assert len(multiprocessing.active_children()) == 1
    assert time.monotonic() - begun < 10
    assert multiprocessing.active_children() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opening", [opened, waited_for])
def test_errors_name_the_archive_that_was_given(packed_run: Path, opening: Opening) -> None:
    archive = packed_run / "model.tar.gz"
    with pytest.raises(ConfigError) as caught, opening(archive) as folder:
        ServedModel.load(folder, engine="torch")
    assert str(caught.value).startswith(f"serve.engine=torch: {archive} was packed")


def files_of(folder: Path) -> dict[Path, bytes]:
    """Path below a folder -> content."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"path": "a\0b"}, "null"),
        ({"mtime": "nan"}, "NaN"),
        ({"mtime": "1e400"}, "out of range"),
        ({"comment": "x" * (1 << 20)}, "a header of"),
    ],
)
def test_a_header_that_no_file_can_have_is_refused(tmp_path: Path, header: dict[str, str], message: str) -> None:
    entry = tarfile.TarInfo("file")
    entry.pax_headers = header
    archive = archive_of(tmp_path / "model.tar.gz", entry)
    with pytest.raises(RunError, match=f"cannot be unpacked .*{message}"):
        unpack(archive, tmp_path / "model")


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.archive.MAX_BYTES", 1000)
    archive = archive_of(tmp_path / "model.tar.gz", tarfile.TarInfo("zeros"), b"\0" * 1001)
    with pytest.raises(RunError, match="unpacks to more than 1000 files or 1,000 bytes"):
        unpack(archive, tmp_path / "model")
