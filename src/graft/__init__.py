"""graft puts a new head on a pretrained backbone: train, tune, diagnose and serve an image classifier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graft.predictor import Predictor

__version__ = "0.1.0"


def load(bundle: str | Path) -> Predictor:
    """The model of a bundle, ready for photos: `graft.load("runs/demo/bundle")("photo.jpg")`."""
    # Imported here because torch takes seconds, and `import graft` must not.
    from graft.predictor import Predictor

    return Predictor(Path(bundle))
