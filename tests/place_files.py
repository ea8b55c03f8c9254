"""Places on disk for the tests of retrieval: retrieval-SfM-120k's layout, Tokyo 24/7's, and folders of places."""

import pickle

import numpy as np
from PIL import Image


def place_picture(file, place, view, darker=1, size=(48, 36)):
    """Two stripes in the place's colours, shifted by the view, with noise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(place).integers(60, 255, (2, 3))
    pixels = np.random.default_rng((place, view)).integers(-20, 20, (size[1], size[0], 3)) + colours[0]
    left = 8 + 4 * view
    pixels[:, left : left + 16] += colours[1] - colours[0]
    Image.fromarray((pixels.clip(0, 255) // darker).astype(np.uint8)).save(file, format="JPEG")


def write_sfm(root, places=8, views=3):
    """The lists and images of both splits; every image of a place is a pair with the next one."""
    folder = root / "train" / "retrieval-SfM-120k"
    lists = {}
    for number, split in enumerate(("train", "val")):
        names, clusters, queries, positives = [], [], [], []
        for place in range(places):
            for view in range(views):
                name = f"{number}{place:02d}{view}aabbcc"
                # Portrait and landscape: images of places come in all formats.
                size = (48, 36) if place % 3 else (36, 48)
                place_picture(folder / "ims" / "cc" / "bb" / "aa" / name, 100 * number + place, view, size=size)
                if view:
                    queries.append(len(names))
                    positives.append(len(names) - 1)
                names.append(name)
                clusters.append(place)
        lists[split] = {"cids": names, "cluster": clusters, "qidxs": queries, "pidxs": positives}
    write_pickle(lists, folder / "retrieval-SfM-120k.pkl")
    write_pickle(lists["train"], folder / "retrieval-SfM-120k-whiten.pkl")
    return folder


def write_tokyo(root, places=4):
    """A data base of two day images of each place and one night query each; the first query is a part of its image."""
    folder = root / "test" / "247tokyo1k"
    names, queries, answers = [], [], []
    for place in range(places):
        for view in range(2):
            names.append(f"day{place}{view}")
            place_picture(folder / "jpg" / f"day{place}{view}.jpg", place, view)
        queries.append(f"night{place}")
        place_picture(folder / "jpg" / f"night{place}.jpg", place, 2, darker=5)
        answers.append({"ok": [2 * place, 2 * place + 1], "junk": [], "bbx": [0, 0, 40, 30] if place == 0 else None})
    write_pickle({"imlist": names, "qimlist": queries, "gnd": answers}, folder / "gnd_247tokyo1k.pkl")
    return folder


def write_folders(root, places=5):
    """ROOT/{train,val,test}/PLACE/{day,night}."""
    for split in ("train", "val", "test"):
        for place in range(places):
            for view in range(3):
                place_picture(root / split / f"place{place}" / "day" / f"{view}.jpg", place, view)
            if split == "test":
                place_picture(root / split / f"place{place}" / "night" / "0.jpg", place, 1, darker=5)


def write_pickle(content, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content, protocol=2))
