"""Describing 200 images of many sizes, and mining hard negatives for 2,000 queries in a pool of 20,000 x 2048.

    python benchmarks/bench_retrieval.py

The straightforward forms are those of the field's toolboxes: one image at a time through the network, and a full sort
of all similarities. Descriptors agree to rounding, negatives exactly.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from minmax.runtime.devices import Runtime, keep_large_buffers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "visual-place-recognition"))
from descriptors import describe  # noqa: E402  (its folder is no package)
from place_images import PlaceFiles  # noqa: E402
from place_network import PlaceSettings, build_place_network  # noqa: E402
from tuple_mining import mine_negatives  # noqa: E402

IMAGES, SIDE, FORMATS = 200, 224, ((224, 168), (168, 224), (224, 149), (149, 224), (224, 126), (200, 224))
QUERIES, POOL, WIDTH, PLACES, NEGATIVES = 2000, 20000, 2048, 700, 5
EXTRACTION_ROUNDS, MINING_ROUNDS = 5, 3
RUNTIME = Runtime(torch.device("cpu"))


def photographs(folder):
    """JPEGs of several formats, in no order."""
    rng = np.random.default_rng(0)
    files = []
    for i in range(IMAGES):
        width, height = FORMATS[int(rng.integers(len(FORMATS)))]
        coarse = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
        files.append(folder / f"{i:03d}.jpg")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    return PlaceFiles("bench", folder, files, is_night=False)


@torch.no_grad()
def one_by_one(network, images):
    """Every image through the network by itself."""
    network.eval()
    found = []
    for i in range(len(images)):
        image = functional.to_dtype(images.load(i, SIDE), torch.float32, scale=True)
        found.append(network(image[None]))
    return torch.cat(found)


def by_shape(network, images):
    """Images of one shape together."""
    return describe(network, images, SIDE, RUNTIME, batch_size=16)


def full_sort(queries, pool, query_places, pool_places):
    """Sort all similarities, then go down each list."""
    order = (pool @ queries.T).sort(dim=0, descending=True).indices
    found = []
    for query in range(len(queries)):
        seen, chosen, rank = {int(query_places[query])}, [], 0
        while len(chosen) < NEGATIVES:
            position = int(order[rank, query])
            rank += 1
            if int(pool_places[position]) not in seen:
                seen.add(int(pool_places[position]))
                chosen.append(position)
        found.append(chosen)
    return torch.tensor(found)


def top_k(queries, pool, query_places, pool_places):
    """As training mines."""
    return mine_negatives(queries, pool, query_places, pool_places, NEGATIVES)


def compare(title, slow, fast, rounds, *arguments):
    """Time two functions alternately and print the ratio of medians."""
    times = {slow: [], fast: []}
    for _ in range(rounds):
        for function, taken in times.items():
            start = time.perf_counter()
            function(*arguments)
            taken.append(time.perf_counter() - start)
    before, after = (statistics.median(taken) for taken in times.values())
    print(f"{title}: {before:.3f} s, {after:.3f} s, ratio {before / after:.2f}")


def main():
    """Check that both forms agree, then time them."""
    keep_large_buffers()
    torch.manual_seed(0)
    network = RUNTIME.place(build_place_network(PlaceSettings("resnet18")))
    with tempfile.TemporaryDirectory() as folder:
        images = photographs(Path(folder))
        torch.testing.assert_close(one_by_one(network, images), by_shape(network, images), rtol=1e-3, atol=1e-4)
        compare(
            f"describe {IMAGES} images of {len(FORMATS)} formats",
            one_by_one,
            by_shape,
            EXTRACTION_ROUNDS,
            network,
            images,
        )
    pool_places = torch.randint(PLACES, (POOL,))
    centres = torch.randn(PLACES, WIDTH)
    pool = torch.nn.functional.normalize(centres[pool_places] + 3 * torch.randn(POOL, WIDTH), dim=1)
    chosen = torch.randperm(POOL)[:QUERIES]
    given = (pool[chosen], pool, pool_places[chosen], pool_places)
    assert torch.equal(full_sort(*given), top_k(*given))
    compare(f"mine {NEGATIVES} negatives, {QUERIES} x {POOL} x {WIDTH}", full_sort, top_k, MINING_ROUNDS, *given)


if __name__ == "__main__":
    main()
