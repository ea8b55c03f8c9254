"""The zip that Dark Zurich's evaluation server takes (https://codalab.lisn.upsaclay.fr/competitions/3783)."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from miou import predict
from numpy.typing import NDArray
from PIL import Image
from street_images import Size, StreetImages
from street_labels import VOID
from torch import nn

from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import RunError

FULL_SIZE: Size = (1080, 1920)
LABELS, LABELS_WITH_INVALID, CONFIDENCE = "labelTrainIds", "labelTrainIds_invalid", "confidence"


def write_submission(
    network: nn.Module,
    images: StreetImages,
    size: Size,
    runtime: Runtime,
    target: Path,
    batch_size: int = 4,
    workers: int = 0,
) -> None:
    """Predict every image and write three folders of PNG files, named as the images, into a zip.

    The server wants all three, flat: `labelTrainIds/` (one byte, 0 to 18; its IoU is the one that papers report),
    `labelTrainIds_invalid/` (here the same: no pixel is declared invalid) and `confidence/` (two bytes, 65535 for 1).

    Args:
        network: images `(N, 3, H, W)` in [0, 1] to logits `(N, outputs, H, W)`; an output for void is passed over.
        images: the test split.
        size: what images are brought to for the network; predictions are then brought to 1080x1920, nearest pixel.
        runtime: the devices.
        target: the zip, written whole or not at all.
        batch_size: images per forward pass.
        workers: processes that decode.

    Raises:
        RunError: when two images have the same name, the disk is full or the folder cannot be written.
    """
    names = [Path(images.name(index)).with_suffix(".png").name for index in range(len(images))]
    if len(set(names)) < len(names):
        raise RunError(f"{images.title} holds images of the same name, which the zip has one place for")

    def write_zip(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
            for street, logits in predict(network, images, size, runtime, batch_size=batch_size, workers=workers):
                confidence, prediction = (found.cpu().numpy() for found in logits[:VOID].softmax(dim=0).max(dim=0))
                name = names[street.position]
                label_map = _full_size_png(prediction.astype(np.uint8))
                archive.writestr(f"{LABELS}/{name}", label_map)
                archive.writestr(f"{LABELS_WITH_INVALID}/{name}", label_map)
                archive.writestr(f"{CONFIDENCE}/{name}", _full_size_png(_two_bytes(confidence)))

    write_atomically(target, write_zip)


def _two_bytes(confidence: NDArray[np.float32]) -> NDArray[np.uint16]:
    return (confidence * 65535).round().astype(np.uint16)


def _full_size_png(pixels: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).resize(FULL_SIZE[::-1], Image.Resampling.NEAREST).save(content, format="png")
    return content.getvalue()
