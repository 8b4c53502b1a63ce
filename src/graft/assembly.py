"""From the configuration to the parts of a run: each function hands one of them its plain arguments."""

from __future__ import annotations

from functools import partial

import pytorch_lightning as pl

from graft.artifacts import RunDirectory
from graft.bundle import make_manifest, save_bundle
from graft.classifier import Classifier
from graft.config import Balance, Config, DataKind
from graft.data.demo import generate
from graft.data.folder import Folder, scan
from graft.data.module import ImageData, class_counts, default_workers, inverse_frequency
from graft.environment import git_sha
from graft.features.compute import Backbone, FeatureCache
from graft.fit import fit
from graft.images import InputSpec
from graft.model import input_spec
from graft.photos import Photos, look_at_photos
from graft.storage import local_path
from graft.terminal import progress_bar, say

HEAD_THREADS = 4  # a step of a head takes milliseconds: more threads wait for each other longer than they work


def expected_input(config: Config) -> InputSpec:
    """What the backbone expects of an image, and what the configuration says instead."""
    m = config.model
    return input_spec(
        m.backbone,
        m.weights,
        image_size=m.image_size,
        resize=m.resize,
        fit=m.fit.value,
        mean=m.mean,
        std=m.std,
    )


def open_folder(config: Config) -> Folder:
    """The splits below `data.root`; demo photos are drawn there first."""
    root = local_path(config.data.root, "data.root")
    if config.data.kind is DataKind.demo:
        generate(root, per_class=config.data.demo_per_class, seed=0)
    folder = scan(root, config.data.hint)
    if folder.test is None:
        say(f"{root} has no test/ split: this run trains and validates, and has no figure on unseen photos")
    if folder.ignored:
        say(
            f"{len(folder.ignored)} files are ignored, being no photos or in no class folder, "
            f"e.g. {folder.ignored[0]} (all in data.json)"
        )
    if untrained := [name for name, count in class_counts(folder.train).items() if not count]:
        listed = ", ".join(untrained[:3]) + (", ..." if len(untrained) > 3 else "")
        say(f"{len(untrained)} classes have no training photo and are never predicted right: {listed}")
    return folder


def build_classifier(config: Config, folder: Folder, spec: InputSpec) -> Classifier:
    """Backbone and head; class weights are counted over all photos of train, damaged ones included."""
    num_classes = len(folder.class_names)
    weights = inverse_frequency(folder.train.labels(), num_classes) if config.data.balance is Balance.loss else None
    return Classifier(
        config.model.backbone,
        num_classes,
        hidden=config.model.hidden,
        mean=list(spec.mean),
        std=list(spec.std),
        weights=config.model.weights,
        unfreeze=config.model.unfreeze,
        algorithm=config.optim.algorithm.value,
        lr=config.optim.lr,
        weight_decay=config.optim.weight_decay,
        label_smoothing=config.optim.label_smoothing,
        schedule=config.optim.schedule.value,
        backbone_lr_factor=config.optim.backbone_lr_factor,
        class_weights=None if weights is None else weights.tolist(),
        seed=config.seed,
    )


def look(config: Config, folder: Folder, classifier: Classifier, spec: InputSpec, device: str) -> Photos:
    """One look at every photo: its features where the backbone is frozen, else only whether it decodes."""
    f, workers = config.features, default_workers(config.data.workers)
    directory = local_path(f.cache_dir, "features.cache_dir") / "features"
    cache = None
    if config.trains_on_features:
        backbone = Backbone(
            classifier.backbone,
            config.model.backbone,
            spec,
            f.engine.value,
            f.precision.value,
            device,
            f.batch_size,
            classifier.backbone_fingerprint,
        )
        cache = FeatureCache(directory, backbone, workers=max(workers, 1))
    photos = look_at_photos(
        folder,
        cache,
        directory,
        views=f.views,
        plain=f.plain,
        seed=config.seed,
        spec=spec,
        on_corrupt=config.data.on_corrupt.value,
        workers=max(workers, 1),
        progress=partial(progress_bar, shown=config.trainer.progress),
    )
    if cache:
        cache.evict(f.max_gb * 1e9)
    report_damage(photos)
    return photos


def report_damage(photos: Photos) -> None:
    """Say how many photos are damaged and name the first; data.json names them all, but none of a sealed split."""
    for damage in photos.damage:
        sealed = photos.splits[damage.split].sealed
        for kind, files in (("truncated", damage.truncated), ("undecodable", damage.undecodable)):
            if files:
                named = "" if sealed else f", e.g. {files[0]} (all in data.json)"
                say(f"{damage.split}: {len(files)} {kind} photos{named}")


def build_data(config: Config, photos: Photos) -> ImageData:
    """Batches of features, or of images where something is unfrozen."""
    cached = photos.train_source() is not None
    return ImageData(
        photos.splits["train"],
        photos.splits["valid"],
        spec=photos.spec,
        batch_size=config.data.batch_size,
        balance=config.data.balance.value,
        augment=config.data.augment,
        workers=default_workers(config.data.workers),
        seed=config.seed,
        train_source=photos.train_source(),
        valid_source=photos.source(photos.splits["valid"]) if cached else None,
    )


def fit_classifier(
    config: Config, classifier: Classifier, data: ImageData, run: RunDirectory, device: str
) -> Classifier:
    """Train; the classifier of the epoch with the lowest valid/loss."""
    pl.seed_everything(config.seed, verbose=False)
    t = config.trainer
    return fit(
        classifier,
        data,
        checkpoints=run.checkpoints,
        logs=run.path / "logs",
        device=device,
        max_epochs=t.max_epochs,
        max_steps=t.max_steps,
        patience=t.patience,
        precision=t.precision.value,
        checkpoint_minutes=t.checkpoint_minutes,
        progress=t.progress,
        threads=HEAD_THREADS if config.trains_on_features and device == "cpu" else None,
    )


def save_model(
    config: Config,
    run: RunDirectory,
    classifier: Classifier,
    photos: Photos,
    temperature: float,
    metrics: dict[str, float],
) -> None:
    """Write the bundle of a run."""
    valid, unfreeze = photos.splits["valid"], config.model.unfreeze
    manifest = make_manifest(
        classifier,
        class_names=valid.class_names,
        input=photos.spec,
        temperature=temperature,
        model_id=run.run_id,
        weights_fingerprint=classifier.backbone_fingerprint,
        trained_part="the head" if unfreeze == "head" else f"the head and {unfreeze} of the backbone",
        feature_precision=photos.precision,
        metrics=metrics,
        data={"root": config.data.root, **photos.describe()},
        git_sha=git_sha(),
        toy=config.data.kind is DataKind.demo,
    )
    save_bundle(run.bundle, classifier, manifest, valid)
