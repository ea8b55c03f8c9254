"""Street images: layouts, pairing, broken files, views under one geometry, photometry, pictures."""

import shutil

import numpy as np
import pytest
import torch
from cityscapes import StreetConfig, open_nights, open_streets
from miou import StreetScore, measure, selection_score
from PIL import Image
from segmentation_scripts import PUBLISHED, RUNTIME, SIZE, publish_night, start
from segmenter import load_segmenter
from street_images import SceneStreets, StreetFile, StreetFiles, TrainingStreets, WholeStreets, read_labels
from street_labels import VOID
from street_photometry import PhotometryConfig, change_views
from street_pictures import draw_predictions

from minmax.runtime.errors import UsageError
from minmax.runtime.splits import DayPictures
from scenes import render_labelled, render_segmented

CONFIG = StreetConfig(size=(32, 48), crop=(32, 32))


@pytest.fixture
def cityscapes(streets, tmp_path):
    """A copy of the streets that a test may spoil."""
    return shutil.copytree(streets / "Cityscapes", tmp_path / "Cityscapes")


def test_images_and_labels_come_in_pairs_and_in_order(streets, tmp_path):
    images = open_streets(str(streets / "Cityscapes"), "train", CONFIG, cache=tmp_path)
    assert len(images) == 6 and not images.is_night
    assert [images.name(i) for i in range(2)] == [
        f"leftImg8bit/train/ulm/ulm_00000{i}_000019_leftImg8bit.png" for i in range(2)
    ]
    for i in range(6):
        street = images.load(i)
        assert street.image.shape == (3, 48, 64) and street.image.dtype == torch.uint8
        # The horizon of image i is at row 20 + i: sky above, road below, void at the bottom.
        assert street.labels[19 + i].unique().tolist() == [10] and street.labels[20 + i].unique().tolist() == [0]
        assert street.labels[-1].unique().tolist() == [VOID]


def test_labels_are_resized_without_inventing_classes(streets, tmp_path):
    images = open_streets(str(streets / "Cityscapes"), "val", CONFIG, cache=tmp_path)
    street = images.load(0, (17, 23), (17, 23))
    assert street.image.shape == (3, 17, 23)
    assert set(street.labels.unique().tolist()) == {0, 10, VOID}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("NighttimeDrivingTest", 2),
        ("Dark_Zurich_val_anon", 2),
        ("Dark_Zurich_test_anon_withoutGt", 2),
        ("Cityscapes", 2),
    ],
)
def test_night_data_are_told_apart_by_their_folders(name, count, streets, tmp_path):
    images = open_nights(streets / name, cache=tmp_path)[0]
    assert len(images) == count and images.is_night
    assert (images.load(0).labels is None) == ("test" in name and "Zurich" in name)


def test_night_images_are_never_trained_or_selected_on(streets, segmenter, tmp_path):
    images = open_nights(streets / "NighttimeDrivingTest", cache=tmp_path)[0]
    network, _ = load_segmenter(segmenter)
    for use in (
        lambda: TrainingStreets(images, CONFIG, seed=0),
        lambda: DayPictures(images, WholeStreets(images, CONFIG.size)),
        lambda: selection_score(network, images, CONFIG.size, RUNTIME),
    ):
        with pytest.raises(ValueError, match="night images"):
            use()
    assert measure(network, images, CONFIG.size, RUNTIME)[0].confusion.sum() == 2 * 32 * 48  # reporting is allowed


IMAGE = "leftImg8bit/train/ulm/ulm_000002_000019_leftImg8bit.png"


def empty(root):
    for folder in ("leftImg8bit", "gtFine"):
        shutil.rmtree(root / folder / "train")
        (root / folder / "train" / "ulm").mkdir(parents=True)


SPOILT = {
    "no image": (lambda r: (r / IMAGE).unlink(), "holds 1 labels without an image: gtFine/train/ulm/ulm_000002_"),
    "no folder": (lambda r: shutil.rmtree(r / "gtFine"), "no folder .*gtFine/train; expected .* found leftImg8bit"),
    "empty": (empty, "no images of"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_data_set_that_does_not_fit_is_refused_with_the_file_named(case, cityscapes, tmp_path):
    spoil, message = SPOILT[case]
    spoil(cityscapes)
    with pytest.raises(UsageError, match=message):
        open_streets(str(cityscapes), "train", CONFIG, cache=tmp_path)


def test_a_folder_of_no_known_layout_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no data at"):
        open_streets(str(tmp_path / "none"), "train", CONFIG)
    (tmp_path / "jpg").mkdir()
    with pytest.raises(UsageError, match="expected the layout of Nighttime Driving.*found jpg"):
        open_nights(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        open_nights(tmp_path / "none")


def test_linked_cities_are_followed(cityscapes, tmp_path):
    for kind in ("leftImg8bit", "gtFine"):
        shutil.move(cityscapes / kind / "train" / "ulm", tmp_path / kind)
        (cityscapes / kind / "train" / "ulm").symlink_to(tmp_path / kind)
    assert len(open_streets(str(cityscapes), "train", CONFIG, cache=tmp_path)) == 6


def test_files_of_a_file_manager_are_no_images(cityscapes, tmp_path):
    for folder in ("leftImg8bit/train", "leftImg8bit/train/ulm", "gtFine/train/ulm"):
        (cityscapes / folder / ".DS_Store").touch()
    (cityscapes / "leftImg8bit/train/ulm/._ulm_000002_000019_leftImg8bit.png").touch()
    (cityscapes / "gtFine/train/ulm/._ulm_000002_000019_gtFine_labelIds.png").touch()
    (cityscapes / "leftImg8bit/train/readme.txt").touch()
    assert len(open_streets(str(cityscapes), "train", CONFIG, cache=tmp_path)) == 6


def test_scenes_are_square():
    with pytest.raises(UsageError, match="--images.size 32 48: expected a square for the built-in scenes"):
        open_streets("scenes", "train", CONFIG)


def test_files_are_checked_once(cityscapes, tmp_path, monkeypatch):
    open_streets(str(cityscapes), "train", CONFIG, cache=tmp_path)

    def never(*_):
        raise AssertionError

    monkeypatch.setattr("street_images.decode_picture", never)
    open_streets(str(cityscapes), "train", CONFIG, cache=tmp_path)


def test_views_share_one_geometry(tmp_path):
    """Colour the image by its labels: after any geometry the colours must still tell the labels."""
    scenes = SceneStreets("train", 4, 64, tmp_path)
    scenes.images = np.repeat((scenes.labels * 13)[..., None], 3, axis=-1).astype(np.uint8)
    config = StreetConfig(size=(64, 64), crop=(48, 40), scale=(0.6, 1.4))
    views = TrainingStreets(scenes, config, seed=3, darkened=scenes)
    for position in [(epoch, i) for epoch in range(3) for i in range(4)]:
        day, night, labels = views[position]
        assert day.shape == (3, 48, 40) and labels.shape == (48, 40) and labels.dtype == torch.int64
        assert torch.equal(day, night)
        told = (day[0] / 13).round().long()
        told[labels == VOID] = VOID
        # Bilinear zoom mixes colours where classes meet, and at the image's own edge.
        assert (told == labels).float().mean() > 0.7
        assert not day[:, labels == VOID].float().mean() > 0.3 * 255
        assert torch.equal(views[position].label, labels)
    assert not torch.equal(views[0, 0].day, views[1, 0].day)
    # Without zoom nothing is mixed: crop and flip must be the same to the last pixel.
    views = TrainingStreets(scenes, StreetConfig(size=(64, 64), crop=(48, 40), scale=(1.0, 1.0)), seed=3)
    for position in [(epoch, i) for epoch in range(3) for i in range(4)]:
        day, _, labels = views[position]
        assert torch.equal((day[0] / 13).round().long(), labels)
    config = StreetConfig(size=(64, 64), crop=(64, 64), scale=(1.0, 1.0))
    turned = [TrainingStreets(scenes, config, seed=3)[epoch, 0].label for epoch in range(8)]
    never = [TrainingStreets(scenes, config, seed=3, flip=False)[epoch, 0].label for epoch in range(8)]
    assert all(torch.equal(labels, never[0]) for labels in never)
    assert {bool(torch.equal(labels, never[0])) for labels in turned} == {True, False}
    assert all(torch.equal(labels, never[0]) or torch.equal(labels.flip(-1), never[0]) for labels in turned)


def test_a_turned_picture_keeps_to_its_labels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(np.repeat(np.arange(16, dtype=np.uint8), 192).reshape(16, 64, 3)).save(
        tmp_path / "a.png", exif=exif
    )
    Image.fromarray(np.full((16, 64), 7, np.uint8)).save(tmp_path / "b.png")
    files = StreetFiles("a", tmp_path, [StreetFile(tmp_path / "a.png", tmp_path / "b.png")], is_night=False)
    assert files.load(0).image[0, :, 0].tolist() == list(range(16))


def test_val_and_test_of_one_folder_are_both_opened_and_too_few_images_told_of(streets, tmp_path, caplog):
    for name in ("Dark_Zurich_val_anon", "Dark_Zurich_test_anon_withoutGt"):
        shutil.copytree(streets / name, tmp_path / "both", dirs_exist_ok=True)
    val, test = open_nights(tmp_path / "both", cache=tmp_path)
    assert (val.title, test.title) == ("both, Dark Zurich, val", "both, Dark Zurich, test")
    assert val.load(0).labels is not None and test.load(0).labels is None
    assert "both, Dark Zurich, test holds 2 images; Dark Zurich, test as published has 151" in caplog.text


def test_day_images_beside_nights_are_passed_over_and_told_of(streets, tmp_path, caplog):
    for name in ("Cityscapes", "NighttimeDrivingTest"):
        shutil.copytree(streets / name, tmp_path / "both", dirs_exist_ok=True)
    [images] = open_nights(tmp_path / "both", cache=tmp_path)
    assert "test/night" in images.name(0)
    assert "leftImg8bit/val is passed over for leftImg8bit/test/night" in caplog.text


def test_published_nights_are_measured_as_unpacked(segmenter, tmp_path):
    nights = [publish_night(tmp_path, name) for name in PUBLISHED]
    flags = ("--checkpoint", segmenter, "--night", *nights, *SIZE, "--quick", "--output", tmp_path / "out")
    found = start("test", *flags)["checkpoint"]
    assert set(found) == set(PUBLISHED)
    for name, score in found.items():  # two images of val; train ids, label ids and both archives tell the same
        assert torch.equal(score.confusion, found["ACDC"].confusion), name
        truth = score.confusion.sum(dim=1)
        assert truth[[0, 10, VOID]].tolist() == [2 * rows * 48 for rows in (12, 16, 4)] and truth.sum() == 2 * 32 * 48
    report = (tmp_path / "out/results.md").read_text()
    assert f"labels of NightCity: {tmp_path / 'NightCity/NightCity-label/label/val'}" in report


def test_labels_that_are_linked_in_are_told_by_where_they_lie(streets, segmenter, tmp_path):
    night = shutil.copytree(streets / "NighttimeDrivingTest", tmp_path / "NighttimeDrivingTest")
    labels = night / "gtCoarse_daytime_trainvaltest/test/night"
    shutil.move(labels, tmp_path / "corrected")
    labels.symlink_to(tmp_path / "corrected")
    start("test", "--checkpoint", segmenter, "--night", night, *SIZE, "--output", tmp_path / "out")
    report = (tmp_path / "out/results.md").read_text()
    assert f"labels of NighttimeDrivingTest: {tmp_path / 'corrected'}\n" in report


def test_images_without_labels_alone_give_the_zip_and_no_table(streets, segmenter, tmp_path):
    night = streets / "Dark_Zurich_test_anon_withoutGt"
    assert start("test", "--checkpoint", segmenter, "--night", night, *SIZE, "--output", tmp_path) == {"checkpoint": {}}
    report = (tmp_path / "results.md").read_text()
    assert f"server takes {tmp_path / 'Dark_Zurich_test_anon_withoutGt-submission.zip'}" in report and "|" not in report


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_nights_are_no_day_data(name, tmp_path):
    root = publish_night(tmp_path, name, ("train",))
    for split in ("train", "val"):
        with pytest.raises(UsageError, match="a night data set; zero-shot"):
            open_streets(str(root), split, CONFIG, cache=tmp_path)
    with pytest.raises(UsageError, match=r"NightCity \(val, never train\)"):
        open_nights(root)


HALF_UNPACKED = {
    "no labels": (
        lambda r: shutil.rmtree(r / "gt"),
        "no folder .*gt/night/val; expected .*_gt_labelIds.png, found rgb",
    ),
    "one label less": (lambda r: next(r.glob("gt/*/val/*/*")).unlink(), "holds 1 images without labels, missing: gt"),
    "one image less": (lambda r: next(r.glob("rgb_anon/*/val/*/*")).unlink(), "holds 1 labels without an image"),
    "no images": (lambda r: [file.unlink() for file in r.glob("rgb_anon/*/val/*/*")], "no images of ACDC"),
}


@pytest.mark.parametrize("case", HALF_UNPACKED)
def test_a_half_unpacked_night_is_refused(case, tmp_path):
    spoil, message = HALF_UNPACKED[case]
    root = publish_night(tmp_path, "ACDC")
    spoil(root)
    with pytest.raises(UsageError, match=message):
        open_nights(root, cache=tmp_path)


def test_label_ids_under_the_name_of_train_ids_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 23, np.uint8)).save(tmp_path / "a_trainIds.png")
    with pytest.raises(ValueError, match="holds the ids 23; expected train ids of Cityscapes, 0 to 18 and 255"):
        read_labels(tmp_path / "a_trainIds.png")


def test_whole_images_are_not_augmented(streets, tmp_path):
    images = open_streets(str(streets / "Cityscapes"), "val", CONFIG, cache=tmp_path)
    street = WholeStreets(images, (32, 48), full_labels=True)[1]
    assert street.image.shape == (3, 32, 48) and street.labels.shape == (48, 64) and street.position == 1


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(UsageError, match="--images.crop 64 64: expected two numbers, 16 or more and at most 32 64"):
        StreetConfig(size=(32, 64), crop=(64, 64))


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def test_photometry_changes_views_apart_and_cuts_out_together():
    torch.manual_seed(0)
    day, night = torch.rand(4, 3, 40, 60), torch.rand(4, 3, 40, 60) * 0.2
    labels = torch.randint(0, 19, (4, 40, 60))
    only_cut = PhotometryConfig(blur=0, cutout=1, jitter=0)
    (changed_day, changed_night), changed_labels = change_views([day, night], labels, only_cut, draws())
    cut = changed_labels == VOID
    assert all(0.02 * 0.9 < share < 0.4 * 1.1 for share in cut.float().mean(dim=(1, 2)).tolist())
    everywhere = cut[:, None].expand_as(day)
    assert torch.equal(changed_day[everywhere], changed_night[everywhere])
    assert torch.equal(changed_day[~everywhere], day[~everywhere])
    assert torch.equal(changed_night[~everywhere], night[~everywhere])
    assert torch.equal(changed_labels[~cut], labels[~cut])
    only_blur = PhotometryConfig(blur=1, cutout=0, jitter=0)
    (blurred, other), same = change_views([day, day], labels, only_blur, draws())
    assert torch.equal(same, labels) and not torch.equal(blurred, other)
    assert (blurred.std(dim=(2, 3)) <= day.std(dim=(2, 3)) + 1e-6).all()
    none = PhotometryConfig(blur=0, cutout=0, jitter=0)
    (unchanged,), _ = change_views([day], labels, none, draws())
    assert torch.equal(unchanged, day) and unchanged is not day
    again, first = (change_views([day, night], labels, PhotometryConfig(), draws(7))[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))
    assert all(view.min() >= 0 and view.max() <= 1 for view in first)


def test_scenes_have_a_class_for_every_pixel_of_the_same_pictures(tmp_path):
    images, labels = render_segmented("day", 8, 48, 5, cache_dir=tmp_path)
    assert np.array_equal(images, render_labelled("day", 8, 48, 5)[0])
    assert labels.shape == (8, 48, 48) and labels.dtype == np.uint8 and labels.max() < VOID
    assert {0, 2, 10} <= set(np.unique(labels))  # road, building, sky
    night, same = render_segmented("night", 8, 48, 5)
    assert np.array_equal(labels, same) and night.mean() < images.mean() / 2
    again = render_segmented("day", 8, 48, 5, cache_dir=tmp_path)
    assert np.array_equal(again[0], images) and np.array_equal(again[1], labels)
    assert render_labelled("day", 8, 48, 5, cache_dir=tmp_path)[1].shape == (8,)  # a cache of its own


def test_pictures_show_every_column(tmp_path):
    scenes = SceneStreets("val", 2, 32, tmp_path)
    streets = [scenes.load(index) for index in range(2)]
    kept = tuple((street, torch.full((16, 16), VOID)) for street in streets)
    draw_predictions(scenes, {"$a_b$": StreetScore(torch.eye(20), kept)}, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > picture.height


def test_label_files_may_have_a_palette(tmp_path):
    image = Image.fromarray(np.full((4, 4), 7, np.uint8)).convert("P")
    image.putdata([7] * 16)
    image.save(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png").unique().tolist() == [0]
