"""What the processes of one training measure and mine together; run by each of them, and by one alone.

python tests/measured_together.py DATA STREETS PLACES CHECKPOINT SEGMENTER FOLDER
"""

import json
import sys
from pathlib import Path

import conftest  # noqa: F401  (puts the tasks on the path)
import torch
import video_clips
from cityscapes import StreetConfig, open_streets
from class_accuracy import measure as measure_classes
from class_folders import ImageConfig, open_split
from classifier import load_classifier
from clip_accuracy import measure as measure_clips
from clip_sets import open_clips
from clips import ClipConfig
from descriptors import selection_score as place_score
from miou import measure as measure_streets
from place_checkpoints import load_place_network
from place_images import PlaceConfig
from place_pairs import open_pairs
from recogniser import RecogniserSettings, build_recogniser
from segmenter import load_segmenter
from tuple_mining import EpochTuples, TupleConfig

from darkening import Darkener, DarkenerSettings, training
from darkening.selection_nights import by_day, crushed
from media.video_frames import count_frames
from minmax.runtime.devices import open_runtime
from minmax.runtime.file_checks import find_problems


def main(data, streets, places, checkpoint, segmenter, folder):
    with open_runtime("cpu", threads=1) as runtime:
        # As after a step, of which each process saw other images.
        def elsewhere(network):
            with torch.no_grad():
                for name, buffer in network.named_buffers():
                    if name.endswith("running_mean"):
                        buffer += runtime.rank
            return network

        found, cache = {}, folder / f"cache{runtime.rank}-{runtime.world_size}"
        images = open_split(str(data), "val", ImageConfig(size=32), cache=cache)
        network = elsewhere(load_classifier(checkpoint)[0])
        for accuracy in measure_classes(
            network, images, ImageConfig(size=32), runtime, (by_day, crushed), batch_size=2
        ):
            found.setdefault("classes", []).append([accuracy.predictions.tolist(), accuracy.confidences.tolist()])

        config = StreetConfig(size=(32, 48), crop=None)
        validation = open_streets(str(streets / "Cityscapes"), "train", config, cache=cache)
        scores = measure_streets(
            elsewhere(load_segmenter(segmenter, (32, 48))[0]), validation, (32, 48), runtime, (by_day, crushed)
        )
        found["streets"] = [score.confusion.tolist() for score in scores]

        torch.manual_seed(0)
        clips = open_clips("scenes", "val", ClipConfig(length=4, interval=1, size=32), quick=True, cache=cache)
        recogniser = build_recogniser(RecogniserSettings("i3d_resnet18", clips.classes, width=4))
        how = (ClipConfig(length=4, size=32), runtime)
        [accuracy] = measure_clips(elsewhere(recogniser), clips, *how, batch_size=2)
        found["clips"] = accuracy.probabilities.tolist()

        network = elsewhere(load_place_network(checkpoint)[0])
        pairs = open_pairs(str(places), "train", PlaceConfig(48), cache=cache)
        found["places"] = place_score(network, pairs, 48, runtime, batch_size=2)
        tuples = EpochTuples(pairs, TupleConfig(queries=7, pool=20, negatives=2), 48, seed=0)
        tuples.mine(network, 0, runtime, workers=0)
        found["tuples"] = tuples.members.tolist()

        training.VALIDATION_PIXELS = 2 * 16 * 16
        darkener = Darkener(DarkenerSettings(width=4))
        found["obedience"] = list(training.obedience(darkener, torch.rand(7, 3, 16, 16), runtime).values())
        found["sum"] = runtime.sum_over_ranks(torch.tensor([1.0, runtime.rank])).tolist()
        odd = lambda item: f"{item} is odd" if item % 3 == 1 else None  # noqa: E731
        found["problems"] = find_problems(range(300, 311), odd, cache / "record", "")
        looked, record = [], folder / f"record-of-{runtime.world_size}"
        find_problems(range(11), looked.append, record, "")
        assert len(looked) == len(runtime.dealt(range(11)))
        decoded = []
        video_clips.count_frames = lambda file: decoded.append(file) or count_frames(file)
        for _ in range(2):  # the second time only the broken one
            videos = open_clips(str(folder / "videos"), "train", ClipConfig(skip_corrupt=0.2), cache=cache)
        found["frames"] = videos.counts
        found["decoded"] = float(runtime.sum_over_ranks(torch.tensor(float(len(decoded)))))
        found["record"] = bool(runtime.sum_over_ranks(torch.tensor(float(record.is_file()))))
        found["flags"] = runtime.any_rank(runtime.rank == 1, False)
        name = f"{runtime.rank}-of-{runtime.world_size}.json"
        (folder / name).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
