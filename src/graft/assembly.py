"""From the configuration to the parts of a run: each function hands one of them its plain arguments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytorch_lightning as pl

from graft.artifacts import RunDirectory, open_run
from graft.bundle import make_manifest, save_bundle
from graft.classifier import Classifier
from graft.config import Balance, Config, DataKind, to_yaml
from graft.data.archive import fetch_archive
from graft.data.demo import generate
from graft.data.digests import DigestIndex
from graft.data.findings import Finding, not_compared
from graft.data.folder import Folder, scan
from graft.data.module import ImageData, default_workers, inverse_frequency
from graft.data.stores import open_store
from graft.doubts import REFERENCE_PHOTOS, fit_doubts
from graft.environment import git_sha
from graft.errors import ConfigError, DataError, WeightsError
from graft.evaluate import Evaluation
from graft.features.compute import Backbone, FeatureCache
from graft.fit import fit
from graft.inputs import InputSpec
from graft.inspection import inspect_features
from graft.mirror import mirrored
from graft.model import input_spec
from graft.novelty import write_novelty
from graft.photos import Photos, look_at_photos
from graft.processes import ALONE, Team
from graft.profiler.recorder import Profile
from graft.profiler.timer import Timer, TorchTrace
from graft.recording import build_probe, profile_facts
from graft.s3 import fetch_file
from graft.storage import disk_errors, is_remote, local_path
from graft.terminal import progress_bar, say

HEAD_THREADS = 4  # a step of a head takes milliseconds: more threads wait for each other longer than they work


@contextmanager
def open_run_of(config: Config, overrides: tuple[str, ...], team: Team) -> Iterator[RunDirectory]:
    """The run directory, held by the leader; the other processes of a run write nothing there."""
    if not team.leads:
        with _disk_errors(config):
            yield replace(team.agree(RunDirectory(Path(), "")), writes=False)
        return
    # Disk errors twice: inside, so that run.json says the same; outside, for what opening and that note meet.
    with (
        _disk_errors(config),
        _run_folder(config) as folder,
        open_run(folder, to_yaml(config), overrides) as run,
        _disk_errors(config),
    ):
        yield team.agree(run)


@contextmanager
def _run_folder(config: Config) -> Iterator[Path]:
    """The local folder of the run; of one in S3, a copy that is sent there as it changes."""
    if not is_remote(config.run_dir):
        yield Path(config.run_dir).expanduser()
        return
    with mirrored(config.run_dir, cache_folder(config) / "runs") as folder:
        yield folder
    say(f"run {config.run_dir} is complete; {folder} is its local copy")


def _disk_errors(config: Config) -> AbstractContextManager[None]:
    places = {"features.cache_dir": cache_folder(config)}
    if not is_remote(config.run_dir):
        places["run_dir"] = Path(config.run_dir).expanduser()
    return disk_errors(places)


def cache_folder(config: Config) -> Path:
    """What all runs share: features, content hashes, copies of remote files, the ledger of test."""
    return local_path(config.features.cache_dir, "features.cache_dir")


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


def open_folder(config: Config, team: Team = ALONE) -> Folder:
    """The splits below `data.root`."""
    d = config.data
    if team.leads_machine:
        provide_folder(config)
    team.wait()
    store = open_store(d.root, "data.root", cache=cache_folder(config) / "objects", max_bytes=d.cache_gb * 1e9)
    folder = scan(store, d.hint)
    if folder.test is None:
        say(f"{folder.location} has no test/ split: this run trains and validates, and has no figure on unseen photos")
    return folder


def provide_folder(config: Config) -> None:
    """Draw demo photos, or fetch `data.archive`, where `data.root` is not there yet."""
    d = config.data
    if d.kind is DataKind.demo:
        generate(local_path(d.root, "data.root"), per_class=d.demo_per_class, seed=0)
    elif d.archive and not is_remote(d.root):
        bar = partial(progress_bar, unit="bytes", shown=config.trainer.progress)
        fetch_archive(d.archive, Path(d.root).expanduser(), size=d.archive_bytes, region=d.archive_region, progress=bar)


def with_local_weights(config: Config, team: Team = ALONE) -> Config:
    """The configuration with weights of S3 fetched once and named by their local copy."""
    weights = config.model.weights
    if not is_remote(weights):
        return config
    if not weights.startswith("s3://"):
        raise ConfigError(f"model.weights={weights}: accepted is a name, a local file or s3://BUCKET/KEY")
    bar = partial(progress_bar, unit="bytes", shown=config.trainer.progress)
    try:
        path = fetch_file(weights, cache_folder(config) / "weights", bar) if team.leads_machine else None
        team.wait()
        path = path or fetch_file(weights, cache_folder(config) / "weights")
    except DataError as error:
        raise WeightsError(f"model.weights={error}") from error
    return replace(config, model=replace(config.model, weights=str(path)))


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
        clip_norm=config.optim.clip_norm,
        schedule=config.optim.schedule.value,
        backbone_lr_factor=config.optim.backbone_lr_factor,
        class_weights=None if weights is None else weights.tolist(),
        seed=config.seed,
    )


def look(
    config: Config, folder: Folder, classifier: Classifier, spec: InputSpec, device: str, team: Team = ALONE
) -> Photos:
    """One look at every photo: its features where the backbone is frozen, else only whether it decodes."""
    f, workers = config.features, default_workers(config.data.workers)
    directory = cache_folder(config) / "features"
    index = DigestIndex(directory.parent)
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
        cache = FeatureCache(directory, backbone, workers=max(workers, 1), index=index, team=team)
    photos = look_at_photos(
        folder,
        cache,
        directory,
        views=f.views,
        plain=f.plain,
        seed=config.seed,
        spec=spec,
        on_corrupt=config.data.on_corrupt.value,
        on_leak=config.data.on_leak.value,
        workers=max(workers, 1),
        progress=partial(progress_bar, shown=config.trainer.progress),
        index=index,
        team=team,
    )
    if cache and team.leads:
        photos = photos.with_findings(near_duplicates(config, photos, cache))
    if cache and team.leads_machine:
        cache.evict(f.max_gb * 1e9)
    if photos.findings:
        count = len(photos.findings)
        say(
            f"the checks of the photos have {count} finding{'s' if count > 1 else ''}, told at the end and in data.json"
        )
    return photos


def near_duplicates(config: Config, photos: Photos, cache: FeatureCache) -> list[Finding]:
    """Pictures that are in two splits, told from the features that are there.

    Not looked for among drawings, of which two that differ by a turn count as one picture, nor where every
    comparison would fetch a photo again.
    """
    if config.data.kind is DataKind.demo:
        return []
    if is_remote(config.data.root) and not config.data.cache_gb:
        return [not_compared("data.cache_gb=0 keeps no copies of photos in S3")]
    return inspect_features(
        list(photos.splits.values()),
        photos.plain,
        features=cache.key,
        fit=photos.spec.fit,
        workers=cache.workers,
        on_leak=config.data.on_leak.value,
        directory=cache_folder(config) / "neighbours",
    )


def build_data(config: Config, photos: Photos, device: str, team: Team = ALONE) -> ImageData:
    """Batches of features, or of images where something is unfrozen, for a model on `device`."""
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
        rank=team.rank,
        size=team.size,
        pinned=device == "cuda",
    )


def fitting_team(config: Config, team: Team) -> Team:
    """The processes that train: all of them on images, the leader alone on features.

    A step of a head takes 3 ms, less than to send its gradients round: on 6,000 photos two processes took
    13 s for what one does in 2.6 s.
    """
    return team.part() if config.trains_on_features else team


def fit_classifier(
    config: Config,
    classifier: Classifier,
    photos: Photos,
    run: RunDirectory,
    device: str,
    team: Team = ALONE,
    watching: Sequence[pl.Callback] = (),
    profile: Profile | None = None,
) -> Classifier:
    """Train; the classifier of the epoch with the lowest valid/loss."""
    pl.seed_everything(config.seed, verbose=False)
    data = build_data(config, photos, device, team)
    t = config.trainer
    watching = [*build_probe(config, data, run, team), *watching]
    timer = None
    if profile and profile.is_on:
        profile.facts = profile_facts(config, photos, data, device)
        timer = Timer(profile.watch)
        watching += [TorchTrace(profile.trace, config.profiler.torch_steps)] if config.profiler.torch_steps else []
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
        team=team,
        watching=watching,
        timer=timer,
    )


def save_model(
    config: Config,
    run: RunDirectory,
    classifier: Classifier,
    photos: Photos,
    on_valid: Evaluation,
    metrics: dict[str, float],
) -> None:
    """Write the bundle of a run; the thresholds of its doubts are fitted on valid."""
    probability, chosen = (on_valid.logits / on_valid.temperature).softmax(1).max(1)
    right = (chosen == on_valid.labels).numpy()
    doubts, novelty = fit_doubts(
        probability.numpy(), right, photos.features("train", REFERENCE_PHOTOS), photos.features("valid")
    )
    if novelty:
        write_novelty(run.bundle, novelty)
    valid, unfreeze = photos.splits["valid"], config.model.unfreeze
    manifest = make_manifest(
        classifier,
        class_names=valid.class_names,
        input=photos.spec,
        temperature=on_valid.temperature,
        model_id=run.run_id,
        weights=config.model.weights,
        weights_fingerprint=classifier.backbone_fingerprint,
        trained_part="the head" if unfreeze == "head" else f"the head and {unfreeze} of the backbone",
        feature_precision=photos.precision,
        metrics=metrics,
        data={"root": config.data.root, **photos.describe()},
        git_sha=git_sha(),
        toy=config.data.kind is DataKind.demo,
        doubts=doubts,
    )
    save_bundle(run.bundle, classifier, manifest, valid)
