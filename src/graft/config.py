"""Every knob of graft: typed, documented, range-checked; nothing here imports torch.

Hydra composes a tree, `parse` turns it into a `Config`; graft.command reads the command line before that. Hydra and
OmegaConf are imported by the functions that need them: a server reads the schema without them.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, EnumMeta
from functools import cache
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from graft.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

MISSING: Any = "???"  # OmegaConf's mark of a value that must be given


class DataKind(Enum):
    """Where photos come from: a folder that exists, or images drawn from a seed."""

    folder = "folder"
    demo = "demo"


class OnCorrupt(Enum):
    """What happens to a photo that is truncated or cannot be decoded."""

    repair = "repair"
    skip = "skip"
    error = "error"


class OnLeak(Enum):
    """What happens when a photo of one split is in another one too, as it is or nearly so."""

    warn = "warn"
    error = "error"


class Balance(Enum):
    """How classes of different sizes are weighted in training."""

    none = "none"
    sampler = "sampler"
    loss = "loss"


class Fit(Enum):
    """How a photo becomes a square: short side resized then centre-cropped, or both sides squashed."""

    crop = "crop"
    squash = "squash"


class Algorithm(Enum):
    """The optimiser."""

    adam = "adam"
    adamw = "adamw"


class Schedule(Enum):
    """How the learning rate moves over the run."""

    constant = "constant"
    cosine = "cosine"


class Engine(Enum):
    """What runs the frozen backbone."""

    auto = "auto"
    openvino = "openvino"
    torch = "torch"


class Precision(Enum):
    """The arithmetic of the frozen backbone; `auto` is bf16 where the processor has it."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class ServingPrecision(Enum):
    """The arithmetic of a served model; `auto` is what it was exported in, and bf16 where the processor has it."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"


class TrainingPrecision(Enum):
    """The arithmetic of training; bf16 is Lightning's bf16-mixed."""

    fp32 = "fp32"
    bf16 = "bf16"


class Accelerator(Enum):
    """Where the model runs; `auto` is the GPU where there is one."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class Sampler(Enum):
    """What proposes the trials of a search."""

    tpe = "tpe"
    random = "random"
    grid = "grid"
    gp = "gp"


class Pruner(Enum):
    """What stops hopeless trials early."""

    none = "none"
    halving = "halving"
    median = "median"


class LauncherKind(Enum):
    """Who runs the training: this process, or a SageMaker job."""

    local = "local"
    sagemaker = "sagemaker"


class InputMode(Enum):
    """How photos of S3 reach a job: all copied before it starts, or read as they are needed."""

    File = "File"
    FastFile = "FastFile"


class SearchBackend(Enum):
    """Who runs the trials on SageMaker: one job that looks at the photos once, or a job for each trial."""

    one_job = "one_job"
    tuning_job = "tuning_job"


class DebuggerBackend(Enum):
    """Who records: graft's own files, or SageMaker's smdebug beside them."""

    graft = "graft"
    smdebug = "smdebug"


class OnFinding(Enum):
    """What happens when a rule of the debugger finds something while the model trains."""

    report = "report"
    stop = "stop"


class ServingMode(Enum):
    """How the server lays its threads out: for one request at a time, or for many."""

    latency = "latency"
    throughput = "throughput"


def knob(
    default: Any,
    doc: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    length: int | None = None,
    among: Iterable[str] = (),
) -> Any:
    """A documented dataclass field.

    Bounds are inclusive (least, most) or exclusive (above, below) and hold for each item of a list of `length`; a
    text that is one of a few is `among` them.
    """
    bounds = {"at least": least, "above": above, "at most": most, "below": below}
    given = {words: bound for words, bound in bounds.items() if bound is not None}
    metadata = {"doc": doc, "bounds": given, "length": length, "among": tuple(among)}
    if isinstance(default, list):  # dataclasses share no mutable default among their objects
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class DataConfig:
    """Which photos, and in what portions they are read."""

    kind: DataKind = knob(DataKind.folder, "a folder that exists, or demo images drawn from a seed")
    root: str = knob(MISSING, "folder or s3://BUCKET/PREFIX with train/, valid/ (or val/) and test/")
    archive: str | None = knob(None, "zip file, s3:// or https://, that is fetched when data.root is not there")
    archive_bytes: int | None = knob(None, "size of that file; null: any", least=1)
    archive_region: str | None = knob(None, "region of its bucket")
    hint: str = knob("", "what to tell a person when data.root is not there")
    batch_size: int = knob(128, "images per optimiser step, over all processes", least=1)
    on_corrupt: OnCorrupt = knob(OnCorrupt.repair, "truncated photos are padded, undecodable ones left out")
    on_leak: OnLeak = knob(OnLeak.warn, "a photo of one split that is in another one too, as it is or nearly so")
    cache_gb: float = knob(20.0, "size limit of local copies of photos in S3; 0 keeps none", least=0)
    balance: Balance = knob(Balance.none, "sampler: draw classes equally often; loss: weight them")
    augment: bool = knob(True, "random crop and flip in training on images; for cached features: features.views")
    workers: int | None = knob(None, "decoding threads or processes; null: one per core", least=0)
    demo_per_class: int = knob(100, "data=demo: training images per class", least=1)
    images: int | None = knob(None, "number of photos, for launcher.plan; null: an assumption that it states", least=1)


@dataclass
class ModelConfig:
    """Backbone, weights, head, and the input the weights expect."""

    backbone: str = knob("resnet50", "any torchvision classification model by name")
    weights: str = knob(
        "imagenet1k_v1", "imagenet1k_v1, imagenet1k_v2, none, or a .pth or .safetensors file, also in s3://"
    )
    hidden: int = knob(512, "width of the head's hidden layer", least=1)
    unfreeze: str = knob("head", "what trains: head, all, or a part of the backbone such as layer4")
    image_size: int | None = knob(None, "side of the square input; null: what the weights expect", least=32)
    resize: int | None = knob(None, "short side before the crop; null: what the weights expect", least=32)
    fit: Fit = knob(Fit.crop, "crop keeps the aspect ratio, squash does not")
    mean: list[float] | None = knob(None, "of R, G, B in 0..1; null: what the weights expect", length=3)
    std: list[float] | None = knob(None, "of R, G, B in 0..1; null: what the weights expect", above=0, length=3)


@dataclass
class OptimConfig:
    """Optimiser, loss smoothing and schedule."""

    algorithm: Algorithm = knob(Algorithm.adam, "adamw decouples the weight decay from the gradient")
    lr: float = knob(1e-3, "learning rate of the head", above=0)
    weight_decay: float = knob(0.0, "weight decay", least=0)
    label_smoothing: float = knob(0.0, "share of the target spread over all classes", least=0, below=1)
    clip_norm: float | None = knob(None, "longest gradient of all trained weights together (L2); null: any", above=0)
    schedule: Schedule = knob(Schedule.constant, "cosine goes to zero over trainer.max_epochs")
    backbone_lr_factor: float = knob(0.1, "learning rate of unfrozen backbone parts, as a factor of lr", above=0)


@dataclass
class FeaturesConfig:
    """The feature cache: a frozen backbone is computed once per photo."""

    enabled: bool = knob(True, "false: the backbone runs on every image in every epoch")
    views: int = knob(0, "seeded augmented views of each training photo beside the plain one", least=0)
    plain: bool = knob(True, "train on the plain view too; false leaves only the augmented ones")
    engine: Engine = knob(Engine.auto, "auto: torch on a GPU, openvino on a CPU")
    precision: Precision = knob(Precision.auto, "auto: bf16 where the processor has it, else fp32")
    batch_size: int = knob(16, "images per call of the engine: speed and memory, not training", least=1)
    cache_dir: str = knob("cache", "where features are kept, shared by all runs")
    max_gb: float = knob(20.0, "size limit; above it the least recently used features are deleted", above=0)


@dataclass
class TrainerConfig:
    """Lightning's Trainer."""

    accelerator: Accelerator = knob(Accelerator.auto, "where the model trains; asking for an absent gpu is an error")
    devices: int = knob(1, "processes on each machine, one per GPU; on a CPU they share its cores", least=1)
    num_nodes: int = knob(1, "machines; each runs the same command under torchrun", least=1)
    max_epochs: int = knob(8, "number of epochs", least=1)
    max_steps: int = knob(-1, "stop after so many optimiser steps; -1: no limit", least=-1)
    patience: int | None = knob(5, "stop after so many epochs without a lower valid/loss; null: never", least=1)
    precision: TrainingPrecision = knob(TrainingPrecision.fp32, "arithmetic of training; bf16 is bf16-mixed")
    checkpoint_minutes: float = knob(5.0, "time between checkpoints inside a long epoch", above=0)
    progress: bool = knob(True, "show progress bars")


@dataclass
class LauncherConfig:
    """Who runs the training."""

    kind: LauncherKind = knob(LauncherKind.local, "this process, or a SageMaker job; trainer=sagemaker_* chooses it")
    plan: bool = knob(False, "true: print what would be created, how long it takes and what it costs; nothing is sent")
    instance_type: str = knob("ml.g4dn.xlarge", "SageMaker's name of the machine; trainer.num_nodes says how many")
    spot: bool = knob(False, "spare capacity, up to 90 % cheaper; an interrupted job waits and goes on from its files")
    volume_gb: int = knob(50, "disk of each machine, for photos and features", least=1, most=16_384)
    # 28 days: MaxRuntimeInSeconds of the documentation of StoppingCondition.
    max_hours: float = knob(4.0, "a job is ended after so long, whatever it does", above=0, most=672)
    role: str | None = knob(None, "ARN of the IAM role that jobs act under")
    region: str | None = knob(None, "AWS region; null: that of AWS_DEFAULT_REGION or of the profile")
    bucket: str | None = knob(None, "S3 bucket for source, checkpoints and results, without s3://")
    prefix: str = knob("graft", "folder in that bucket")
    image: str | None = knob(None, "URI of the training container; null: AWS's newest for PyTorch (extra aws)")
    input_mode: InputMode = knob(InputMode.File, "File copies the photos first, FastFile reads them as they are needed")
    tags: list[str] = knob([], "KEY=VALUE each, on everything that is created")
    subnets: list[str] = knob([], "of a VPC, with launcher.security_groups; empty: the service's own network")
    security_groups: list[str] = knob([], "of the VPC of launcher.subnets")
    wait: bool = knob(True, "follow the job and fetch its run; false: submit and say how to follow")
    max_parallel: int = knob(2, "jobs at a time, under -m and of a tuning job", least=1, most=100)
    service_debugger: bool = knob(False, "SageMaker Debugger's own hook, for images that have smdebug")
    service_profiler: bool = knob(False, "SageMaker Profiler's own system metrics beside graft's profiler")


@dataclass
class BudgetConfig:
    """What a job, or all jobs of a search or a sweep, may cost."""

    usd: float | None = knob(None, "dollars; a dearer plan is refused, a job is ended at it; null: no limit", above=0)


@dataclass
class EvaluateConfig:
    """What is measured at the end."""

    test: bool | None = knob(None, "open the test split; null: yes for one run, no under -m")


# Of a trial, on valid; True where more is better.
OBJECTIVES = {
    "valid/loss": False,
    "valid/accuracy": True,
    "valid/top5_accuracy": True,
    "valid/macro_f1": True,
    "valid/ece": False,
}


@dataclass
class SearchConfig:
    """What `python tune.py` tries; `python train.py` does not read it."""

    sampler: Sampler = knob(Sampler.tpe, "what proposes the trials")
    trials: int = knob(
        20, "trials in all, the default configuration included; an interrupted search goes on to it", least=1
    )
    seed: int = knob(0, "random seed of the proposals", least=0, most=2**32 - 1)
    objective: str = knob("valid/loss", "what the best trial is best in", among=OBJECTIVES)
    storage: str | None = knob(None, "Optuna URL, for several machines; null: a journal file in run_dir")
    study: str = knob("graft", "name of the study in search.storage: processes that give the same one share it")
    pruner: Pruner = knob(Pruner.none, "stops hopeless trials at rungs counted in optimiser steps")
    repeats: int | None = knob(
        None, "seeds of best and default for the gain's interval; null: 5 where that is cheap", least=0
    )
    max_minutes: float | None = knob(
        None, "no trial begins that would not be done by then, nor the rest of the search; null: no limit", above=0
    )
    backend: SearchBackend = knob(
        SearchBackend.one_job, "on SageMaker: one job for all trials, or its own tuning job with a job for each"
    )
    early_stopping: bool = knob(True, "tuning_job: SageMaker ends trials that are worse than the median so far")
    space: list[str] = knob(
        [], "what is tried, a KEY=DISTRIBUTION each: choice(..), interval(..), range(..), tag(log, ..)"
    )


@dataclass
class DebuggerConfig:
    """What a run records of its training, and what is done about what the rules find in it."""

    enabled: bool = knob(True, "record losses, gradients and layers of the training, and judge them by rules")
    train_interval: int = knob(1, "training steps from one recorded loss to the next", least=1)
    eval_interval: int = knob(1, "validation batches from one recorded loss to the next", least=1)
    statistics_interval: int = knob(50, "training steps from one look at gradients and layers to the next", least=1)
    backend: DebuggerBackend = knob(DebuggerBackend.graft, "smdebug: write the losses for SageMaker's library too")
    on_finding: OnFinding = knob(OnFinding.report, "stop: end the training early when a rule finds something")


@dataclass
class ProfilerConfig:
    """What a run measures of its own speed."""

    enabled: bool = knob(True, "measure where the time of a run goes and what the machine does, and judge it by rules")
    interval_s: float = knob(0.5, "seconds from one sample of the machine to the next", least=0.05)
    usd_per_hour: float | None = knob(None, "price of the machine; null: findings tell seconds alone", least=0)
    torch_steps: int = knob(0, "training steps that torch.profiler traces, after the first; 0: none", least=0)


@dataclass
class ServeConfig:
    """What `python -m serve` packs and answers with; `python train.py` does not read it."""

    engine: Engine = knob(Engine.auto, "auto: openvino where the model was packed, torch on a run's bundle")
    precision: ServingPrecision = knob(
        ServingPrecision.auto, "what pack exports (auto: fp32), and what an engine computes in"
    )
    threads: int | None = knob(None, "of the engine; null: one per core", least=1)
    top_k: int = knob(5, "classes in an answer, where the request does not say", least=1)
    int8_margin: float = knob(0.5, "points of valid accuracy that packing in int8 may cost", least=0, most=100)
    int8_photos: int = knob(300, "training photos that int8 is calibrated on", least=1)
    host: str = knob("127.0.0.1", "address that `serve local` listens on; 0.0.0.0 is every one of this machine")
    port: int = knob(8080, "port that it listens on; 0 is a free one", least=0, most=65535)
    mode: ServingMode = knob(
        ServingMode.latency, "latency: all cores for one photo; throughput: a core for each of several"
    )
    queue: int = knob(64, "requests inside at once, the next is answered with 503", least=1)
    deadline: float = knob(30.0, "seconds from a request's first byte to its answer, 504 after that", above=0)
    max_bytes: int = knob(6_291_456, "of a body, and of a photo behind an address", least=1)
    max_pixels: int = knob(50_000_000, "width x height of a photo", least=1)
    max_photos: int = knob(32, "photos in a request", least=1)
    allow_url: bool = knob(False, "whether addresses in requests are fetched; https and public hosts only")
    url_hosts: list[str] = knob([], "hosts that addresses may lead to, redirects too; empty: every public one")
    instance_type: str = knob("ml.m5.large", "SageMaker's name of the machine that `serve deploy` rents")
    image: str | None = knob(
        None, "URI of the endpoint's container; null: AWS's for PyTorch 2.6, the last that serves (extra aws)"
    )
    ttl: str = knob("24h", "after so long an endpoint deletes itself: 2h, 3d, from 1h to 365d; none: never")
    ttl_role: str | None = knob(
        None, "ARN of the role under which that happens; null: graft-endpoint-ttl, which deploy makes"
    )
    plan: bool = knob(False, "true: deploy prints what it would create and what that costs; nothing is sent")


@dataclass
class Config:
    """The whole configuration of a run; one field per directory of conf/."""

    # Lightning's seed_everything takes 32 bits.
    seed: int = knob(0, "random seed of initialisation, order and augmentation", least=0, most=2**32 - 1)
    run_dir: str = knob(MISSING, "where the run is written, also s3://; the same directory resumes it")
    overrides_from: str | None = knob(None, "a list of overrides, or a run's config.yaml; the command line wins")
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    debugger: DebuggerConfig = field(default_factory=DebuggerConfig)
    profiler: ProfilerConfig = field(default_factory=ProfilerConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)

    def __post_init__(self) -> None:
        """Refuse values out of range and combinations that cannot work."""
        for key, value in _leaves(self):
            check_value(key, value)
        if not self.features.plain and self.features.views == 0:
            raise ConfigError("features.plain=false needs features.views of at least 1: nothing is left to train on")
        if self.data.batch_size < self.processes:
            raise ConfigError(
                f"data.batch_size={self.data.batch_size} is shared by {self.processes} processes "
                "(trainer.devices x trainer.num_nodes); accepted is at least one image for each"
            )

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self.trainer.devices * self.trainer.num_nodes

    @property
    def trains_on_features(self) -> bool:
        """Whether the backbone is frozen and its features come from the cache."""
        return self.features.enabled and self.model.unfreeze == "head"


# One field of Config per directory of conf/, but for experiment/.
GROUPS = {name: hint for name, hint in get_type_hints(Config).items() if dataclasses.is_dataclass(hint)}


def parse(tree: DictConfig) -> Config:
    """The typed configuration of one run from what Hydra composed.

    The plain tree is merged once more onto the schema: Hydra lets `+key=value` add keys that the
    schema does not have, and this is where they are refused. `overrides_from` has been followed by
    then and is left out, so that a run is resumed by its own config.yaml too.

    Raises:
        ConfigError: a key is unknown, a value has the wrong type or range, or data.root is missing.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(tree, resolve=True)
        merged = OmegaConf.merge(OmegaConf.structured(Config), plain)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{missing[0]} is not set: {knobs()[missing[0]].doc}; give {missing[0]}=VALUE")
        config = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise unknown_key(error.full_key or "") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {error.msg or error}".splitlines()[0]) from error
    assert isinstance(config, Config)
    config.overrides_from = None
    run_dir = sweep_member()
    if run_dir is None:
        return config
    # Test stays sealed unless asked for: a sweep is there to choose, and must not choose on test.
    test = EvaluateConfig(test=bool(config.evaluate.test))
    return dataclasses.replace(config, run_dir=str(run_dir), evaluate=test)


def sweep_member() -> Path | None:
    """The directory of this run below that of its sweep; None for a run of its own."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir) / str(HydraConfig.get().job.num)


def changed(config: Config, values: Mapping[str, Any]) -> Config:
    """A configuration with other values of some keys (enums by name).

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = OmegaConf.structured(config)
    for key, value in values.items():
        try:
            OmegaConf.update(tree, key, value)
        except OmegaConfBaseException as error:
            raise (wrong_value(key, value) if key in knobs() else unknown_key(key)) from error
    found = OmegaConf.to_object(tree)
    assert isinstance(found, Config)
    return found


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `overrides_from` reads back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


def config_hash(config: Config) -> str:
    """Hex digest of everything in a configuration but where its run is written."""
    rest = sorted((key, str(value)) for key, value in flatten(config).items() if key != "run_dir")
    return hashlib.blake2b(repr(rest).encode(), digest_size=8).hexdigest()


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key -> plain value (enums by name), in schema order."""
    return {key: plain(value) for key, value in _leaves(config)}


def plain(value: Any) -> Any:
    """A value as files have it: enums by name."""
    return value.name if isinstance(value, Enum) else value


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for spec in dataclasses.fields(node):
        value = getattr(node, spec.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{spec.name}.")
        else:
            yield f"{prefix}{spec.name}", value


@dataclass(frozen=True)
class Knob:
    """What the schema says of one key: its type, its meaning, and the range of its value."""

    hint: Any
    doc: str
    bounds: dict[str, float]
    length: int | None
    among: tuple[str, ...]

    @property
    def accepted(self) -> str:
        """The values that are accepted, in words."""
        kind, *null = get_args(self.hint) if NoneType in get_args(self.hint) else (self.hint,)
        if self.among:
            options = list(self.among)
        elif kind is bool:
            options = ["true", "false"]
        elif isinstance(kind, EnumMeta):
            options = list(kind.__members__)
        else:
            bounds = " and ".join(f"{words} {bound:.10g}" for words, bound in self.bounds.items())
            of = "of " if bounds.startswith("at") else ""
            options = [f"{_NOUNS[kind].format(length=self.length)} {of}{bounds}".strip()]
        *first, last = [*options, "null"] if null else options
        return f"{', '.join(first)} or {last}" if first else last

    def allows(self, value: Any) -> bool:
        """Whether a value of the right type is in range; NaN and infinity never are."""
        if self.among and value not in self.among:
            return False
        items = value if isinstance(value, list) else [] if value is None else [value]
        if isinstance(value, list) and self.length is not None and len(value) != self.length:
            return False
        if any(isinstance(item, float) and not math.isfinite(item) for item in items):
            return False
        return all(_HOLDS[words](item, bound) for words, bound in self.bounds.items() for item in items)


_NOUNS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    str: "text",
    list[float]: "a list of {length} numbers",
    list[str]: "a list of texts",
}
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "at least": operator.ge,
    "above": operator.gt,
    "at most": operator.le,
    "below": operator.lt,
}


@cache
def knobs() -> dict[str, Knob]:
    """Dotted key -> what the schema says of it, in schema order."""
    return dict(_declared(Config, ""))


def _declared(schema: Any, prefix: str) -> Iterator[tuple[str, Knob]]:
    hints = get_type_hints(schema)
    for spec in dataclasses.fields(schema):
        hint = hints[spec.name]
        if dataclasses.is_dataclass(hint):
            yield from _declared(hint, f"{prefix}{spec.name}.")
        else:
            yield f"{prefix}{spec.name}", Knob(hint, **spec.metadata)


def check_value(key: str, value: Any) -> None:
    """Refuse a value of the right type that is out of range."""
    if not knobs()[key].allows(value):
        raise wrong_value(key, value)


def wrong_value(key: str, value: Any) -> ConfigError:
    """The error that says what `key` accepts."""
    shut = key == "search.objective" and str(value).startswith("test")
    reason = "objectives are on valid, for a test split that chose the model can no longer judge it; " if shut else ""
    return ConfigError(f"{key}={'null' if value is None else value}: {reason}accepted is {knobs()[key].accepted}")


def unknown_key(key: str) -> ConfigError:
    """The error that names the keys and groups nearest to `key`: by its last name, by spelling, or by meaning."""
    known = [*knobs()] if "." in key else [*knobs(), *GROUPS, "experiment"]
    last = key.rpartition(".")[2]
    same_name = [name for name in known if name.rpartition(".")[2] == last]
    near = same_name or difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    near = near or [name for name, knob in knobs().items() if last and last.replace("_", " ") in knob.doc]
    hint = f"the nearest: {', '.join(near)}" if near else "`python train.py --help` lists them all"
    return ConfigError(f"{key} is not a key of the configuration; {hint}")
