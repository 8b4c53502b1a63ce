"""A trained classifier as what is deployed: weights, manifest, parity samples and a model card."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from graft.artifacts import Manifest, ParitySample, write_bundle
from graft.classifier import Classifier
from graft.data.folder import Split
from graft.images import render
from graft.inputs import InputSpec

PARITY_SAMPLES = 16
PARITY_BYTES = 256 * 1024  # a larger photo is stored as its pixels at model size
PARTS = ("backbone.", "head.")


def save_bundle(path: Path, classifier: Classifier, manifest: Manifest, valid: Split) -> None:
    """Write the bundle of a classifier.

    Args:
        path: the folder.
        classifier: on the CPU, in eval mode.
        manifest: what is known of it.
        valid: photos the parity samples are taken from.
    """
    tensors = {
        name: value.detach().contiguous().numpy()
        for name, value in classifier.state_dict().items()
        if name.startswith(PARTS)
    }
    samples = parity_samples(classifier, manifest.input, valid)
    write_bundle(path, manifest, tensors, samples, model_card(manifest))


def parity_samples(classifier: Classifier, spec: InputSpec, valid: Split) -> list[ParitySample]:
    """Photos spread evenly over a split, as encoded bytes, and the fp32 logits of the classifier for them."""
    chosen = np.unique(np.linspace(0, len(valid) - 1, PARITY_SAMPLES).astype(int))
    encoded = [_as_sent(valid.read(index), spec) for index in chosen.tolist()]
    pixels = np.stack([render(data, spec).pixels for data in encoded])
    with torch.inference_mode():
        logits = classifier(torch.from_numpy(pixels)).numpy()
    return [ParitySample(data, row) for data, row in zip(encoded, logits, strict=True)]


def make_manifest(classifier: Classifier, **known: Any) -> Manifest:
    """The manifest of a classifier; `known` are the fields that it does not know itself."""
    h = classifier.hparams
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Manifest(backbone=h["backbone"], hidden=h["hidden"], created=now, **known)


def model_card(manifest: Manifest) -> str:
    """The bundle's README.md, in Markdown."""
    m = manifest
    figures = "\n".join(_figure_rows(m.metrics))
    toy = "\n> These are toy figures: the photos were drawn by a program.\n" if m.toy else ""
    names = ", ".join(m.class_names[:12]) + (", ..." if len(m.class_names) > 12 else "")
    return f"""# {m.backbone} with a two-layer head, {len(m.class_names)} classes
{toy}
Model `{m.model_id}`, made {m.created} by graft at commit `{m.git_sha}`.

| split | accuracy | 95 % interval (Wilson) | top-5 | loss | photos |
|---|---|---|---|---|---|
{figures}

- Classes, in order: {names} (all of them in `manifest.json`).
- Input: RGB, {_geometry(m.input)}, normalised by mean {_numbers(m.input.mean)} and std {_numbers(m.input.std)}.
- Trained: {m.trained_part}; backbone weights: `{m.weights}`; features in {m.feature_precision}.
- Probabilities are softmax(logits / {m.temperature:.4f}); the temperature was fitted on valid.

## Use

```python
import graft

model = graft.load("PATH_OF_THIS_FOLDER")
print(model("photo.jpg"))
```

## Licences

- Code: Apache-2.0.
- Backbone weights: {_weights_licence(m.weights)}
- Data: not known to graft; ask whoever made the photos before you pass this model on.
  `parity/` holds {PARITY_SAMPLES} photos of the validation split at most: delete that folder where they must stay.
"""


def _as_sent(data: bytes, spec: InputSpec) -> bytes:
    if len(data) <= PARITY_BYTES:
        return data
    buffer = io.BytesIO()
    Image.fromarray(render(data, spec).pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _figure_rows(metrics: dict[str, float]) -> list[str]:
    rows = []
    for split in ("valid", "test"):
        if f"{split}/accuracy" in metrics:
            value = {key.partition("/")[2]: number for key, number in metrics.items() if key.startswith(f"{split}/")}
            interval = f"{value['accuracy_low']:.4f} .. {value['accuracy_high']:.4f}"
            rows.append(
                f"| {split} | {value['accuracy']:.4f} | {interval} | {value['top5_accuracy']:.4f} "
                f"| {value['loss']:.4f} | {value['images']:.0f} |"
            )
    return rows


def _geometry(spec: InputSpec) -> str:
    if spec.fit == "squash":
        return f"squashed to {spec.image_size} x {spec.image_size}"
    return f"short side to {spec.resize}, centre crop {spec.image_size} x {spec.image_size}"


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _weights_licence(weights: str) -> str:
    if weights.lower() == "none":
        return "none were used; the backbone is random."
    if weights.lower().startswith("imagenet1k"):
        return "torchvision's, BSD-3-Clause; trained on ImageNet, whose photos are for research only."
    return "not known to graft; ask whoever made the file."
