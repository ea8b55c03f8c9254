"""BatchNorm statistics for evaluation, estimated anew on day images and their darkened copies."""

from collections.abc import Iterator

import torch
from class_folders import ImageConfig, LabelledImages
from image_views import WholeImages
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader
from tqdm import tqdm

from darkening.night_view import NightView
from minmax.runtime.batches import read_batches
from minmax.runtime.devices import Runtime
from minmax.runtime.seeding import generator_for
from minmax.runtime.splits import refuse_night


def reestimate_statistics(
    network: nn.Module,
    images: LabelledImages,
    config: ImageConfig,
    night: NightView,
    runtime: Runtime,
    batch_size: int = 32,
) -> None:
    """Replace the running statistics of all BatchNorm layers by the mean over batches of half day, half darkened day.

    Args:
        network: images `(N, 3, H, W)` in [0, 1] to anything.
        images: a day split; whole images are read, without augmentation.
        config: how they are read.
        night: darkens the copies, the same way in every call.
        runtime: the devices.
        batch_size: day images per batch.

    Raises:
        ValueError: for a night split.
    """
    refuse_night(images)
    # Shuffled: class folders are read in order, and the variance within a batch of one class is too small.
    loader = DataLoader(
        WholeImages(images, config),
        batch_size,
        shuffle=True,
        drop_last=len(images) >= batch_size,
        generator=generator_for("statistics"),
    )
    bar = tqdm(loader, desc="statistics", disable=None if runtime.is_main else True, leave=False)

    def batches() -> Iterator[Tensor]:
        for number, (batch, _) in enumerate(read_batches(bar)):
            day = runtime.intensities(batch)
            yield torch.cat([day, night(day, generator_for("statistics", number))])

    with runtime.autocast():
        update_bn(batches(), network)
