"""What the tests of the segmentation scripts share: the scripts as modules, and flags for a run of seconds."""

import numpy as np
import torch
from PIL import Image
from script_modules import TaskScripts

from minmax.runtime.devices import Runtime

RUNTIME = Runtime(torch.device("cpu"))
SIZE = ["--images.size", 32, 48]

TASK = TaskScripts("segmentation")
SCRIPTS, start, command = TASK.modules, TASK.start, TASK.command


def common(streets, runs):
    return [
        *("--data", streets / "Cityscapes", "--runs", runs, "--workers", 0),
        *("--optim.epochs", 1, "--optim.batch-size", 2, *SIZE),
    ]


PUBLISHED = {
    "ACDC": ("rgb_anon/night/{}/GOPR0351/{}_rgb_anon.png", "gt/night/{}/GOPR0351/{}_gt_labelIds.png"),
    "ACDC in folders of its archives": (
        "rgb_anon_trainvaltest/rgb_anon/night/{}/GOPR0351/{}_rgb_anon.png",
        "gt_trainval/gt/night/{}/GOPR0351/{}_gt_labelIds.png",
    ),
    "ACDC with train ids": ("rgb_anon/night/{}/GP1/{}_rgb_anon.png", "gt/night/{}/GP1/{}_gt_labelTrainIds.png"),
    "NightCity": ("NightCity-images/images/{}/{}.png", "NightCity-label/label/{}/{}_labelIds.png"),
    "nightcity-fine": ("{}/img/{}.png", "{}/lbl/{}_trainIds.png"),
}
"""Night data sets as their archives unpack: images and labels by split and name."""


def publish_night(root, name, splits=("train", "val")):
    """Write a data set of PUBLISHED, two images of 16x8 by split: a road under a sky, and a row of void."""
    ids = np.repeat([23, 23, 23, 23, 7, 7, 7, 0], 16).reshape(8, 16).astype(np.uint8)
    train_ids = np.repeat([10, 10, 10, 10, 0, 0, 0, 255], 16).reshape(8, 16).astype(np.uint8)
    for split in splits:
        for i, place in enumerate(("Chicago_0001", "Chicago_0002")):
            image, labels = (root / name / path.format(split, place) for path in PUBLISHED[name])
            for file in (image, labels):
                file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 16, 3), 20 + i, np.uint8)).save(image)
            Image.fromarray(train_ids if "rainIds" in labels.name else ids).save(labels)
    return root / name
