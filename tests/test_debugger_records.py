"""The probe records what a fit does, exactly, through kills and resumes, and costs it nothing else."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torchvision.models.vision_transformer import EncoderBlock

from graft.debugger import probe as probe_module
from graft.debugger.probe import Probe, is_looked_at
from graft.debugger.records import Facts, Records, RecordWriter, read_losses, read_records
from graft.debugger.statistics import LayerStatistics
from graft.errors import RunError
from tests.pictures import draw_folder
from tests.recorded import recorded
from tests.test_fit import BATCHES, EPOCHS, PHOTOS, Killed, Session, kill_at
from tests.training import start, tiny, wait_for

FACTS = Facts(num_classes=3, batch_size=5, steps_per_epoch=BATCHES)
STEPS = EPOCHS * BATCHES
NONE = recorded().losses("TRAIN")
IMPATIENT = """
import runpy, sys
from graft.debugger import probe
probe.FLUSH_S = 0.0
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Watcher(pl.Callback):
    """Notes what the probe must have recorded, by other means."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.valid: list[float] = []
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        gradients = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(float(torch.cat(gradients).norm()))

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.train.append(float(outputs["loss"]))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.valid.append(float(trainer.callback_metrics["valid/loss"]))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Records, Watcher, Session]:
    """A fit that was recorded and watched."""
    session, watcher = Session(tmp_path_factory.mktemp("watched")), Watcher()
    session.fit(watching=[Probe(session.folder, FACTS), watcher])
    return read_records(session.folder), watcher, session


def test_every_loss_is_recorded_as_it_was(watched: tuple[Records, Watcher, Session]) -> None:
    records, watcher, session = watched
    losses = read_losses(session.folder)
    assert set(losses) == {"TRAIN", "EVAL"}
    assert losses["TRAIN"].step.tolist() == list(range(STEPS))
    assert losses["TRAIN"].global_step.tolist() == list(range(STEPS))
    assert losses["TRAIN"].value == pytest.approx(watcher.train, abs=1e-7)
    assert losses["EVAL"].step.tolist() == list(range(EPOCHS))
    assert losses["EVAL"].global_step.tolist() == [BATCHES * (epoch + 1) for epoch in range(EPOCHS)]
    assert losses["EVAL"].value == pytest.approx(watcher.valid, abs=1e-6)
    assert losses["TRAIN"].photos.tolist() == [5, 5, 5, 3] * EPOCHS
    assert set(records.table("losses")["name"]) == {"CrossEntropyLoss_output_0"}


def test_the_learning_rate_of_each_step_is_recorded(watched: tuple[Records, Watcher, Session]) -> None:
    rows = watched[0].table("losses")
    rates = rows["learning_rate"][rows["mode"] == "TRAIN"]
    # half a cosine over the steps
    assert rates == pytest.approx([0.01 * (1 + np.cos(np.pi * step / STEPS)) / 2 for step in range(STEPS)], abs=1e-9)


def test_gradients_are_those_of_the_steps_looked_at(watched: tuple[Records, Watcher, Session]) -> None:
    records, watcher, session = watched
    layers = records.table("layers")
    assert sorted(set(layers["layer"])) == ["head.0", "head.2"]
    for step in (0, 1, 2, 4, 8):
        of_step = layers["gradient_norm"][layers["step"] == step]
        assert np.sqrt((of_step**2).sum()) == pytest.approx(watcher.norms[step], rel=1e-5)
    assert sorted(set(layers["step"].tolist())) == [0, 1, 2, 4, 8]
    assert layers["fan_in"][:2].tolist() == [512, 8]
    fresh = Session(session.folder).classifier.head[0]
    assert isinstance(fresh, nn.Linear)
    assert layers["weight_std"][0] == pytest.approx(float(fresh.weight.detach().std(correction=0)), rel=1e-5)


def test_labels_shown_are_counted(watched: tuple[Records, Watcher, Session]) -> None:
    labels = watched[0].table("labels")
    counts = np.bincount(labels["label"], labels["count"])
    assert counts.tolist() == [PHOTOS // 3 * EPOCHS] * 3


def test_answers_are_those_of_the_model(watched: tuple[Records, Watcher, Session]) -> None:
    records, _, session = watched
    answers = records.table("answers")
    last = (answers["mode"] == "EVAL") & (answers["global_step"] == STEPS)
    assert answers["label"][last].tolist() == session.valid.labels.tolist()
    loss = -np.log(answers["p_label"][last]).mean()
    assert loss == pytest.approx(records.evaluations()[1][-1], rel=1e-5)


def test_the_model_is_the_same_with_and_without_a_probe(
    watched: tuple[Records, Watcher, Session], tmp_path: Path
) -> None:
    plain = Session(tmp_path)
    plain.fit()
    ours, theirs = (s.classifier.head.state_dict() for s in (watched[2], plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_intervals_thin_the_records(tmp_path: Path) -> None:
    session = Session(tmp_path, valid=600)  # three batches an evaluation
    probe = Probe(tmp_path, FACTS, train_interval=5, eval_interval=2, statistics_interval=4)
    session.fit(watching=[probe])
    losses = read_losses(tmp_path)
    assert losses["TRAIN"].step.tolist() == [0, 5, 10]
    # batches 0 and 2 of each evaluation: rules and plateau compare the same photos
    assert losses["EVAL"].step.tolist() == [0, 2, 3, 5, 6, 8]
    assert sorted(set(read_records(tmp_path).table("layers")["step"].tolist())) == [0, 1, 2, 4, 8]


def test_the_first_steps_are_looked_at_more_closely() -> None:
    assert [step for step in range(200) if is_looked_at(step, 50)] == [0, 1, 2, 4, 8, 16, 32, 50, 100, 150]


@pytest.mark.parametrize("batch", [1, BATCHES + 2, 2 * BATCHES])
def test_a_resumed_fit_records_every_step_once(
    batch: int, watched: tuple[Records, Watcher, Session], tmp_path: Path
) -> None:
    killed = Session(tmp_path)
    killed.train.before = kill_at(batch)
    with pytest.raises(Killed):
        killed.fit(watching=[Probe(tmp_path, FACTS)])
    assert len(read_losses(tmp_path)["TRAIN"].step) == batch
    Session(tmp_path).fit(watching=[Probe(tmp_path, FACTS)])
    for mode, losses in read_losses(watched[2].folder).items():
        found = read_losses(tmp_path)[mode]
        assert found.step.tolist() == losses.step.tolist()
        assert found.global_step.tolist() == losses.global_step.tolist()
        assert found.value == pytest.approx(losses.value, abs=1e-6)


def test_steps_that_a_later_session_takes_again_count_once(tmp_path: Path) -> None:
    def rows(mode: str, first: int, last: int, value: float) -> dict[str, Any]:
        steps = list(range(first, last))
        count = len(steps)
        return {
            "mode": [mode] * count, "name": ["x"] * count, "step": steps, "global_step": steps,
            "value": [value] * count, "photos": [1] * count, "learning_rate": [0.1] * count,
        }  # fmt: skip

    first = RecordWriter(tmp_path, FACTS, {"TRAIN": 0, "EVAL": 0})
    first.write("losses", rows("TRAIN", 0, 6, 1.0))
    first.write("losses", rows("EVAL", 0, 2, 1.0))
    second = RecordWriter(tmp_path, FACTS, {"TRAIN": 4, "EVAL": 1})
    assert read_losses(tmp_path)["TRAIN"].step.tolist() == [0, 1, 2, 3]
    second.write("losses", rows("TRAIN", 4, 5, 2.0))
    third = RecordWriter(tmp_path, FACTS, {"TRAIN": 3, "EVAL": 1})
    third.write("losses", rows("TRAIN", 3, 5, 3.0))
    losses = read_losses(tmp_path)
    assert losses["TRAIN"].value.tolist() == [1.0, 1.0, 1.0, 3.0, 3.0]
    assert losses["EVAL"].step.tolist() == [0]


def test_records_are_flushed_as_time_goes_by(tmp_path: Path) -> None:
    now = iter(np.arange(0, 10_000, 1.5))
    session = Session(tmp_path)
    session.fit(watching=[Probe(tmp_path, FACTS, clock=lambda: float(next(now)))])
    # Of 12 steps 1.5 s apart, each flush comes when 5 s are over (and asks for the time itself); one more at the end.
    assert len(list((tmp_path / "debugger").glob("losses-*.parquet"))) == 4


def test_nothing_recorded_reads_as_nothing(tmp_path: Path) -> None:
    assert read_losses(tmp_path) == {}
    with pytest.raises(RunError, match=r"has no records of the debugger; accepted is a run made with"):
        read_records(tmp_path)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    RecordWriter(tmp_path, FACTS, {"TRAIN": 0, "EVAL": 0})
    part = tmp_path / "debugger" / "losses-001-00000.parquet"
    part.write_bytes(b"PAR1 no more")
    with pytest.raises(RunError, match=r"losses-001-00000.parquet cannot be read: .*; delete it"):
        read_losses(tmp_path)


def test_dead_units_are_told_when_a_hundred_photos_were_seen() -> None:
    head = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    first = head[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight.zero_()
        first.bias.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]))
    statistics = LayerStatistics(head, head)
    for _ in range(2):
        assert statistics.dead_relus() == {}
        statistics.watch()
        head(torch.randn(60, 2))
        statistics.release()
    ((name, (share, photos)),) = statistics.dead_relus().items()
    assert (name, float(share), photos) == ("1", 0.5, 120)
    head(torch.randn(200, 2))
    assert statistics.dead_relus() == {}


def test_frozen_layers_are_left_alone_and_a_relu_used_twice_is_two() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide, self.relu = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 7, 1), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.relu(self.wide(self.relu(self.narrow(x))))
            return out

    frozen, block = Block(), Block()
    network = nn.Sequential(frozen.requires_grad_(False), nn.Conv2d(7, 3, 1), block)
    statistics = LayerStatistics(network, network)
    assert sorted(statistics.layers) == ["1", "2.narrow", "2.wide"]
    statistics.watch()
    network(torch.randn(100, 3, 4, 4)).sum().backward()
    assert sorted(statistics.dead_relus()) == ["2.relu", "2.relu.1"]
    rows = statistics.rows()
    gradient = block.wide.weight.grad
    bias = block.wide.bias
    assert gradient is not None
    assert bias is not None
    assert bias.grad is not None
    both = torch.cat([gradient.flatten(), bias.grad])
    assert float(rows["2.wide"]["gradient_norm"]) == pytest.approx(float(both.norm()), rel=1e-5)
    assert float(rows["2.wide"]["gradient_mean"]) == pytest.approx(float(both.abs().mean()), rel=1e-5)
    assert int(rows["2.wide"]["fan_in"]) == 5


def test_a_block_of_a_transformer_is_looked_at_like_any_layer() -> None:
    # Attention owns weights and gives a tuple: its answer, and how it weighed.
    block = EncoderBlock(num_heads=2, hidden_dim=8, mlp_dim=16, dropout=0.0, attention_dropout=0.0)
    answers: list[torch.Tensor] = []
    block.self_attention.register_forward_hook(lambda part, inputs, output: answers.append(output[0].detach()))
    statistics = LayerStatistics(block, block)
    statistics.watch()
    block(torch.randn(4, 5, 8)).sum().backward()
    row = statistics.rows()["self_attention"]
    assert float(row["output_std"]) == pytest.approx(float(answers[0].std(correction=0)), rel=1e-5)
    assert float(row["gradient_norm"]) > 0


@pytest.mark.slow
def test_a_killed_run_leaves_what_it_had_flushed(tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "photos", train=40)
    run_dir = tmp_path / "run"
    process = start(
        tiny(photos, run_dir, "trainer.max_epochs=5000", "trainer.patience=null"), program=("-c", IMPATIENT)
    )
    try:
        wait_for(run_dir / "debugger" / "session-001.json", process)
        while (while_it_runs := len(read_losses(run_dir).get("TRAIN", NONE).step)) < 10:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    after = read_losses(run_dir)["TRAIN"]
    assert len(after.step) >= while_it_runs >= 10
    assert after.step.tolist() == list(range(len(after.step)))
    assert np.isfinite(after.value).all()


def test_a_flush_is_due_after_five_seconds_or_a_hundredth_of_the_run() -> None:
    probe = Probe(Path(), FACTS, clock=time.monotonic)
    probe._started, probe._flushed = 0.0, 100.0
    assert probe._next_flush() == 100.0 + probe_module.FLUSH_S
    probe._flushed = 10_000.0
    assert probe._next_flush() == 10_100.0
