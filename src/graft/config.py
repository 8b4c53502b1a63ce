"""Every knob of graft: typed, documented, range-checked. The only module that knows OmegaConf.

Entry scripts call `prepare` on their arguments before Hydra composes them, and `parse` on what
Hydra composed. Neither imports torch, so a typo is answered in well under a second.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from graft.errors import ConfigError

GROUPS = ("data", "model", "optim", "features", "trainer", "launcher", "evaluate")


class DataKind(Enum):
    """Where photos come from: a folder that exists, or images drawn from a seed."""

    folder = "folder"
    demo = "demo"


class OnCorrupt(Enum):
    """What happens to a photo that is truncated or cannot be decoded."""

    repair = "repair"
    skip = "skip"
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


class Accelerator(Enum):
    """Where the model runs; `auto` is the GPU where there is one."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class LauncherKind(Enum):
    """Who runs the training: this process, or a SageMaker job."""

    local = "local"
    sagemaker = "sagemaker"


def knob(
    default: Any,
    doc: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """A documented dataclass field; the bounds are inclusive (least, most) or exclusive (above, below)."""
    bounds = {"least": least, "above": above, "most": most, "below": below}
    metadata = {"doc": doc, "bounds": {k: v for k, v in bounds.items() if v is not None}}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class DataConfig:
    """Which photos, and in what portions they are read."""

    kind: DataKind = knob(DataKind.folder, "a folder that exists, or demo images drawn from a seed")
    root: str = knob(MISSING, "folder with train/, valid/ (or val/) and test/, one folder per class")
    hint: str = knob("", "what to tell a person when data.root is not there")
    batch_size: int = knob(64, "images per optimiser step", least=1)
    on_corrupt: OnCorrupt = knob(OnCorrupt.repair, "truncated photos are padded, undecodable ones left out")
    balance: Balance = knob(Balance.none, "sampler: draw classes equally often; loss: weight them")
    augment: bool = knob(True, "random crop and flip where training reads images (not features)")
    workers: int | None = knob(None, "decoding threads or processes; null: one per core", least=0)
    demo_per_class: int = knob(50, "data=demo: training images per class", least=1)


@dataclass
class ModelConfig:
    """Backbone, weights, head, and the input the weights expect."""

    backbone: str = knob("resnet50", "any torchvision classification model by name")
    weights: str = knob("imagenet1k_v1", "imagenet1k_v1, imagenet1k_v2, none, or a .pth or .safetensors file")
    hidden: int = knob(512, "width of the head's hidden layer", least=1)
    unfreeze: str = knob("head", "what trains: head, all, or a part of the backbone such as layer4")
    image_size: int | None = knob(None, "side of the square input; null: what the weights expect", least=32)
    resize: int | None = knob(None, "short side before the crop; null: what the weights expect", least=32)
    fit: Fit = knob(Fit.crop, "crop keeps the aspect ratio, squash does not")
    mean: list[float] | None = knob(None, "per channel, of pixels in 0..1; null: what the weights expect")
    std: list[float] | None = knob(None, "per channel, of pixels in 0..1; null: what the weights expect")


@dataclass
class OptimConfig:
    """Optimiser, loss smoothing and schedule."""

    algorithm: Algorithm = knob(Algorithm.adam, "adam or adamw (decoupled weight decay)")
    lr: float = knob(1e-3, "learning rate of the head", above=0)
    weight_decay: float = knob(0.0, "weight decay", least=0)
    label_smoothing: float = knob(0.0, "share of the target spread over all classes", least=0, below=1)
    schedule: Schedule = knob(Schedule.constant, "cosine goes to zero over trainer.max_epochs")
    backbone_lr_factor: float = knob(0.1, "learning rate of unfrozen backbone parts, as a factor of lr", above=0)


@dataclass
class FeaturesConfig:
    """The feature cache: a frozen backbone is computed once per photo."""

    enabled: bool = knob(True, "off: the backbone runs on every image in every epoch")
    views: int = knob(0, "seeded augmented views of each training photo beside the plain one", least=0)
    plain: bool = knob(True, "train on the plain view too; false leaves only the augmented ones")
    engine: Engine = knob(Engine.auto, "auto: torch on a GPU, openvino on a CPU")
    precision: Precision = knob(Precision.auto, "auto: bf16 where the processor has it, else fp32")
    batch_size: int = knob(16, "images per call of the engine", least=1)
    cache_dir: str = knob("cache", "where features are kept, shared by all runs")
    max_gb: float = knob(20.0, "the least recently used features go beyond this size", above=0)


@dataclass
class TrainerConfig:
    """Lightning's Trainer."""

    accelerator: Accelerator = knob(Accelerator.auto, "auto, cpu or gpu; asking for an absent gpu is an error")
    max_epochs: int = knob(10, "number of epochs", least=1)
    max_steps: int = knob(-1, "stop after so many optimiser steps; -1: no limit", least=-1)
    patience: int | None = knob(5, "stop after so many epochs without a lower valid/loss; null: never", least=1)
    precision: Precision = knob(Precision.fp32, "arithmetic of training; bf16 is Lightning's bf16-mixed")
    checkpoint_minutes: float = knob(5.0, "time between checkpoints inside a long epoch", above=0)
    progress: bool = knob(True, "show progress bars")


@dataclass
class LauncherConfig:
    """Who runs the training."""

    kind: LauncherKind = knob(LauncherKind.local, "local, or sagemaker (not in this release)")


@dataclass
class EvaluateConfig:
    """What is measured at the end."""

    test: bool | None = knob(None, "open the test split; null: yes for one run, no under -m")


@dataclass
class Config:
    """The whole configuration of a run; one field per directory of conf/."""

    seed: int = knob(0, "of initialisation, order and augmentation", least=0)
    run_dir: str = knob(MISSING, "where the run is written; the same directory resumes it")
    overrides_from: str | None = knob(None, "a list of overrides, or a run's config.yaml; the command line wins")
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        """Refuse values out of range and combinations that cannot work."""
        for key, value, spec in _leaves(self):
            _check_bounds(key, value, spec.metadata.get("bounds", {}))
        _check_channels("model.mean", self.model.mean, above=None)
        _check_channels("model.std", self.model.std, above=0)
        if not self.features.plain and self.features.views == 0:
            raise ConfigError("features.plain=false needs features.views of at least 1: nothing is left to train on")

    @property
    def trains_on_features(self) -> bool:
        """Whether the backbone is frozen and its features come from the cache."""
        return self.features.enabled and self.model.unfreeze == "head"


ConfigStore.instance().store(name="schema", node=Config)


def parse(tree: DictConfig) -> Config:
    """The typed configuration of one run from what Hydra composed.

    The plain tree is merged once more onto the schema: Hydra lets `+key=value` add keys that the
    schema does not have, and this is where they are refused.

    Raises:
        ConfigError: a key is unknown, a value has the wrong type or range, or data.root is missing.
    """
    plain = OmegaConf.to_container(tree, resolve=True)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), plain)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            doc = _fields()[missing[0]].metadata["doc"]
            raise ConfigError(f"{missing[0]} is not set: {doc}; give {missing[0]}=VALUE")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {error.msg or error}".splitlines()[0]) from error
    assert isinstance(config, Config)
    run_dir = sweep_member()
    if run_dir is None:
        return config
    # Test stays sealed unless asked for: a sweep is there to choose, and must not choose on test.
    test = EvaluateConfig(test=bool(config.evaluate.test))
    return dataclasses.replace(config, run_dir=str(run_dir), evaluate=test)


def overrides_given() -> tuple[str, ...]:
    """What the command line said, as Hydra recorded it; nothing outside of an entry script."""
    return tuple(HydraConfig.get().overrides.task) if HydraConfig.initialized() else ()


def sweep_member() -> Path | None:
    """The directory of this run below that of its sweep; None for a run of its own."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir) / str(HydraConfig.get().job.num)


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `overrides_from` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def config_hash(config: Config) -> str:
    """Hex digest of everything in a configuration but where its run is written."""
    rest = sorted((key, str(value)) for key, value in flatten(config).items() if key != "run_dir")
    return hashlib.blake2b(repr(rest).encode(), digest_size=8).hexdigest()


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key -> plain value (enums by name), in schema order."""
    return {key: value.name if isinstance(value, Enum) else value for key, value, _ in _leaves(config)}


class Command(NamedTuple):
    """A checked command line: the arguments for Hydra, and what they say of the run directory."""

    argv: list[str]
    run_dir: Path
    multirun: bool


def prepare(argv: list[str], now: str) -> Command:
    """The arguments for Hydra: files of overrides expanded, keys checked, a run directory given.

    Args:
        argv: command-line arguments without the program's name.
        now: name of the run directory below runs/ where none is given.

    Raises:
        ConfigError: a key is unknown (the message names the nearest), or `overrides_from` is unreadable.
    """
    overrides = _parse_overrides(argv)
    named = {key for key, _ in overrides}
    source = next((value for key, value in overrides if key == "overrides_from"), None)
    from_file = _read_overrides(Path(source)) if source else []
    for key, _ in [*overrides, *_parse_overrides(from_file)]:
        _check_key(key)
    kept = [line for line, (key, _) in zip(from_file, _parse_overrides(from_file), strict=True) if key not in named]
    run_dir = dict(overrides).get("run_dir", f"runs/{now}")
    added = kept if "run_dir" in named else [*kept, f"run_dir={run_dir}"]
    # argparse takes overrides in one piece only, so the added ones stand right before the first.
    first = next((at for at, argument in enumerate(argv) if _is_override(argument)), len(argv))
    multirun = "-m" in argv or "--multirun" in argv
    return Command([*argv[:first], *added, *argv[first:]], Path(run_dir), multirun)


def _is_override(argument: str) -> bool:
    return "=" in argument and not argument.startswith("-")


def _parse_overrides(argv: list[str]) -> list[tuple[str, str]]:
    """(key, value) of every override among the arguments; what Hydra's grammar refuses is left to Hydra."""
    parser = OverridesParser.create()
    found = []
    for argument in filter(_is_override, argv):
        try:
            override: Override = parser.parse_override(argument)
        except HydraException:
            continue
        found.append((override.key_or_group, argument.partition("=")[2].strip("'\"")))
    return found


def _check_key(key: str) -> None:
    known = _fields()
    parts = {name.rpartition(".")[0] for name in known} - {""}
    if key in known or key in parts or key in (*GROUPS, "experiment") or key.startswith("hydra"):
        return
    by_name = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = by_name or difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    hint = f"the nearest: {', '.join(near)}" if near else "`python train.py --help` lists them all"
    raise ConfigError(f"{key} is not a key of the configuration; {hint}")


def _read_overrides(path: Path) -> list[str]:
    """Overrides from a YAML list, or from the mapping of a run's config.yaml."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"overrides_from={path} cannot be read: {error}") from error
    if isinstance(content, list):
        return [str(line) for line in content]
    if not isinstance(content, Mapping):
        raise ConfigError(f"overrides_from={path}: accepted is a list of overrides or a run's config.yaml")
    skipped = ("run_dir", "overrides_from")
    return [f"{key}={_quote(value)}" for key, value in _flat(content) if key not in skipped]


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _quote(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    if isinstance(value, list):
        return f"[{','.join(_quote(item) for item in value)}]"
    return "null" if value is None else str(value)


def _fields(schema: type = Config, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """Dotted key -> dataclass field of every knob."""
    hints = get_type_hints(schema)
    found: dict[str, dataclasses.Field[Any]] = {}
    for spec in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[spec.name]):
            found |= _fields(hints[spec.name], f"{prefix}{spec.name}.")
        else:
            found[f"{prefix}{spec.name}"] = spec
    return found


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    for spec in dataclasses.fields(node):
        value = getattr(node, spec.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{spec.name}.")
        else:
            yield f"{prefix}{spec.name}", value, spec


_ALLOWS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def _check_bounds(key: str, value: Any, bounds: dict[str, float]) -> None:
    if value is None or not bounds:
        return
    # Written so that NaN, for which every comparison is false, is refused too.
    if not all(_ALLOWS[kind][1](value, bound) for kind, bound in bounds.items()):
        accepted = " and ".join(f"{_ALLOWS[kind][0]} {bound:g}" for kind, bound in bounds.items())
        raise ConfigError(f"{key}={value}: accepted is {accepted}")


def _check_channels(key: str, values: list[float] | None, above: float | None) -> None:
    if values is None:
        return
    if len(values) != 3 or (above is not None and not all(value > above for value in values)):
        accepted = "three numbers" + (f" above {above:g}" if above is not None else "")
        raise ConfigError(f"{key}={values}: accepted is {accepted}, one per channel of RGB")
