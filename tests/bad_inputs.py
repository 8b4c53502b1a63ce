"""Bad inputs on purpose: one function for each row of docs/errors.md, which says what graft answers to it."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torchvision import models

import graft
import train as program
from graft import assembly
from graft.command import prepare
from graft.data import download
from graft.data.__main__ import main as data_main
from graft.errors import GraftError
from graft.features import cache
from graft.features.__main__ import main as features_main
from graft.stores import LocalStore
from graft.terminal import plain_errors
from tests.composing import CONF, ROOT, compose_tree
from tests.pictures import draw_folder, encode, spoil, truncate
from tests.s3server import client, forget_account, new_bucket, use_server
from tests.training import TINY

ROWS: dict[str, Callable[[Place], Answer]] = {}
SLOW: set[str] = set()


@dataclass(frozen=True)
class Answer:
    """What a person reads, and the exit code; None where no program ends."""

    message: str
    code: int | None


@dataclass(frozen=True)
class Place:
    """An empty folder for one bad input, two classes of photos to spoil, and what undoes changes to this process."""

    folder: Path
    patch: pytest.MonkeyPatch
    stack: contextlib.ExitStack
    server: Callable[[], str]

    @property
    def root(self) -> Path:
        """Value of data.root."""
        return self.folder / "photos"

    @property
    def run(self) -> Path:
        """Value of run_dir."""
        return self.folder / "run"

    @property
    def cache(self) -> Path:
        """Value of features.cache_dir."""
        return self.folder / "cache"

    def draw(self, **counts: int) -> Path:
        """Photos of two classes."""
        return draw_folder(self.root, **{"classes": 2, "train": 5, "valid": 2, "test": 0, "size": 48, **counts})

    def train(self, *more: str) -> Answer:
        """What `python train.py` answers to a tiny run."""
        places = (f"data.root={self.root}", f"run_dir={self.run}", f"features.cache_dir={self.cache}")
        return answer_to(*TINY, *places, "trainer.max_epochs=1", *more)


def row(function: Callable[[Place], Answer]) -> Callable[[Place], Answer]:
    """Make a function the one of its row: `a_b` is that of `a-b`."""
    ROWS[function.__name__.replace("_", "-")] = function
    return function


def slow(function: Callable[[Place], Answer]) -> Callable[[Place], Answer]:
    """Of a row that takes seconds."""
    SLOW.add(function.__name__.replace("_", "-"))
    return function


def answer_to(*argv: str) -> Answer:
    """What `python train.py ARGV` says: its error, or its lines about the photos."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            with plain_errors():
                prepare(list(argv), now="now", conf=CONF)
            program.main.__wrapped__(compose_tree(*argv))
        except SystemExit as stop:
            code = int(stop.code or 0)
    said = err.getvalue().splitlines()
    if code:
        return Answer("\n".join(line.removeprefix("error: ") for line in said if line.startswith("error: ")), code)
    passing = ("has no test/ split", "the checks of the photos have")
    lines = [line for line in said if not any(words in line for words in passing)]
    lines += [line for line in out.getvalue().splitlines() if line.startswith("data: ")]
    return Answer("\n".join(lines), code)


def answer_of_process(*argv: str, cwd: Path) -> Answer:
    """What a whole process says on stderr."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, *argv], cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    return Answer(" ".join(done.stderr.split()), done.returncode)


# Configuration


@row
def misspelt_key(place: Place) -> Answer:
    return answer_to("optim.lrr=1")


@row
def misspelt_group(place: Place) -> Answer:
    return answer_to("modle=resnet50")


@row
def added_key(place: Place) -> Answer:
    return answer_to("+data.batchsize=3")


@row
def wrong_type(place: Place) -> Answer:
    return answer_to("data.batch_size=many")


@row
def out_of_range(place: Place) -> Answer:
    return answer_to("optim.lr=-1")


@row
def wrong_choice(place: Place) -> Answer:
    return answer_to("data.on_corrupt=ignore")


@row
def wrong_length(place: Place) -> Answer:
    return answer_to("model.mean=[0.5,0.5]")


@row
def unknown_option(place: Place) -> Answer:
    answer = answer_of_process(str(ROOT / "train.py"), "data=cats", cwd=place.folder)
    return Answer(answer.message.partition(" Config search path")[0], answer.code)


@row
def no_root(place: Place) -> Answer:
    return answer_to("data=folder")


@row
def nothing_to_train_on(place: Place) -> Answer:
    return answer_to("features.plain=false")


@row
def crop_beyond_resize(place: Place) -> Answer:
    return place.train("model.image_size=256", "model.resize=224")


@row
def unknown_backbone(place: Place) -> Answer:
    return place.train("model.backbone=resnet51")


@row
def unknown_part(place: Place) -> Answer:
    place.draw()
    return place.train("model.unfreeze=layer9")


@row
def small_batch(place: Place) -> Answer:
    return answer_to("trainer=ddp", "trainer.devices=4", "data.batch_size=2")


@row
def torchrun_mismatch(place: Place) -> Answer:
    place.patch.setenv("TORCHELASTIC_RUN_ID", "run")
    place.patch.setenv("WORLD_SIZE", "3")
    return place.train("trainer=ddp", "trainer.accelerator=cpu")


@row
def machines_alone(place: Place) -> Answer:
    return place.train("trainer.num_nodes=2")


@row
def absent_gpu(place: Place) -> Answer:
    place.patch.setattr(torch.cuda, "is_available", lambda: False)
    return place.train("trainer=gpu", "trainer.accelerator=gpu")


@row
def sagemaker(place: Place) -> Answer:
    return place.train("trainer=sagemaker_gpu")


@row
def plan_of_no_job(place: Place) -> Answer:
    return place.train("launcher.plan=true")


@row
def above_budget(place: Place) -> Answer:
    return place.train("trainer=sagemaker_gpu", "launcher.plan=true", "budget.usd=0.01")


@row
def no_overrides_file(place: Place) -> Answer:
    return place.train(f"overrides_from={place.folder}/best.yaml")


@row
def wrong_key_in_overrides_file(place: Place) -> Answer:
    (place.folder / "best.yaml").write_text("- optim.lrr=1\n")
    return place.train(f"overrides_from={place.folder}/best.yaml")


@row
def no_override(place: Place) -> Answer:
    (place.folder / "best.yaml").write_text("- optim.lr 1\n")
    return place.train(f"overrides_from={place.folder}/best.yaml")


@row
def two_run_dirs(place: Place) -> Answer:
    return answer_to("-m", "run_dir=a,b")


@row
def sweep_in_s3(place: Place) -> Answer:
    return answer_to("-m", "run_dir=s3://bucket/runs", "seed=0,1")


@row
def remote_cache(place: Place) -> Answer:
    return place.train("features.cache_dir=s3://bucket/cache")


# Photos


@row
def no_folder(place: Place) -> Answer:
    return place.train()


@row
def no_dogs(place: Place) -> Answer:
    return place.train("data=dogs", "data.archive=null")


@row
def flat_folder(place: Place) -> Answer:
    shutil.move(place.draw() / "train", place.folder / "flat")
    return place.train(f"data.root={place.folder}/flat")


@row
def no_valid(place: Place) -> Answer:
    shutil.rmtree(place.draw() / "valid")
    return place.train()


@row
def valid_and_val(place: Place) -> Answer:
    shutil.copytree(place.draw() / "valid", place.root / "val")
    return place.train()


@row
def one_class(place: Place) -> Answer:
    place.draw(classes=1)
    return place.train()


@row
def empty_split(place: Place) -> Answer:
    for photo in place.draw().glob("valid/*/*"):
        photo.unlink()
    return place.train()


@row
def class_without_photos(place: Place) -> Answer:
    (place.draw() / "train" / "class_2").mkdir()
    (place.root / "valid" / "class_2").mkdir()
    return place.train()


@row
def other_files(place: Place) -> Answer:
    (place.draw() / "train" / "class_0" / "a.heic").write_bytes(b"?")
    return place.train()


@row
def text_as_photo(place: Place) -> Answer:
    spoil(place.draw() / "train" / "class_0" / "000.jpg")
    return place.train()


@row
def truncated(place: Place) -> Answer:
    truncate(place.draw() / "train" / "class_0" / "000.jpg")
    return place.train()


@row
def damaged_refused(place: Place) -> Answer:
    truncate(place.draw() / "train" / "class_0" / "000.jpg")
    spoil(place.root / "train" / "class_0" / "001.jpg")
    return place.train("data.on_corrupt=error")


@row
def all_undecodable(place: Place) -> Answer:
    for photo in place.draw().glob("valid/*/*"):
        spoil(photo)
    return place.train()


@slow
@row
def decompression_bomb(place: Place) -> Answer:
    # 20,000 x 20,000 pixels, announced by the header alone.
    png = bytearray(encode(np.zeros((8, 8, 3), np.uint8), "PNG"))
    png[16:24] = (20_000).to_bytes(4, "big") * 2
    (place.draw() / "train" / "class_0" / "000.jpg").write_bytes(png)
    return place.train()


@row
def copies_in_two_splits(place: Place) -> Answer:
    shutil.copy(place.draw() / "train" / "class_0" / "000.jpg", place.root / "valid" / "class_0" / "copy.jpg")
    return place.train()


@row
def copies_refused(place: Place) -> Answer:
    shutil.copy(place.draw() / "train" / "class_0" / "000.jpg", place.root / "valid" / "class_0" / "copy.jpg")
    return place.train("data.on_leak=error")


@slow
@row
def same_photo_in_two_classes(place: Place) -> Answer:
    shutil.copy(place.draw() / "train" / "class_0" / "000.jpg", place.root / "train" / "class_1" / "copy.jpg")
    return place.train()


@row
def unreadable_folder(place: Place) -> Answer:
    place.draw()
    with _without_rights(place, place.root / "valid" / "class_0", 0o000):
        return place.train()


@row
def unreadable_photo(place: Place) -> Answer:
    place.draw()
    with _without_rights(place, place.root / "valid" / "class_0" / "000.jpg", 0o000):
        return place.train()


@row
def photo_gone(place: Place) -> Answer:
    photo = place.draw() / "train" / "class_0" / "000.jpg"
    _after_listing(place, photo.unlink)
    return place.train()


@slow
@row
def photo_changed(place: Place) -> Answer:
    photo = place.draw() / "train" / "class_0" / "000.jpg"
    shutil.copy(photo, photo.with_name("copy.jpg"))
    place.patch.setattr("graft.stores.SETTLED_S", -10.0)
    place.train()
    shutil.rmtree(place.cache / "features")
    shutil.rmtree(place.run)
    _after_listing(place, lambda: shutil.copy(photo.with_name("001.jpg"), photo))
    return place.train()


@row
def photo_gone_in_training(place: Place) -> Answer:
    photo = place.draw() / "train" / "class_0" / "000.jpg"
    look = assembly.look

    def look_and_delete(*given: Any) -> Any:
        looked = look(*given)
        photo.unlink()
        return looked

    place.patch.setattr("graft.trainer.look", look_and_delete)
    return place.train("features.enabled=false", "data.workers=1")


@slow
@row
def photo_from_the_future(place: Place) -> Answer:
    for photo in place.draw().glob("*/*/*"):
        os.utime(photo, (time.time() + 3600,) * 2)
    place.patch.setattr("graft.stores.SETTLED_S", -10.0)  # else these files are too new to be trusted anyway
    first = place.train()
    shutil.rmtree(place.run)
    read: list[str] = []
    from_disk = LocalStore.read

    def note_and_read(store: LocalStore, name: str, tag: bytes = b"") -> bytes:
        read.append(name)
        return from_disk(store, name, tag)

    place.patch.setattr(LocalStore, "read", note_and_read)
    second = place.train()
    assert first == second
    photos = {name for name in read if name.startswith("train")}
    return Answer(second.message or f"nothing; {len(photos)} of 10 photos of train are read again", second.code)


def _after_listing(place: Place, happens: Callable[[], object]) -> None:
    """Let something happen to the photos after they were listed and before they are read."""
    listed = assembly.open_folder

    def open_folder(*given: Any) -> Any:
        folder = listed(*given)
        happens()
        return folder

    place.patch.setattr("graft.trainer.open_folder", open_folder)


@contextmanager
def _without_rights(place: Place, path: Path, mode: int) -> Iterator[None]:
    """Take rights from a path, and from this process those of root, which needs none."""
    before, user = path.stat().st_mode, os.geteuid()
    if user == 0:
        for made in [place.folder, *place.folder.rglob("*")]:
            os.chown(made, 65534, 65534)
    path.chmod(mode)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        path.chmod(before)


# Photos in S3


@row
def other_url(place: Place) -> Answer:
    return place.train("data.root=gs://bucket/photos")


@row
def malformed_s3(place: Place) -> Answer:
    return place.train("data.root=s3:///photos")


@row
def no_bucket(place: Place) -> Answer:
    use_server(place.patch, place.server())
    return place.train("data.root=s3://no-such-bucket/photos")


@row
def no_prefix(place: Place) -> Answer:
    use_server(place.patch, place.server())
    new_bucket(place.server(), "errors")
    return place.train("data.root=s3://errors/photos")


@row
def no_credentials(place: Place) -> Answer:
    forget_account(place.patch)
    place.patch.setenv("AWS_ENDPOINT_URL", place.server())
    return place.train("data.root=s3://errors/photos")


@row
def access_denied(place: Place) -> Answer:
    use_server(place.patch, place.stack.enter_context(_answering(403, _s3_error("AccessDenied"))))
    return place.train("data.root=s3://errors/photos")


@row
def clock_off(place: Place) -> Answer:
    use_server(place.patch, place.stack.enter_context(_answering(403, _s3_error("RequestTimeTooSkewed"))))
    return place.train("data.root=s3://errors/photos")


@row
def credentials_expired(place: Place) -> Answer:
    use_server(place.patch, place.stack.enter_context(_answering(400, _s3_error("ExpiredToken"))))
    return place.train("data.root=s3://errors/photos")


@row
def other_region(place: Place) -> Answer:
    use_server(place.patch, place.stack.enter_context(_answering(400, _s3_error("AuthorizationHeaderMalformed"))))
    return place.train("data.root=s3://errors/photos")


@row
def s3_busy(place: Place) -> Answer:
    use_server(place.patch, place.stack.enter_context(_answering(503, _s3_error("SlowDown"))))
    place.patch.setenv("AWS_MAX_ATTEMPTS", "1")
    return place.train("data.root=s3://errors/photos")


@row
def endpoint_unreachable(place: Place) -> Answer:
    use_server(place.patch, _nobody())
    return place.train("data.root=s3://errors/photos")


@row
def endpoint_malformed(place: Place) -> Answer:
    use_server(place.patch, "nonsense")
    return place.train("data.root=s3://errors/photos")


@row
def object_changed(place: Place) -> Answer:
    s3 = _upload(place)
    _after_listing(
        place, lambda: s3.put_object(Bucket="errors", Key="photos/train/class_0/000.jpg", Body=b"another photo")
    )
    return place.train("data.root=s3://errors/photos")


@row
def object_gone(place: Place) -> Answer:
    s3 = _upload(place)
    _after_listing(place, lambda: s3.delete_object(Bucket="errors", Key="photos/train/class_0/000.jpg"))
    return place.train("data.root=s3://errors/photos")


@row
def no_boto3(place: Place) -> Answer:
    use_server(place.patch, place.server())
    place.patch.setitem(sys.modules, "boto3", None)
    return place.train("data.root=s3://errors/photos")


@row
def run_in_missing_bucket(place: Place) -> Answer:
    use_server(place.patch, place.server())
    return place.train("run_dir=s3://no-such-bucket/run")


@row
def run_in_foreign_prefix(place: Place) -> Answer:
    use_server(place.patch, place.server())
    client(place.server()).put_object(Bucket=new_bucket(place.server(), "errors"), Key="run/notes.txt", Body=b"mine")
    return place.train("run_dir=s3://errors/run")


def _upload(place: Place) -> Any:
    use_server(place.patch, place.server())
    new_bucket(place.server(), "errors")
    s3 = client(place.server())
    for photo in place.draw().glob("*/*/*"):
        name = photo.relative_to(place.root).as_posix()
        s3.put_object(Bucket="errors", Key=f"photos/{name}", Body=photo.read_bytes())
    return s3


def _s3_error(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>Refused.</Message></Error>".encode()


@contextmanager
def _answering(status: int, body: bytes, kind: str = "application/xml", announced: int = 0) -> Iterator[str]:
    """A server that always says the same, perhaps of more bytes than it has; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(announced or len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_PUT = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _nobody() -> str:
    """A URL where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


# The archive


@row
def archive_of_another_kind(place: Place) -> Answer:
    return place.train("data.archive=ftp://example.com/photos.zip")


@row
def archive_not_there(place: Place) -> Answer:
    return _archive(place, b"", status=404)


@row
def archive_denied(place: Place) -> Answer:
    return _archive(place, b"", status=403)


@row
def archive_of_wrong_size(place: Place) -> Answer:
    return _archive(place, b"PK" * 50, "data.archive_bytes=1132023110")


@row
def archive_damaged(place: Place) -> Answer:
    return _archive(place, b"PK" * 50)


@row
def archive_leads_out(place: Place) -> Answer:
    return _archive(place, _zip({"../train/a/1.jpg": b"?"}))


@row
def archive_is_a_bomb(place: Place) -> Answer:
    return _archive(place, _zip({"train/a/1.jpg": bytes(10_000_000)}))


@row
def archive_without_network(place: Place) -> Answer:
    place.patch.setattr(download, "PAUSE_S", 0)
    return place.train(f"data.archive={_nobody()}/photos.zip")


@row
def archive_without_room(place: Place) -> Answer:
    place.patch.setattr("graft.data.archive.shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))
    url = place.stack.enter_context(_answering(200, b"PK", "application/zip", announced=3 * 10**9))
    return place.train(f"data.archive={url}/photos.zip")


@row
def archive_into_read_only(place: Place) -> Answer:
    url = place.stack.enter_context(_answering(200, b"PK", "application/zip"))
    target = place.folder / "mine" / "photos"
    target.parent.mkdir()
    with _without_rights(place, target.parent, 0o555):
        return place.train(f"data.root={target}", f"data.archive={url}/photos.zip")


def _archive(place: Place, body: bytes, *more: str, status: int = 200) -> Answer:
    url = place.stack.enter_context(_answering(status, body, "application/zip"))
    return place.train(f"data.archive={url}/photos.zip", *more)


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return buffer.getvalue()


# Weights


@row
def no_weights(place: Place) -> Answer:
    (place.folder / "weights.pth").write_bytes(b"")
    return _weights(place, "wieghts.pth")


@row
def unknown_weights(place: Place) -> Answer:
    place.draw()
    return place.train("model.weights=imagenet1k_v3")


@row
def weights_without_network(place: Place) -> Answer:
    place.draw()
    place.patch.setenv("TORCH_HOME", str(place.folder / "torch"))
    place.patch.setenv("https_proxy", _nobody())
    place.patch.delenv("no_proxy", raising=False)
    place.patch.setattr("urllib.request._opener", None)  # it remembers the proxy of before
    return place.train("model.weights=imagenet1k_v1")


@row
def weights_of_another_model(place: Place) -> Answer:
    torch.save(models.shufflenet_v2_x0_5().state_dict(), place.folder / "weights.pth")
    return _weights(place)


@row
def weights_cut_off(place: Place) -> Answer:
    torch.save(models.squeezenet1_1().state_dict(), place.folder / "weights.pth")
    truncate(place.folder / "weights.pth")
    return _weights(place)


@row
def weights_with_code(place: Place) -> Answer:
    torch.save({"run": os.system}, place.folder / "weights.pth")
    return _weights(place)


@row
def weights_not_finite(place: Place) -> Answer:
    state = models.squeezenet1_1().state_dict()
    state["features.0.bias"][0] = float("nan")
    torch.save(state, place.folder / "weights.pth")
    return _weights(place)


@row
def weights_not_in_s3(place: Place) -> Answer:
    use_server(place.patch, place.server())
    new_bucket(place.server(), "errors")
    place.draw()
    return place.train("model.weights=s3://errors/weights.pth")


@row
def weights_elsewhere(place: Place) -> Answer:
    return place.train("model.weights=gs://bucket/weights.pth")


def _weights(place: Place, name: str = "weights.pth") -> Answer:
    place.draw()
    return place.train(f"model.weights={place.folder / name}")


# Disks and the cache


@row
def disk_full(place: Place) -> Answer:
    place.draw()
    _full_below(place, place.cache)
    return place.train()


@row
def disk_full_for_run(place: Place) -> Answer:
    place.draw()
    _full_below(place, place.run / "checkpoints")
    return place.train()


@row
def file_too_large(place: Place) -> Answer:
    place.draw()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))  # the bundle has 3 MB
    try:
        return place.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@row
def read_only_cache(place: Place) -> Answer:
    place.draw()
    place.cache.mkdir()
    with _without_rights(place, place.cache, 0o555):
        return place.train()


@row
def cache_is_a_file(place: Place) -> Answer:
    place.draw()
    place.cache.write_text("?")
    return place.train()


@row
def damaged_shard(place: Place) -> Answer:
    return _after_spoiling(place, "features/*/*.npy", lambda shard: shard.write_bytes(shard.read_bytes()[:100]))


@slow
@row
def shard_of_another_version(place: Place) -> Answer:
    return _after_spoiling(place, "features/*/*.npy", lambda shard: np.save(shard, np.zeros(3, "S16,u1,4f8")))


@slow
@row
def damaged_digests(place: Place) -> Answer:
    place.patch.setattr("graft.stores.SETTLED_S", -10.0)
    return _after_spoiling(place, "digests/*.npy", lambda shard: shard.write_bytes(b"?"))


@slow
@row
def cache_of_another_version(place: Place) -> Answer:
    place.patch.setattr(cache, "FORMAT", 0)
    place.draw()
    place.train()
    shutil.rmtree(place.run)
    place.patch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    answer = place.train()
    spaces = len(list(place.cache.glob("features/*/space.json")))
    return Answer(answer.message or f"nothing; features are computed again, {spaces} sets are there", answer.code)


def _after_spoiling(place: Place, pattern: str, spoil_shard: Callable[[Path], object]) -> Answer:
    """What a second run says when something happened to the cache."""
    place.draw()
    place.train()
    shutil.rmtree(place.run)
    (shard,) = place.cache.glob(pattern)
    spoil_shard(shard)
    return place.train()


def _full_below(place: Place, folder: Path) -> None:
    """Let the kernel's call that brings bytes to the disk fail, for files of one folder."""
    fsync = os.fsync

    def fail(handle: int) -> None:
        if folder in Path(os.readlink(f"/proc/self/fd/{handle}")).parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    place.patch.setattr(os, "fsync", fail)


# Run directories and bundles


@row
def read_only_run(place: Place) -> Answer:
    place.draw()
    (place.folder / "mine").mkdir()
    with _without_rights(place, place.folder / "mine", 0o555):
        return place.train(f"run_dir={place.folder}/mine/run")


@row
def run_is_read_only(place: Place) -> Answer:
    place.draw()
    place.run.mkdir()
    with _without_rights(place, place.run, 0o555):
        return place.train()


@row
def run_is_a_file(place: Place) -> Answer:
    place.run.write_text("?")
    return place.train()


@row
def run_in_use(place: Place) -> Answer:
    place.run.mkdir()
    with FileLock(place.run / ".lock"):
        return place.train()


@row
def run_finished(place: Place) -> Answer:
    place.draw()
    place.train()
    return place.train()


@row
def run_of_another_configuration(place: Place) -> Answer:
    place.train()
    return place.train("optim.lr=0.5")


@row
def no_run_directory(place: Place) -> Answer:
    place.run.mkdir()
    (place.run / "notes.txt").write_text("mine")
    return place.train()


@slow
@row
def damaged_checkpoint(place: Place) -> Answer:
    place.draw()
    place.train()
    (place.run / "run.json").write_text('{"id": "1", "state": "unfinished"}')
    (place.run / "checkpoints" / "finished").unlink()
    truncate(place.run / "checkpoints" / "last.ckpt")
    return place.train()


@slow
@row
def damaged_best_checkpoint(place: Place) -> Answer:
    place.draw()
    place.train()
    (place.run / "run.json").write_text('{"id": "1", "state": "unfinished"}')
    truncate(place.run / "checkpoints" / "best.ckpt")
    return place.train()


@row
def diverged(place: Place) -> Answer:
    place.draw()
    return place.train("optim.lr=1e38")


@row
def bundle_of_another_version(place: Place) -> Answer:
    place.draw()
    place.train()
    manifest = place.run / "bundle" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    return _load(place)


@slow
@row
def damaged_bundle(place: Place) -> Answer:
    place.draw()
    place.train()
    truncate(place.run / "bundle" / "model.safetensors")
    return _load(place)


@row
def no_bundle(place: Place) -> Answer:
    return _load(place)


def _load(place: Place) -> Answer:
    """What graft.load raises, where no program ends."""
    try:
        graft.load(place.run / "bundle")
    except GraftError as error:
        return Answer(f"{type(error).__name__}: {error}", None)
    raise AssertionError("it was loaded")


# Other commands


@row
def check_of_nothing(place: Place) -> Answer:
    return _data(place, "check", str(place.root))


@row
def check_of_damage(place: Place) -> Answer:
    truncate(place.draw(test=1) / "train" / "class_0" / "000.jpg")
    spoil(place.root / "test" / "class_0" / "000.jpg")
    shutil.copy(place.root / "train" / "class_1" / "000.jpg", place.root / "valid" / "class_1" / "copy.jpg")
    return _data(place, "check", str(place.root))


@row
def check_with_cache_in_s3(place: Place) -> Answer:
    return _data(place, "check", str(place.root), "--cache-dir=s3://bucket/cache")


@row
def upload_of_nothing(place: Place) -> Answer:
    return _data(place, "upload", str(place.root), "s3://errors/photos")


@row
def upload_to_a_folder(place: Place) -> Answer:
    place.draw()
    return _data(place, "upload", str(place.root), str(place.folder / "copy"))


@row
def split_into_itself(place: Place) -> Answer:
    return _data(place, "split", str(place.draw() / "train"), str(place.root / "train" / "new"))


@row
def split_into_something(place: Place) -> Answer:
    return _data(place, "split", str(place.draw() / "train"), str(place.root / "valid"))


@row
def clear_unknown_key(place: Place) -> Answer:
    with redirect_stderr(io.StringIO()) as err:
        code = features_main(["clear", "abc", f"--cache-dir={place.cache}"])
    return Answer(err.getvalue().removeprefix("error: ").strip(), code)


def _data(place: Place, command: str, *argv: str) -> Answer:
    """What `python -m graft.data COMMAND` says, without its table."""
    cache_dir = [f"--cache-dir={place.cache}"] if command == "check" else []
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = data_main([command, *cache_dir, *argv])
    lines = [line for line in out.getvalue().splitlines() if line.isascii()]
    return Answer("\n".join(lines) or err.getvalue().removeprefix("error: ").strip(), code)
