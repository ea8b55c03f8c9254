"""Settings of all tests: small machines run them in parallel, so each process gets one torch thread."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from darkening.curve_estimator import Darkener, save_darkener

REPOSITORY = Path(__file__).resolve().parents[1]
TASKS = ("classification",)
CLASSES = ("bus", "car")

# The scripts of a task import their neighbours by name, as they do when started from the shell.
sys.path[:0] = [str(REPOSITORY / task) for task in TASKS]


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Class folders of red and blue pictures of several sizes and formats."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test_day", "test_night"):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 120, (40 + i, 44, 3), dtype=np.uint8)
                pixels[..., 2 * label] += 100
                Image.fromarray(pixels // (4 if "night" in split else 1)).save(
                    folder / f"{i}.{'jpg' if i % 2 else 'png'}"
                )
    return root


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    from classifier import ClassifierSettings, build_classifier, save_classifier  # found once the path is set, above

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("day") / "best.pt"
    settings = ClassifierSettings("resnet18", CLASSES)
    save_classifier(build_classifier(settings), settings, path)
    return path


@pytest.fixture(scope="session")
def darkener(tmp_path_factory):
    path = tmp_path_factory.mktemp("darkener") / "best.pt"
    torch.manual_seed(0)
    save_darkener(Darkener(), path)
    return path
