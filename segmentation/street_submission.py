"""The zip that Dark Zurich's evaluation server takes (https://codalab.lisn.upsaclay.fr/competitions/3783)."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from miou import predict
from numpy.typing import NDArray
from PIL import Image
from street_images import Size, StreetImages, WholeStreets
from street_labels import VOID
from torch import nn

from darkening.selection_nights import by_day
from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import RunError

FULL_SIZE = (1920, 1080)  # width and height


def write_submission(
    network: nn.Module,
    images: StreetImages,
    size: Size,
    runtime: Runtime,
    target: Path,
    batch_size: int = 4,
    workers: int = 0,
    called: str = "the network",
) -> None:
    """Predict every image, never void, and write three folders of PNG files, named as the images, into a zip.

    The server wants all three, flat: `labelTrainIds/` (one byte, 0 to 18; its IoU is the one that papers report),
    `labelTrainIds_invalid/` (here the same: no pixel is declared invalid) and `confidence/` (two bytes, 65535 for 1).
    Predictions of images of `size` are brought to 1080x1920, nearest pixel. The zip is written whole or not at all.

    Raises:
        RunError: when logits are not finite, two images have the same name, the disk is full or the folder cannot be
            written.
    """
    names = [Path(images.name(index)).stem for index in range(len(images))]
    if len(set(names)) < len(names):
        raise RunError(f"{images.title} holds images of the same name, which the zip has one place for")

    def write_zip(temporary: Path) -> None:
        dataset = WholeStreets(images, size)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
            loading = (batch_size, workers, called)
            for _, street, logits in predict(network, dataset, runtime, (by_day,), *loading):
                confidence, prediction = (found.cpu().numpy() for found in logits[:VOID].softmax(dim=0).max(dim=0))
                label_map = _full_size_png(prediction.astype(np.uint8))
                in_two_bytes = (confidence * 65535).round().astype(np.uint16)
                name = f"{names[street.position]}.png"
                archive.writestr(f"labelTrainIds/{name}", label_map)
                archive.writestr(f"labelTrainIds_invalid/{name}", label_map)
                archive.writestr(f"confidence/{name}", _full_size_png(in_two_bytes))

    write_atomically(target, write_zip)


def _full_size_png(pixels: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).resize(FULL_SIZE, Image.Resampling.NEAREST).save(content, format="png")
    return content.getvalue()
