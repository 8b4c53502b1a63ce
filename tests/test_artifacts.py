"""The run directory and the bundle as files: who may write them, what they say, what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graft.artifacts import (
    Manifest,
    ParitySample,
    open_run,
    read_manifest,
    read_parity,
    read_state,
    read_tensors,
    record_failure,
    write_bundle,
)
from graft.errors import RunError
from graft.inputs import InputSpec

SOURCE = Path(__file__).resolve().parents[1] / "src"
CONFIG = """\
seed: 0
data:
  root: photos
  batch_size: 64
  words: get the photos from the place where they lie and unzip
    them into this folder, or try another one
model:
  mean:
  - 0.5
  - 0.25
  resize: null
features:
  batch_size: 16
"""


def leave(path: Path, error: BaseException | None, config: str = CONFIG) -> str:
    """Open a run and leave it by an error, or finished; returns its id."""
    if error is None:
        with open_run(path, config, ()) as run:
            run.set_state("finished")
        return run.run_id
    with pytest.raises(type(error)), open_run(path, config, ("optim.lr=0.1",)) as run:
        raise error
    return run.run_id


def test_a_new_run_says_that_it_is_not_finished(tmp_path: Path) -> None:
    with open_run(tmp_path / "deep" / "run", CONFIG, ("optim.lr=0.1", "seed=1")) as run:
        state = read_state(run.path)
        assert (state["state"], state["reason"], state["id"]) == ("unfinished", "", run.run_id)
        assert run.config.read_text() == CONFIG
        assert json.loads((run.path / "overrides.json").read_text()) == ["optim.lr=0.1", "seed=1"]


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (SystemExit(143), "unfinished", "stopped by SIGTERM"),
        (SystemExit(129), "unfinished", "stopped by SIGHUP"),
        (SystemExit(130), "unfinished", "stopped by Ctrl-C"),
        (KeyboardInterrupt(), "unfinished", "stopped by Ctrl-C"),
        (SystemExit(7), "failed", "SystemExit: 7"),
        (RunError("no\nmore"), "failed", "RunError: no"),
        (ValueError("x"), "failed", "ValueError: x"),
        (ValueError(), "failed", "ValueError: "),
    ],
)
def test_what_ended_a_run_stands_in_it_and_it_can_go_on(
    tmp_path: Path, error: BaseException, state: str, reason: str
) -> None:
    run_id = leave(tmp_path / "run", error)
    found = read_state(tmp_path / "run")
    assert (found["state"], found["reason"], found["id"]) == (state, reason, run_id)
    assert leave(tmp_path / "run", None) == run_id  # it is the same run that goes on
    assert read_state(tmp_path / "run")["reason"] == ""


def test_a_finished_run_is_refused(tmp_path: Path) -> None:
    leave(tmp_path / "run", None)
    before = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(RunError, match=rf"run_dir={tmp_path}/run holds a finished run; give another run_dir"):
        leave(tmp_path / "run", None)
    assert (tmp_path / "run" / "run.json").read_text() == before


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("seed: 0", "seed: 3", "seed=0 there and 3 here"),
        ("  batch_size: 64", "  batch_size: 8", "data.batch_size=64 there and 8 here"),
        ("  batch_size: 16", "  batch_size: 8", "features.batch_size=16 there and 8 here"),
        ("  - 0.25\n", "  - 0.125\n", "model.mean=0.5 0.25 there and 0.5 0.125 here"),
        ("this folder,", "that folder,", "data.words=get the photos"),
        ("  resize: null\n", "", "model.resize=null there and absent here"),
        ("seed: 0\n", "seed: 0\nspeed: 1\n", "speed=absent there and 1 here"),
    ],
)
def test_an_unfinished_run_of_another_configuration_is_refused(tmp_path: Path, old: str, new: str, named: str) -> None:
    leave(tmp_path / "run", ValueError())
    changed = CONFIG.replace(old, new)
    assert changed != CONFIG
    with pytest.raises(RunError, match=re.escape(f"unfinished run of another configuration: {named}")) as refused:
        leave(tmp_path / "run", None, changed)
    assert str(refused.value).count(" there and ") == 1
    assert (tmp_path / "run" / "config.yaml").read_text() == CONFIG
    leave(tmp_path / "run", None)


def test_what_changes_no_figure_may_differ_when_a_run_goes_on(tmp_path: Path) -> None:
    with_workers = CONFIG.replace("  batch_size: 64", "  batch_size: 64\n  workers: {}")
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "run", with_workers.format(0), ()) as before:
        raise KeyboardInterrupt
    with open_run(tmp_path / "run", with_workers.format(2), ()) as run:
        assert run.run_id == before.run_id
        assert "workers: 2" in run.config.read_text()


def test_two_keys_of_one_name_that_change_places_are_another_configuration(tmp_path: Path) -> None:
    leave(tmp_path / "run", ValueError())
    swapped = CONFIG.replace("batch_size: 64", "batch_size: X").replace(": 16", ": 64").replace(": X", ": 16")
    named = "data.batch_size=64 there and 16 here, features.batch_size=16 there and 64 here"
    with pytest.raises(RunError, match=named):
        leave(tmp_path / "run", None, swapped)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=r"is no run directory: it holds thesis.txt; give a new or an empty one"):
        leave(tmp_path, None)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_file_in_the_place_of_the_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match=rf"run_dir={tmp_path}/run cannot be made"):
        leave(tmp_path / "run", None)


def test_killed_while_it_wrote_its_first_file_it_can_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise SystemError  # stands for SIGKILL, after which nothing is tidied up

    with monkeypatch.context() as patch:
        patch.setattr("graft.storage.os.replace", killed)
        patch.setattr("graft.storage.Path.unlink", lambda *_, **__: None)
        with pytest.raises(SystemError):
            leave(tmp_path / "run", None)
    assert [name for name in os.listdir(tmp_path / "run") if name.startswith(".run.json.")]
    leave(tmp_path / "run", None)


def test_a_run_in_use_is_refused_and_free_again_afterwards(tmp_path: Path) -> None:
    in_use = pytest.raises(RunError, match=r"run_dir=\S+ is in use by another process; give another run_dir")
    with open_run(tmp_path / "run", CONFIG, ()) as run:
        with in_use:
            leave(tmp_path / "run", None)
        assert read_state(run.path)["state"] == "unfinished"
    leave(tmp_path / "run", None)


def _hold(path: Path, ready: Any) -> None:
    with open_run(path, CONFIG, ()):
        ready.set()
        signal.pause()


def test_a_run_whose_process_was_killed_is_free_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "run", ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(RunError, match="in use"):
        leave(tmp_path / "run", None)
    process.kill()
    process.join()
    run_id = read_state(tmp_path / "run")["id"]
    assert leave(tmp_path / "run", None) == run_id


FORKS = """
import os, signal, sys
from pathlib import Path
from graft.artifacts import open_run
with open_run(Path(sys.argv[1]), sys.argv[2], ()):
    parent = os.getpid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        os.kill(parent, signal.SIGKILL)
    signal.pause()
"""


def test_a_loaders_worker_that_outlives_its_killed_parent_does_not_keep_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKS, str(tmp_path / "run"), CONFIG]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
    try:
        assert parent.returncode == -signal.SIGKILL
        leave(tmp_path / "run", None)
    finally:
        os.kill(child, signal.SIGKILL)


def test_metrics_are_numbers(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", CONFIG, ()) as run:
        run.write_json("metrics.json", {"b": 1.5, "a": 2})
        assert list(json.loads(run.metrics.read_text())) == ["b", "a"]
        with pytest.raises(ValueError, match="not JSON compliant"):
            run.write_json("metrics.json", {"b": float("nan")})
        assert json.loads(run.metrics.read_text()) == {"b": 1.5, "a": 2}
        run.set_state("finished")


@pytest.mark.parametrize("content", [None, "", "{"])
def test_no_run_has_no_state(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert read_state(tmp_path) == {}


def test_a_failure_before_the_run_began_is_recorded_once(tmp_path: Path) -> None:
    record_failure(tmp_path / "run", "optim.lr=-1")
    record_failure(tmp_path / "run", "something later")
    state = read_state(tmp_path / "run")
    assert (state["state"], state["reason"]) == ("failed", "optim.lr=-1")
    leave(tmp_path / "run", None)


MANIFEST = Manifest(
    backbone="resnet18",
    hidden=8,
    class_names=("a", "ü"),
    input=InputSpec(64, 72, "squash", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    temperature=1.25,
    model_id="m",
    weights="none",
    weights_fingerprint="f",
    trained_part="the head",
    feature_precision="fp32",
    metrics={"valid/loss": 0.5},
    data={"root": "photos"},
    git_sha="unknown",
    created="2024-01-01T00:00:00+00:00",
)


def write(path: Path, parity: Sequence[ParitySample] = (), manifest: Manifest = MANIFEST) -> Path:
    write_bundle(path, manifest, {"head.w": np.arange(6, dtype=np.float32).reshape(2, 3)}, parity, "# card")
    return path


def test_a_bundle_reads_back_as_it_was_written(tmp_path: Path) -> None:
    parity = [ParitySample(bytes([n]) * 5, np.array([n / 7, -1e3 / 3], np.float32)) for n in range(12)]
    bundle = write(tmp_path / "bundle", parity)
    assert read_manifest(bundle) == MANIFEST
    np.testing.assert_array_equal(read_tensors(bundle)["head.w"], [[0, 1, 2], [3, 4, 5]])
    found = read_parity(bundle)
    assert [sample.data for sample in found] == [sample.data for sample in parity]
    for sample, expected in zip(found, parity, strict=True):
        np.testing.assert_allclose(sample.logits, expected.logits, atol=1e-4, rtol=0)
    assert (bundle / "README.md").read_text() == "# card"


def test_the_manifest_is_written_last_so_that_half_a_bundle_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    rename = os.replace

    def record(source: str, target: Path) -> None:
        written.append(target.name)
        rename(source, target)

    monkeypatch.setattr("graft.storage.os.replace", record)
    write(tmp_path / "bundle", [ParitySample(b"x", np.ones(1, np.float32))])
    assert written == ["model.safetensors", "00.image", "logits.json", "README.md", "manifest.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"is no model bundle: manifest.json cannot be read"),
        ('{"version": 1, "backb', r"is no model bundle: manifest.json cannot be read"),
        ("[1, 2]", r"manifest.json: version None; accepted is 1"),
        ('{"name": "my-web-app"}', r"manifest.json: version None; accepted is 1"),
        ('{"version": 2}', r"manifest.json: version 2; accepted is 1"),
        ('{"version": 1}', r"manifest.json is not one of graft's: 'input'"),
        ('{"version": 1, "input": {"mean": [0], "std": [1], "x": 1}}', r"manifest.json is not one of graft's"),
    ],
)
def test_a_foreign_manifest_is_one_clear_error(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(RunError, match=message):
        read_manifest(tmp_path)


def test_a_manifest_that_lacks_or_adds_a_field_is_one_clear_error(tmp_path: Path) -> None:
    content = json.loads((write(tmp_path) / "manifest.json").read_text())
    for changed in ({**content, "colour": 1}, {k: v for k, v in content.items() if k != "hidden"}):
        (tmp_path / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(RunError, match=r"manifest.json is not one of graft's: .*(colour|hidden)"):
            read_manifest(tmp_path)


@pytest.mark.parametrize("kept", [None, 0, 7, 60])
def test_truncated_tensors_are_one_clear_error(tmp_path: Path, kept: int | None) -> None:
    weights = write(tmp_path) / "model.safetensors"
    if kept is None:
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(RunError, match=r"model.safetensors cannot be read .*; copy the bundle again"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("missing", ["parity/logits.json", "parity/00.image"])
def test_parity_samples_without_their_pair_are_one_clear_error(tmp_path: Path, missing: str) -> None:
    (write(tmp_path, [ParitySample(b"x", np.ones(1, np.float32))]) / missing).unlink()
    with pytest.raises(RunError, match="has no whole set of parity samples"):
        read_parity(tmp_path)


def test_numbers_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path, manifest=replace(MANIFEST, temperature=float("inf")))
    assert not (tmp_path / "manifest.json").exists()
