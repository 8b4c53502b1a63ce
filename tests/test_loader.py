"""The order of batches, what an interrupted epoch leaves, and the images in them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import nn

from graft.data.folder import Folder, scan
from graft.data.loader import Batch, EpochOrder, Place, ResumableLoader, Source
from graft.data.module import ImageData, ImageSource, class_counts, default_workers, inverse_frequency
from graft.images import render
from graft.inputs import InputSpec
from graft.stores import LocalStore
from tests.pictures import draw_folder

LENGTH, BATCH = 23, 5
SPEC = InputSpec(image_size=32, resize=36)
# On a machine with one core torch advises against two workers; the test is about the order.
FEW_CORES = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:This process .*multi-threaded")


class Numbers:
    """A source whose inputs are the places themselves."""

    def __len__(self) -> int:
        return LENGTH

    def __getitems__(self, places: list[Place]) -> Batch:
        return torch.tensor(places, dtype=torch.float32), torch.tensor([index % 3 for _, index in places])


def order_of(epoch: int, *, seed: int = 0, batch_size: int = BATCH) -> list[int]:
    order = EpochOrder(LENGTH, batch_size, seed=seed, shuffle=True)
    order.set_epoch(epoch)
    return [index for batch in order for _, index in batch]


def loader(workers: int = 0, weights: NDArray[np.float64] | None = None) -> ResumableLoader:
    return ResumableLoader(Numbers(), EpochOrder(LENGTH, BATCH, seed=7, shuffle=True, weights=weights), workers=workers)


def served(epoch: int, source: ResumableLoader) -> list[list[list[float]]]:
    source.order.set_epoch(epoch)
    return [inputs.tolist() for inputs, _ in source]


class TestOrder:
    def test_every_photo_comes_once_in_every_epoch(self) -> None:
        for epoch in range(3):
            assert sorted(order_of(epoch)) == list(range(LENGTH))

    def test_another_epoch_or_seed_is_another_order_and_the_same_is_the_same(self) -> None:
        orders = {(seed, epoch): tuple(order_of(epoch, seed=seed)) for seed in range(3) for epoch in range(3)}
        assert len(set(orders.values())) == 9
        assert order_of(2, seed=1) == list(orders[1, 2])
        assert tuple(range(LENGTH)) not in orders.values()

    def test_the_order_does_not_depend_on_the_batch_size_or_the_global_generators(self) -> None:
        expected = order_of(4)
        np.random.seed(1)
        torch.manual_seed(1)
        assert order_of(4, batch_size=2) == expected

    def test_batches_are_full_but_for_the_last_and_carry_the_epoch(self) -> None:
        order = EpochOrder(LENGTH, BATCH, seed=0, shuffle=True)
        order.set_epoch(3)
        batches = list(order)
        assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
        assert len(order) == 5
        assert {epoch for batch in batches for epoch, _ in batch} == {3}

    def test_without_shuffling_the_order_is_that_of_the_split(self) -> None:
        order = EpochOrder(LENGTH, BATCH, seed=0, shuffle=False)
        order.set_epoch(5)
        assert [index for batch in order for _, index in batch] == list(range(LENGTH))

    def test_weights_decide_how_often_a_photo_is_drawn(self) -> None:
        # 90 photos of one class, 10 of another: with inverse frequencies, half of the draws are of each.
        labels = np.repeat([0, 1], [90, 10])
        weights = inverse_frequency(labels, 2)[labels]
        order = EpochOrder(100, 10, seed=0, shuffle=True, weights=weights)
        drawn: list[int] = []
        for epoch in range(100):
            order.set_epoch(epoch)
            drawn += [index for batch in order for _, index in batch]
        assert len(drawn) == 10_000
        counts = Counter(labels[drawn].tolist())
        assert abs(counts[1] - 5000) < 250  # five standard deviations of a fair coin
        assert set(drawn) == set(range(100))


@FEW_CORES
@pytest.mark.parametrize("workers", [0, 2])
class TestResume:
    def test_a_resumed_epoch_serves_exactly_the_rest(self, workers: int) -> None:
        whole = served(3, loader())
        stopped = loader(workers)
        stopped.order.set_epoch(3)
        batches = iter(stopped)
        assert [next(batches)[0].tolist() for _ in range(2)] == whole[:2]
        state = stopped.state_dict()

        resumed = loader(workers)
        resumed.load_state_dict(state)
        assert served(3, resumed) == whole[2:]
        assert served(4, resumed) == served(4, loader())  # the next epoch is whole again

    def test_a_resumed_epoch_can_be_interrupted_again(self, workers: int) -> None:
        whole = served(0, loader())
        state = {"served": 1}
        for done in (1, 2):
            resumed = loader(workers)
            resumed.load_state_dict(state)
            assert next(iter(resumed))[0].tolist() == whole[done]
            state = resumed.state_dict()
        assert state == {"served": 3}

    def test_at_an_epochs_end_nothing_of_the_next_is_left_out(self, workers: int) -> None:
        ended = loader(workers)
        assert len(served(0, ended)) == 5
        resumed = loader(workers)
        resumed.load_state_dict(ended.state_dict())
        assert served(1, resumed) == served(1, loader())


def test_a_weighted_epoch_is_resumed_too() -> None:
    weights = np.linspace(1, 5, LENGTH)
    whole = served(2, loader(weights=weights))
    resumed = loader(weights=weights)
    resumed.load_state_dict({"served": 3})
    assert served(2, resumed) == whole[3:]


class Recorder(pl.LightningModule):
    """Notes the places it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)
        self.seen: list[list[list[float]]] = []

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
        self.seen.append(batch[0].tolist())
        return nn.functional.cross_entropy(self.head(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Saver(pl.Callback):
    """Writes a checkpoint in the middle of training."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: object) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path, weights_only=False)


def fitted(path: Path, *, save_at: int = 0, resume: Path | None = None) -> list[list[list[float]]]:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=Saver(path / "saved.ckpt", save_at),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
    )
    module = Recorder()
    trainer.fit(module, loader(), ckpt_path=resume, weights_only=False)
    return module.seen


@pytest.mark.filterwarnings("ignore::lightning_fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("steps", [7, 10])
def test_lightning_says_the_epoch_and_keeps_the_state(tmp_path: Path, steps: int) -> None:
    expected = [batch for epoch in range(3) for batch in served(epoch, loader())]
    assert fitted(tmp_path, save_at=steps) == expected
    assert fitted(tmp_path, resume=tmp_path / "saved.ckpt") == expected[steps:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root = draw_folder(tmp_path_factory.mktemp("photos"), classes=3, train=4, valid=2, test=0, size=48)
    return scan(LocalStore(root))


def image_data(folder: Folder, **settings: object) -> ImageData:
    return ImageData(folder.train, folder.valid, spec=SPEC, batch_size=5, seed=3, **settings)  # type: ignore[arg-type]


def batches(source: ResumableLoader, epoch: int = 0) -> Batch:
    source.order.set_epoch(epoch)
    inputs, labels = zip(*source, strict=True)
    return torch.cat(inputs), torch.cat(labels)


class TestImages:
    def test_valid_comes_in_its_order_with_its_pixels(self, folder: Folder) -> None:
        images, labels = batches(image_data(folder).val_dataloader())
        assert (images.shape, images.dtype, labels.dtype) == ((6, 32, 32, 3), torch.uint8, torch.int64)
        assert labels.tolist() == [0, 0, 1, 1, 2, 2]
        for index, image in enumerate(images):
            assert np.array_equal(image.numpy(), render(folder.valid.read(index), SPEC).pixels)

    def test_train_is_shuffled_with_its_labels(self, folder: Folder) -> None:
        images, labels = batches(image_data(folder, augment=False).train_dataloader())
        place = {render(folder.train.read(n), SPEC).pixels.tobytes(): n for n in range(len(folder.train))}
        indices = [place[image.numpy().tobytes()] for image in images]
        assert sorted(indices) == list(range(12))
        assert indices != sorted(indices)
        assert labels.tolist() == folder.train.labels()[indices].tolist()

    def test_an_epoch_augments_in_its_own_way_each_time_the_same(self, folder: Folder) -> None:
        source = image_data(folder).train_source
        places = [[(epoch, index) for index in range(12)] for epoch in (0, 1)]
        first, second = (source.__getitems__(epoch)[0] for epoch in places)
        plain = image_data(folder, augment=False).train_source.__getitems__(places[0])[0]
        differ = [not torch.equal(one, other) for one, other in zip(first, second, strict=True)]
        assert all(differ)
        assert not any(torch.equal(one, other) for one, other in zip(first, plain, strict=True))
        # alone, in another order and from another object: the same pixels
        again = image_data(folder).train_source.__getitems__([(1, 7)])[0]
        assert torch.equal(again[0], second[7])

    def test_another_seed_augments_otherwise(self, folder: Folder) -> None:
        one, other = (ImageSource(folder.train, SPEC, augment_seed=seed).__getitems__([(0, 0)])[0] for seed in (0, 1))
        assert not torch.equal(one, other)

    @FEW_CORES
    def test_worker_processes_decode_the_same_pixels(self, folder: Folder) -> None:
        here, there = (batches(image_data(folder, workers=workers).train_dataloader(), 1) for workers in (0, 2))
        assert torch.equal(here[0], there[0])
        assert torch.equal(here[1], there[1])

    def test_the_sampler_balances_and_features_replace_images(self, folder: Folder) -> None:
        numbers: Source = Numbers()
        data = image_data(folder, train_source=numbers, valid_source=numbers, workers=2)
        assert data.train_dataloader().num_workers == 0  # features are read in this process
        assert sorted(batches(data.train_dataloader())[0][:, 1].tolist()) == list(range(LENGTH))
        few = folder.train.keep(np.arange(12) < 5)  # 4 photos of class 0, 1 of class 1
        order = ImageData(few, folder.valid, spec=SPEC, batch_size=5, balance="sampler").train_dataloader().order
        assert order.probabilities is not None
        assert order.probabilities.tolist() == pytest.approx([1 / 8] * 4 + [1 / 2])
        assert image_data(folder, balance="loss").train_dataloader().order.probabilities is None


def test_inverse_frequencies_of_a_known_count() -> None:
    labels = np.array([0] * 6 + [2] * 2)
    weights = inverse_frequency(labels, 3)
    assert weights.tolist() == pytest.approx([8 / 6 / 2, 0, 8 / 2 / 2])
    assert weights[labels].mean() == pytest.approx(1)


def test_counts_name_every_class(folder: Folder) -> None:
    assert class_counts(folder.train.keep(np.arange(12) < 5)) == {"class_0": 4, "class_1": 1, "class_2": 0}


def test_workers_are_one_per_core_unless_given() -> None:
    assert default_workers(None) == len(os.sched_getaffinity(0))
    assert default_workers(0) == 0
    assert default_workers(3) == 3
