"""What a model expects of a photo. Apart from what decodes one, which takes a server 0.1 s to import."""

from __future__ import annotations

from dataclasses import dataclass

from graft.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputSpec:
    """What a model expects of its input.

    `image_size`: side of the square in pixels. `fit`: crop (short side to `resize`, then the centre)
    or squash (the whole photo, aspect ratio lost, `resize` unused). `mean`, `std`: per channel, of
    pixels in 0..1. Raises ConfigError for another `fit`, or a crop larger than `resize`.
    """

    image_size: int = 224
    resize: int = 224
    fit: str = "crop"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        """Refuse what `render` could only fail on."""
        if self.fit not in ("crop", "squash"):
            raise ConfigError(f"model.fit={self.fit!r}: accepted are crop and squash")
        if self.image_size < 1:
            raise ConfigError(f"model.image_size={self.image_size}: must be at least 1")
        if self.fit == "crop" and self.resize < self.image_size:
            raise ConfigError(f"model.resize={self.resize}: must be at least image_size={self.image_size}")
