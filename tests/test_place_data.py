"""Places: lists, layouts, missing and broken files, pairs, shapes."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from day_crops import CropConfig, DayCrops
from descriptors import describe, selection_score
from PIL import Image
from place_checkpoints import load_place_network
from place_files import place_picture, write_folders, write_pickle, write_sfm, write_tokyo
from place_images import PlaceConfig, PlaceFiles, ScenePlaces, decode_shrunk
from place_network import PlaceSettings, build_place_network
from place_pairs import all_pairs, image_file, open_pairs, open_whitening_pairs, read_sfm
from retrieval_sets import open_retrieval_sets, read_toolbox
from torchvision.transforms.v2 import functional
from tuple_mining import EpochTuples, TupleConfig
from tuple_pair import ImagesOfManyShapes

from media.pictures import decode_picture
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.plain_pickle import read_plain_pickle
from scenes import render_places

RUNTIME = Runtime(torch.device("cpu"))
CONFIG = PlaceConfig(48)


def test_images_of_sfm_lie_where_their_ids_say():
    assert image_file(Path("ims"), "0123456789abcdef") == Path("ims/ef/cd/ab/0123456789abcdef")
    for name in ("../../etc/passwd", "ab", "/etc/passwd", "pwned......", "0123456789\0"):
        with pytest.raises(UsageError, match="not an image id"):
            image_file(Path("ims"), name)


def test_pairs_of_sfm(tmp_path):
    folder = write_sfm(tmp_path)
    pairs = open_pairs(str(tmp_path), "train", CONFIG, cache=tmp_path / "runs")
    assert len(pairs.images) == 24 and len(pairs.queries) == 16 and not pairs.images.is_night
    assert pairs.images.load(3, 32).shape == (3, 24, 32) and pairs.images.load(0, 32).shape == (3, 32, 24)
    assert all(pairs.clusters[pairs.queries] == pairs.clusters[pairs.positives])
    queries, relevances = pairs.relevances()
    # The third view looks for the second; the first, which is no pair of it, is junk as the query itself is.
    assert queries[1] == 2 and relevances[1].ok == (1,) and relevances[1].junk == (0, 2)
    listed = read_plain_pickle(folder / "retrieval-SfM-120k-whiten.pkl")
    del listed["cluster"], listed["qidxs"][3:], listed["pidxs"][3:]
    write_pickle(listed, folder / "retrieval-SfM-120k-whiten.pkl")
    assert len(open_whitening_pairs(str(tmp_path), CONFIG, cache=tmp_path / "runs").queries) == 3


LISTS = {  # a list of the split, what becomes of it, and the message
    "pair": ("pidxs", lambda train: [train["qidxs"][0], *train["pidxs"][1:]], "is listed as its own positive"),
    "no list": ("cids", lambda train: 24, "cids is a int, expected a list"),
    "lengths": ("pidxs", lambda train: train["pidxs"][:-1], "16 queries with 15 positives"),
    "position": ("qidxs", lambda train: [99, *train["qidxs"][1:]], "names image 99, there are 24"),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_that_do_not_fit_together_are_refused(tmp_path, case):
    key, change, message = LISTS[case]
    file = write_sfm(tmp_path) / "retrieval-SfM-120k.pkl"
    lists = read_plain_pickle(file)
    write_pickle({**lists, "train": {**lists["train"], key: change(lists["train"])}}, file)
    with pytest.raises(UsageError, match=message):
        read_sfm(file, "train")


def test_lists_that_lack_something_are_refused(tmp_path):
    file = write_sfm(tmp_path) / "retrieval-SfM-120k.pkl"
    lists = read_plain_pickle(file)
    train = lists["train"]
    for given, message in (
        ({"val": lists["val"]}, "no split train; it has val"),
        ({"train": {name: train[name] for name in train if name != "cluster"}}, "cluster is missing"),
        ({"train": {**train, "qidxs": [], "pidxs": []}}, "no place has two images"),
    ):
        write_pickle(given, file)
        with pytest.raises(UsageError, match=message):
            read_sfm(file, "train")


def test_a_missing_image_is_named(tmp_path):
    folder = write_sfm(tmp_path)
    next((folder / "ims").rglob("0010aabbcc")).unlink()
    with pytest.raises(UsageError, match="1 of 24 images of retrieval-SfM-120k, train are missing(.|\n)*0010aabbcc"):
        open_pairs(str(tmp_path), "train", CONFIG, cache=tmp_path / "runs")


def test_folders_of_places(tmp_path):
    write_folders(tmp_path)
    pairs = open_pairs(str(tmp_path), "val", CONFIG, cache=tmp_path / "runs")
    assert len(pairs.images) == 15 and len(pairs.queries) == 5 * 3 * 2
    [test] = open_retrieval_sets(str(tmp_path), CONFIG, cache=tmp_path / "runs")
    assert len(test.database) == 15 and len(test.queries) == 5
    assert test.queries.is_night and not test.database.is_night
    assert test.relevances[1].ok == (3, 4, 5) and test.places[1] == "place1"


def test_a_place_with_one_image_is_only_ever_a_negative(tmp_path):
    for place, views in enumerate((1, 2)):
        for view in range(views):
            place_picture(tmp_path / "train" / f"p{place}" / "day" / f"{view}.jpg", place, view)
    pairs = open_pairs(str(tmp_path), "train", CONFIG, cache=tmp_path / "runs")
    assert pairs.queries.tolist() == [1, 2]
    (tmp_path / "train" / "p1" / "day" / "1.jpg").unlink()
    with pytest.raises(UsageError, match="no place has two images"):
        open_pairs(str(tmp_path), "train", CONFIG, cache=tmp_path / "runs")


def test_a_folder_of_another_kind_says_what_was_expected(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(UsageError, match="expected train/retrieval-SfM-120k.*found photos; get retrieval-SfM-120k by"):
        open_pairs(str(tmp_path), "train", CONFIG)
    with pytest.raises(UsageError, match="no test data at .*247tokyo1k|no test data at .*Tokyo 24/7"):
        open_retrieval_sets(str(tmp_path), CONFIG)
    (tmp_path / "train").mkdir()
    with pytest.raises(UsageError, match="no places in .*PLACE/day"):
        open_pairs(str(tmp_path), "train", CONFIG)
    write_folders(tmp_path, places=2)
    for night in (tmp_path / "test").rglob("night/*.jpg"):
        night.unlink()
    with pytest.raises(UsageError, match="no night images"):
        open_retrieval_sets(str(tmp_path), CONFIG)


def test_an_empty_data_base_is_refused(tmp_path):
    place_picture(tmp_path / "test" / "p" / "night" / "0.jpg", 0, 0)
    with pytest.raises(UsageError, match="data base is empty"):
        open_retrieval_sets(str(tmp_path), CONFIG)
    folder = tmp_path / "other" / "test" / "x"
    write_pickle({"imlist": [], "qimlist": ["q"], "gnd": [{"ok": []}]}, folder / "gnd_x.pkl")
    with pytest.raises(UsageError, match="data base .imlist. is empty"):
        open_retrieval_sets(str(tmp_path / "other"), CONFIG)


def test_the_toolbox_format(tmp_path):
    write_tokyo(tmp_path)
    [test] = open_retrieval_sets(str(tmp_path), CONFIG, cache=tmp_path / "runs")
    assert test.title == "247tokyo1k" and len(test.database) == 8 and len(test.queries) == 4
    assert test.queries.is_night and test.relevances[2].ok == (4, 5)
    assert test.queries.load(0, 48).shape == (3, 30, 40)  # cut out
    assert test.queries.load(1, 48).shape == (3, 36, 48)
    assert test.places == ["day00", "day10", "day20", "day30"]


def test_a_query_that_is_in_the_data_base_does_not_find_itself(tmp_path):
    file = tmp_path / "x" / "gnd_x.pkl"
    write_pickle({"imlist": ["a", "b"], "qimlist": ["a"], "gnd": [{"ok": [1], "junk": []}]}, file)
    assert read_toolbox(file).relevances[0].junk == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gnd": []}, "1 queries but 0 answers"),
        ({"gnd": [{"ok": [7]}]}, "query 0 names image 7 of the data base, which has 2"),
        ({"gnd": [{"ok": [1], "bbx": [5, 0, 2, 9]}]}, "expected left, top, right, bottom"),
        ({"gnd": [{"ok": [1], "junk": [1]}]}, "is both ok and junk"),
        ({"qimlist": [], "gnd": []}, "list of queries .qimlist. is empty"),
        ({"qimlist": None}, "qimlist is missing, expected a list"),
        ({"qimlist": np.array("q", dtype=object), "gnd": []}, "1 queries but 0 answers"),
    ],
)
def test_answers_that_do_not_fit_are_refused(tmp_path, changes, message):
    file = tmp_path / "x" / "gnd_x.pkl"
    write_pickle({"imlist": ["a", "b"], "qimlist": ["q"], "gnd": [{"ok": [1]}], **changes}, file)
    with pytest.raises(UsageError, match=message):
        read_toolbox(file)


def test_night_images_train_and_choose_nothing():
    night = ScenePlaces("night", np.zeros((4, 8, 8, 3), np.uint8), is_night=True)
    with pytest.raises(ValueError, match="night images"):
        all_pairs(night, torch.tensor([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="night images"):
        DayCrops(night, CropConfig(32, 16))


def test_the_same_places_are_seen_by_day_and_by_night():
    day, places = render_places("day", 3, 2, 64, seed=5)
    night, same = render_places("night", 3, 2, 64, seed=5)
    assert places.tolist() == same.tolist() == [0, 0, 1, 1, 2, 2]
    assert night.mean() < 0.6 * day.mean()
    other = render_places("day", 3, 1, 64, seed=5, first_view=1)[0]
    assert np.array_equal(other[1], day[3])  # view 1 of place 1
    assert not np.array_equal(day[0], day[1])


def test_images_of_one_shape_come_together_and_keep_their_order():
    class Told(NamedTuple):
        first: torch.Tensor
        both: torch.Tensor

    class Module(torch.nn.Module):
        def forward(self, day, night):
            sizes.append(len(day))
            return Told(day.mean(dim=(1, 2, 3)), (day + night).mean(dim=(1, 2, 3)))

    sizes = []
    days = [torch.zeros(3, 4, 6), torch.ones(3, 6, 4), torch.full((3, 4, 6), 2.0)]
    found = ImagesOfManyShapes(Module(), RUNTIME)(days, [day + 10 for day in days])
    assert sizes == [2, 1]
    assert found.first.tolist() == [0.0, 1.0, 2.0] and found.both.tolist() == [10.0, 12.0, 14.0]


@pytest.fixture(scope="module")
def network(checkpoint):
    return load_place_network(checkpoint)[0].eval()


def test_batches_by_shape_describe_as_one_by_one(network, tmp_path):
    files = []
    for i in range(40):  # more shapes than are held at a time
        files.append(tmp_path / f"{i}.jpg")
        place_picture(files[-1], i, 0, size=(40 + i % 23, 36))
    images = PlaceFiles("x", tmp_path, files, is_night=False)
    found = describe(network, images, 64, RUNTIME, batch_size=3)
    with torch.no_grad():
        for i in range(0, 40, 7):
            image = functional.to_dtype(images.load(i, 64), torch.float32, scale=True)
            torch.testing.assert_close(found[i], network(image[None])[0], rtol=1e-4, atol=1e-5)
    chosen = describe(network, images, 64, RUNTIME, positions=[7, 3])
    torch.testing.assert_close(chosen, found[[7, 3]], rtol=1e-4, atol=1e-5)


def test_the_number_for_choosing_repeats_and_depends_on_no_batch(network, tmp_path):
    write_sfm(tmp_path, places=4)
    pairs = open_pairs(str(tmp_path), "val", CONFIG, cache=tmp_path / "runs")
    first, second = (selection_score(network, pairs, 48, RUNTIME, batch_size=n) for n in (2, 8))
    assert first == pytest.approx(second, abs=1e-6)
    assert 0 < first["darkened"] <= 1 and first["score"] == pytest.approx((first["day"] + first["darkened"]) / 2)


def test_tuples_hold_one_place_and_others(network, tmp_path):
    write_sfm(tmp_path)
    pairs = open_pairs(str(tmp_path), "train", CONFIG, cache=tmp_path / "runs")
    tuples = EpochTuples(pairs, TupleConfig(queries=10, pool=20, negatives=3), 48, seed=0)
    tuples.mine(network, 0, RUNTIME, workers=0)
    places = pairs.clusters[tuples.members]
    assert len(tuples) == 10 and tuples.members.shape == (10, 5)
    assert torch.equal(places[:, 0], places[:, 1])
    assert all(len({int(c) for c in row[1:]}) == 4 for row in places)  # its own and three others
    assert len(tuples[0, 3].others) == 4 and tuples[0, 3].query.dtype == torch.uint8
    with pytest.raises(ValueError, match="of epoch 0, not 1"):
        tuples[1, 3]
    before = tuples.members
    tuples.mine(network, 0, RUNTIME, workers=0)
    assert tuples.members is before
    tuples.mine(network, 1, RUNTIME, workers=0)
    assert not torch.equal(tuples.members, before)


def test_crops_are_of_one_size_and_repeat(tmp_path):
    for i in range(6):
        place_picture(tmp_path / f"{i}.jpg", i, 0, size=(60 + 8 * i, 48))
    images = PlaceFiles("x", tmp_path, sorted(tmp_path.glob("*.jpg")), is_night=False)
    crops = DayCrops(images, CropConfig(40, 32, per_epoch=4), seed=1)
    assert len(crops) == 4
    epochs = [torch.stack([crops[epoch, i] for i in range(4)]) for epoch in (0, 0, 1)]
    assert epochs[0].shape == (4, 3, 32, 32)
    assert torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[0], epochs[2])
    assert crops.central(0).shape == (3, 32, 32)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_of_16_bits_is_not_clipped(tmp_path, name):
    Image.fromarray(np.full((20, 30), 0x8000, np.uint16)).save(tmp_path / name)
    for pixels in (decode_shrunk(tmp_path / name, 30), decode_picture(tmp_path / name)):
        assert pixels.shape == (3, 20, 30) and pixels.unique().tolist() == [127]


def test_grey_of_32_bits_has_no_known_range(tmp_path):
    Image.fromarray(np.full((20, 30), 0.5, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="32 bits and no known range"):
        decode_shrunk(tmp_path / "a.tif", 30)


@pytest.mark.parametrize("model", ["resnet18", "timm/convnext_atto"])
def test_an_image_of_which_nothing_is_left_is_named(tmp_path, model):
    Image.new("RGB", (1000, 3)).save(tmp_path / "thin.png")
    network = build_place_network(PlaceSettings(model))
    images = PlaceFiles("thin", tmp_path, [tmp_path / "thin.png"], is_night=False)
    with pytest.raises(RunError, match="thin.png is too small for this network: 256x1 pixels"):
        describe(network, images, 256, RUNTIME, scales=(1.0, 0.3))


def test_exif_is_followed_where_no_box_counts_in_stored_pixels(tmp_path):
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    turned = PlaceFiles("x", tmp_path, [tmp_path / "a.jpg"], is_night=True)
    boxed = PlaceFiles("x", tmp_path, [tmp_path / "a.jpg"], True, [(0, 0, 30, 20)])
    assert turned.load(0, 64).shape == (3, 40, 20) and boxed.load(0, 64).shape == (3, 20, 30)
