"""A rehearsal of the advice to cache features: the head's fit on drawn ones, before anyone takes the advice.

The run's own steps do not tell what a head's step takes alone: beside the passes of a backbone it waits for threads
that another product has just used and for memory that no cache holds, and takes up to several times as long.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from graft.artifacts import RunDirectory
from graft.assembly import fit_classifier
from graft.classifier import Classifier
from graft.config import Config, DebuggerBackend, OnFinding, changed
from graft.diagnosis import failing_no_run
from graft.features.cache import OK, Space
from graft.features.extract import Extracted
from graft.model import feature_width
from graft.photos import Photos
from graft.profiler.prediction import epoch_seconds
from graft.profiler.recorder import Profile
from graft.profiler.records import read_records
from graft.terminal import say

# At least, and as many steps as `python -m graft.profiler apply` measures: medians over three epochs of a few steps
# differ by a third from time to time.
EPOCHS, STEPS = 3, 50
WORTH_S = 10.0  # of a run's passes forward: a rehearsal takes about a second
# Of a short run that is timed: it goes on to its end, whatever it learns, and nothing traces its steps.
TIMED = {"trainer.patience": None, "profiler.torch_steps": 0, "debugger.on_finding": OnFinding.report}
ROWS = 4096  # of drawn features, at most: more than a processor's cache holds


def rehearse(config: Config, classifier: Classifier, photos: Photos, device: str, profile: Profile) -> None:
    """Note in the profile what an epoch on cached features takes, where the run had none that could have helped it.

    The classifier is spent: its backbone is gone afterwards.
    """
    slow = profile.watch.totals()["forward"] >= WORTH_S
    if profile.is_on and slow and config.model.unfreeze == "head" and not config.trains_on_features:
        with failing_no_run("what cached features would save", say):
            epochs = max(EPOCHS, math.ceil(STEPS / profile.facts.steps_per_epoch))
            seconds = seconds_of_cached_epoch(config, classifier, photos, device, epochs)
            profile.facts = replace(profile.facts, cached_epoch_s=seconds)


def seconds_of_cached_epoch(config: Config, classifier: Classifier, photos: Photos, device: str, epochs: int) -> float:
    """Seconds of an epoch of the ordinary fit of this head, on as many drawn features as there are photos.

    Args:
        config: of the run.
        classifier: of the run; its backbone is given up.
        photos: of the run.
        device: cpu or cuda.
        epochs: that are trained, for medians over them.
    """
    width = feature_width(classifier.backbone)
    classifier.backbone = nn.Identity()
    changes = {
        **{"features.enabled": True, "trainer.max_epochs": epochs, "trainer.max_steps": -1},
        **TIMED,
        # Recorded as the run is, which takes its time too.
        **{"trainer.progress": False, "debugger.backend": DebuggerBackend.graft},
    }
    with tempfile.TemporaryDirectory(prefix="graft-rehearsal-") as folder:
        run = RunDirectory(Path(folder) / "run", "rehearsal")
        on_features = with_drawn_features(photos, width, Path(folder) / "features")
        with Profile(run.path, time.perf_counter()) as trial:
            fit_classifier(changed(config, changes), classifier, on_features, run, device, profile=trial)
        return epoch_seconds(read_records(run.path))


def with_drawn_features(photos: Photos, width: int, folder: Path) -> Photos:
    """The same photos with features of normal noise, float32 [N, width], on disk as the cache has them.

    Rows repeat where photos are many.
    """
    count = min(ROWS, max(map(len, photos.digests.values())))
    space = Space(folder, {"drawn": count}, width, "float32")
    noise = np.random.default_rng(0).standard_normal((count, width), np.float32)
    space.append(np.arange(count).astype("S16"), np.full(count, OK, np.uint8), noise)
    table = space.table()
    views = {
        name: [Extracted(table, np.arange(len(digests)) % count, digests, computed=0, reused=len(digests))]
        for name, digests in photos.digests.items()
    }
    return replace(photos, views=views)
