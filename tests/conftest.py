"""Settings of all tests: small machines run them in parallel, so each process gets one torch thread."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from place_files import write_sfm, write_tokyo
from script_modules import load_module
from video_files import save_video

from darkening import Darkener, save_darkener

REPOSITORY = Path(__file__).resolve().parents[1]
TASKS = ("classification", "segmentation", "visual-place-recognition", "low-light-action-recognition")
CLASSES = ("bus", "car")
ACTIONS = ("Run", "Sit")

# The scripts of a task import their neighbours by name, as they do when started from the shell.
sys.path[:0] = [str(REPOSITORY / task) for task in TASKS]


@pytest.fixture
def demo():
    return load_module("demo", REPOSITORY / "demo.py")


@pytest.fixture
def reproduce():
    return load_module("reproduce", REPOSITORY / "reproduce.py")


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
def streets(tmp_path_factory):
    """Tiny streets in Cityscapes' layout, and night streets in the layouts of Nighttime Driving and Dark Zurich."""
    root = tmp_path_factory.mktemp("streets")
    for split, count in (("train", 6), ("val", 2)):
        for i in range(count):
            name = f"ulm_{i:06d}_000019"
            save_street(
                root / "Cityscapes" / "leftImg8bit" / split / "ulm" / f"{name}_leftImg8bit.png",
                root / "Cityscapes" / "gtFine" / split / "ulm" / f"{name}_gtFine_labelIds.png",
                seed=i,
            )
    for i in range(2):
        driving, zurich = root / "NighttimeDrivingTest", root / "Dark_Zurich_val_anon"
        save_street(
            driving / "leftImg8bit/test/night" / f"{i}_leftImg8bit.png",
            driving / "gtCoarse_daytime_trainvaltest/test/night" / f"{i}_gtCoarse_labelIds.png",
            seed=10 + i,
            darker=4,
        )
        save_street(
            zurich / "rgb_anon/val/night/GOPR0356" / f"{i}_rgb_anon.png",
            zurich / "gt/val/night/GOPR0356" / f"{i}_gt_labelIds.png",
            seed=20 + i,
            darker=4,
        )
        secret = root / "Dark_Zurich_test_anon_withoutGt" / "rgb_anon/test/night/GOPR0364"
        save_street(secret / f"GOPR0364_frame_{i:06d}_rgb_anon.png", None, seed=30 + i, darker=4)
    return root


def save_street(image, labels, seed, darker=1):
    """A grey road (label id 7) under a blue sky (23) with noise, 64x48, and a strip of void (0)."""
    pixels = np.random.default_rng(seed).integers(0, 60, (48, 64, 3), dtype=np.uint8)
    horizon = 20 + seed % 8
    pixels[:horizon, :, 2] += 180
    pixels[horizon:] += 60
    label_ids = np.full((48, 64), 7, np.uint8)
    label_ids[:horizon] = 23
    label_ids[-4:] = 0
    for file, content in ((image, pixels // darker), (labels, label_ids)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(file)


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory):
    from segmenter import SegmenterSettings, build_segmenter, save_segmenter  # found once the path is set, above

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("segmenter") / "best.pt"
    settings = SegmenterSettings("refinenet_resnet18", width=8)
    save_segmenter(build_segmenter(settings), settings, path)
    return path


@pytest.fixture(scope="session")
def darkener(tmp_path_factory):
    path = tmp_path_factory.mktemp("darkener") / "best.pt"
    torch.manual_seed(0)
    save_darkener(Darkener(), path)
    return path


@pytest.fixture(scope="session")
def places(tmp_path_factory):
    """Tiny places as retrieval-SfM-120k and Tokyo 24/7 lie."""
    root = tmp_path_factory.mktemp("places")
    write_sfm(root)
    write_tokyo(root)
    return root


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """A class tree of day and night videos of several kinds and lengths."""
    root = tmp_path_factory.mktemp("videos")
    for split, count in (("train", 3), ("val", 1), ("test_day", 1), ("test_night", 2)):
        for label, name in enumerate(ACTIONS):
            for i in range(count):
                file = root / split / name / f"{split}_{i}.{('mp4', 'avi', 'mkv')[i % 3]}"
                size = {"frames": 5 + 4 * i, "height": 32 + label * 8, "width": 40}
                save_video(file, darker=4 if "night" in split else 1, **size)
    return root


@pytest.fixture(scope="session")
def recogniser(tmp_path_factory):
    from recogniser import RecogniserSettings, build_recogniser, save_recogniser  # found once the path is set, above

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("recogniser") / "best.pt"
    settings = RecogniserSettings("i3d_resnet18", ACTIONS, width=4)
    save_recogniser(build_recogniser(settings), settings, path)
    return path
