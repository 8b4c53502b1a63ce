"""model.tar.gz as SageMaker unpacks it: the exported model, and the code that answers with it below code/."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import signal
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from isal import igzip
from isal.igzip_lib import IsalError

import graft
from graft.errors import GraftError, RunError
from graft.storage import write_atomic

MAX_FILES = 1000
MAX_BYTES = 4 * 10**9  # unpacked; the largest network of torchvision takes 2.6 GB in fp32
LONGEST_READ = 1 << 20

# The handler and all that it imports on an exported engine; a test runs it with nothing else beside it.
GRAFT_CODE = ("__init__", "artifacts", "errors", "images", "inputs", "locks", "novelty", "openvino_core", "storage")
SERVE_CODE = ("__init__", "answers", "engines", "handler", "model", "reading", "refusals")
PACKAGES = ("filelock", "numpy", "opencv-python-headless", "openvino", "pillow", "safetensors", "simplejpeg")
ENTRY = '''"""What SageMaker's toolkit loads: the handler, with its code beside it.

The toolkit refuses transform_fn beside input_fn, predict_fn or output_fn.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from serve.handler import model_fn, transform_fn  # noqa: E402, F401

try:
    from sagemaker_inference import content_types
except ModuleNotFoundError:
    pass  # another server than AWS's
else:
    # The toolkit would decode JSON as UTF-8 before transform_fn sees it, and answer other bytes with a traceback.
    content_types.UTF8_TYPES = ()
'''


def write_archive(folder: Path, archive: Path) -> None:
    """Pack an exported model with its code; the same model gives the same bytes.

    Args:
        folder: of the exported model.
        archive: the file, replaced where it is there.
    """
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    packed = io.BytesIO()
    # No time and no name in the header of gzip, none of this machine in those of tar. Stored, not deflated: weights
    # shrink by 7 %, and a server would take 0.4 s longer to unpack 100 MB of them.
    with (
        gzip.GzipFile(filename="", fileobj=packed, mode="wb", compresslevel=0, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, content in sorted((files | code_files()).items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    write_atomic(archive, packed.getvalue())


def code_files() -> dict[str, bytes]:
    """Path in the archive -> content, of the code below code/."""
    from importlib.metadata import version  # 0.03 s that a server has no use for

    sources = {"graft": (Path(graft.__file__).parent, GRAFT_CODE), "serve": (Path(__file__).parent, SERVE_CODE)}
    found = {
        f"code/{package}/{name}.py": (place / f"{name}.py").read_bytes()
        for package, (place, names) in sources.items()
        for name in names
    }
    pins = "".join(f"{package}=={version(package)}\n" for package in PACKAGES)
    return found | {"code/inference.py": ENTRY.encode(), "code/requirements.txt": pins.encode()}


@contextmanager
def opened(bundle: Path) -> Iterator[Path]:
    """The folder of a model; of a model.tar.gz, one that lives as long as the context.

    Raises:
        RunError: the archive is damaged, or holds what must not be unpacked.
    """
    if bundle.is_dir() or not bundle.exists():
        yield bundle
        return
    with tempfile.TemporaryDirectory(prefix="graft-model-") as folder, _naming(bundle, folder):
        unpack(bundle, Path(folder))
        yield Path(folder)


@contextmanager
def _naming(archive: Path, folder: str) -> Iterator[None]:
    """Errors about the folder of an archive name the archive: nobody gave that folder, and it is gone by then."""
    try:
        yield
    except GraftError as error:
        raise type(error)(str(error).replace(folder, str(archive))) from error


@contextmanager
def opened_meanwhile(bundle: Path) -> Iterator[Callable[[], Path]]:
    """`opened`, by a process of its own; yields what waits for it and gives the folder, or raises what that raises.

    A thread would take twice as long beside imports: 100 MB come in thousands of parts, and each of them waits for the
    interpreter. To be entered before there are other threads: the process is a copy of this one.
    """
    if bundle.is_dir() or not bundle.exists():
        yield lambda: bundle
        return
    with tempfile.TemporaryDirectory(prefix="graft-model-") as name, _naming(bundle, name):
        told, tell = multiprocessing.Pipe(duplex=False)
        fork = multiprocessing.get_context("fork")
        process = fork.Process(target=_unpack_and_tell, args=(bundle, Path(name), tell), daemon=True)
        process.start()
        tell.close()

        def wait() -> Path:
            try:
                problem = told.recv()
            except EOFError:
                problem = RunError(f"{bundle} is not unpacked: the process that did it was ended; start again")
            if problem:
                raise problem
            return Path(name)

        try:
            yield wait
        finally:
            process.terminate()
            process.join()
            told.close()


def _unpack_and_tell(archive: Path, folder: Path, tell: Connection) -> None:
    """`unpack`; sends what it raised, or None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's, which ends this process too
    try:
        unpack(archive, folder)
    except RunError as error:
        tell.send(error)
    else:
        tell.send(None)


class _Reader(igzip.IGzipFile):  # type: ignore[misc]  # its stubs are not read: pyproject.toml
    """tarfile reads files in small parts, but a header as large as it says it is."""

    def read(self, size: int = -1) -> bytes:
        """See `IGzipFile`. Raises tarfile.ReadError beyond LONGEST_READ."""
        if size > LONGEST_READ:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        content: bytes = super().read(size)
        return content


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a model.tar.gz; paths that lead out of the folder, links and devices are refused.

    Raises:
        RunError: see `opened`.
    """
    try:
        with _Reader(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            total = 0
            for count, entry in enumerate(tar, 1):
                total += entry.size
                if count > MAX_FILES or total > MAX_BYTES:
                    raise RunError(
                        f"{archive} is refused: it unpacks to more than {MAX_FILES} files or {MAX_BYTES:,} bytes"
                    )
                if not (entry.isfile() or entry.isdir()):
                    raise RunError(f"{archive} is refused: its entry {entry.name!r} is no plain file")
                tar.extract(entry, folder, filter="data")
            # Through the padding to the checksum: a damaged entry looks like the last one.
            if len(stream.read(LONGEST_READ)) == LONGEST_READ:
                raise tarfile.ReadError("it goes on after its last entry")
    # Of damaged headers, numbers that are none and names that no file can have.
    except (tarfile.TarError, OSError, EOFError, IsalError, ValueError, OverflowError) as error:
        raise RunError(
            f"{archive} cannot be unpacked ({error}); accepted is what `python -m serve pack` wrote"
        ) from error
