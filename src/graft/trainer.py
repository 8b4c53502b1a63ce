"""train(config): the story of a run, from a folder of photos to a model bundle."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytorch_lightning as pl

from graft.artifacts import RunDirectory, open_run
from graft.bundle import make_manifest, save_bundle
from graft.classifier import Classifier
from graft.config import Balance, Config, DataKind, config_hash, to_yaml
from graft.data.demo import generate
from graft.data.folder import Folder, scan
from graft.data.module import ImageData, default_workers, inverse_frequency
from graft.environment import describe_environment, git_sha
from graft.evaluate import Evaluation, details, evaluate, evaluate_test, write_predictions
from graft.features.compute import Backbone, FeatureCache
from graft.fit import exit_on_sigterm, fit, pick_device, quiet_lightning
from graft.images import InputSpec
from graft.model import input_spec
from graft.photos import Photos, look_at_photos
from graft.storage import local_path
from graft.terminal import progress_bar, say


@dataclass(frozen=True)
class RunResult:
    """What a run left: its directory, its flat metrics, and whether they are those of drawn photos."""

    run_dir: Path
    metrics: dict[str, float]
    toy: bool = False


def train(config: Config, overrides: tuple[str, ...] = (), started: float | None = None) -> RunResult:
    """Train, evaluate and bundle one model; resumes what an earlier process left in `config.run_dir`.

    Args:
        config: the whole configuration.
        overrides: what the command line said, for the record.
        started: `time.perf_counter()` when the program started, so that imports count.

    Raises:
        GraftError: something a person can mend.
        SystemExit: the run was told to stop; it can be resumed.
    """
    started = time.perf_counter() if started is None else started
    quiet_lightning()
    device = pick_device(config.trainer.accelerator.value)
    with exit_on_sigterm(), open_run(local_path(config.run_dir, "run_dir"), to_yaml(config), overrides) as run:
        run.write_json("environment.json", {**describe_environment(), "device": device})
        spec = expected_input(config)
        folder = open_folder(config)
        classifier = build_classifier(config, folder, spec)
        photos = look(config, folder, classifier, spec, device)
        run.write_json("data.json", photos.describe())

        fit_started = time.perf_counter()
        data = build_data(config, photos)
        classifier = fit_classifier(config, classifier, data, run, device)
        times = {"features_s": photos.seconds, "fit_s": time.perf_counter() - fit_started}

        evaluations, openings = evaluate_splits(config, run, classifier.to(device), photos)
        metrics = flat_metrics(evaluations, openings, photos)
        write_predictions(run.predictions, list(evaluations.values()))
        run.write_json("evaluation.json", {name: details(e) for name, e in evaluations.items()})
        bundle(config, run, classifier.cpu(), photos, evaluations["valid"].temperature, metrics)
        times["total_s"] = time.perf_counter() - started
        metrics |= {f"time/{name}": seconds for name, seconds in times.items()}
        run.write_json("metrics.json", metrics)
        run.set_state("finished")
    return RunResult(run.path, metrics, toy=config.data.kind is DataKind.demo)


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
        say(f"{len(folder.ignored)} files in class folders are no photos, e.g. {folder.ignored[0]}")
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
    """Say how many photos are damaged and name the first; data.json names them all."""
    for damage in photos.damage:
        for kind, files in (("truncated", damage.truncated), ("undecodable", damage.undecodable)):
            if files:
                say(f"{damage.split}: {len(files)} {kind} photos, e.g. {files[0]} (all in data.json)")


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
    )


def evaluate_splits(
    config: Config, run: RunDirectory, classifier: Classifier, photos: Photos
) -> tuple[dict[str, Evaluation], int]:
    """Valid, which fits the temperature, and test, if it is to be opened; with the count of its openings."""
    valid, shown = photos.splits["valid"], config.trainer.progress
    with progress_bar("evaluating valid", len(valid), shown) as advance:
        on_valid = evaluate(valid, photos.source(valid), classifier.logits, seed=config.seed, advance=advance)
    if "test" not in photos.splits or config.evaluate.test is False:
        return {"valid": on_valid}, 0
    test = photos.splits["test"]
    with progress_bar("evaluating test", len(test), shown) as advance:
        on_test, openings = evaluate_test(
            test,
            photos.source,
            classifier.logits,
            ledger=local_path(config.features.cache_dir, "features.cache_dir") / "test_openings.jsonl",
            data_fingerprint=photos.fingerprint("test"),
            config_hash=config_hash(config),
            run_id=run.run_id,
            seed=config.seed,
            temperature=on_valid.temperature,
            advance=advance,
        )
    return {"valid": on_valid, "test": on_test}, openings


def flat_metrics(evaluations: dict[str, Evaluation], openings: int, photos: Photos) -> dict[str, float]:
    """`split/name` -> number, and what it took to compute the features; times come last."""
    metrics = {f"{split}/{name}": value for split, e in evaluations.items() for name, value in e.metrics.items()}
    if openings:
        metrics["test/openings"] = openings
    metrics["data/truncated"] = sum(len(damage.truncated) for damage in photos.damage)
    metrics["data/undecodable"] = sum(len(damage.undecodable) for damage in photos.damage)
    if photos.views:
        metrics["features/computed"] = photos.computed
        metrics["features/reused"] = photos.reused
        metrics["features/images_per_s"] = photos.computed / photos.seconds
    return metrics


def bundle(
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
