"""Exported networks: each format computes, or holds, what the checkpoint does, without this project."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import onnxruntime
import pytest
import torch
import torchvision
from classifier import ClassifierSettings, build_classifier, load_classifier, save_classifier
from place_checkpoints import load_place_network, save_place_network
from place_network import PlaceSettings, build_place_network
from recogniser import RecogniserSettings, build_recogniser, load_recogniser, save_recogniser
from safetensors import safe_open
from safetensors.torch import load_file
from segmenter import CLASSES, SegmenterSettings, build_segmenter, load_segmenter, save_segmenter

from darkening import Darkener, DarkenerSettings, load_darkener, save_darkener
from darkening.camera import CameraConfig
from darkening.darkener_files import SHIPPED
from minmax import export
from minmax.runtime.config import SHIPPED_DARKENERS, parse_flags
from minmax.runtime.errors import RunError, UsageError

REPOSITORY = Path(__file__).resolve().parents[1]
NETWORKS = {
    "classifier": (
        build_classifier,
        save_classifier,
        ClassifierSettings("timm/test_vit", ("bus", "car"), image_size=64),
    ),
    "segmenter": (build_segmenter, save_segmenter, SegmenterSettings("refinenet_resnet18", 20, 4)),
    "places": (build_place_network, save_place_network, PlaceSettings("timm/test_efficientnet", whitened=True)),
    "recogniser": (build_recogniser, save_recogniser, RecogniserSettings("i3d_resnet18", ("Run", "Sit"), width=2)),
}
LOADERS = {
    "classifier": load_classifier,
    "segmenter": load_segmenter,
    "places": load_place_network,
    "recogniser": load_recogniser,
}
TRAINED = {"recogniser": {"clips": {"size": 32, "length": 4}}}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A small network of each task, with weights that are nobody's, and darkeners of two views."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = {name: folder / f"{name}.pt" for name in (*NETWORKS, "pixels", "camera")}
    torch.manual_seed(0)
    for name, (build, save, settings) in NETWORKS.items():
        save(build(settings), settings, paths[name], TRAINED.get(name, {"seed": 3}))
    for view in ("pixels", "camera"):
        # In the middle of these cameras there is blur, too.
        camera = {"camera": CameraConfig(share=1.0, blurred=0.9)}
        settings = DarkenerSettings(view=view, **(camera if view == "camera" else {"width": 4}))
        darkener = Darkener(settings)
        for parameter in darkener.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        save_darkener(darkener, paths[view])
    return paths


def exported(checkpoint, output, *flags):
    flags = ["--checkpoint", checkpoint, "--output", output, *flags]
    export.main(parse_flags(export.Config, None, [str(flag) for flag in flags]))
    return output


def as_function(file):
    """An exported file as a function of tensors, and what it says of itself."""
    if file.suffix == ".pt2":
        extra = {"about.json": ""}
        module = torch.export.load(file, extra_files=extra).module()
        return lambda **inputs: module(*inputs.values()), json.loads(extra["about.json"])
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    about = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    about["axes"] = {entry.name: entry.shape for entry in session.get_inputs()}

    def run(**inputs):
        (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(found)

    return run, about


@pytest.mark.parametrize(
    ("name", "suffix", "axes", "shapes"),
    [
        ("classifier", ".onnx", ["batch", 3, 64, 64], [(1, 3, 64, 64), (4, 3, 64, 64)]),
        ("segmenter", ".onnx", ["batch", 3, "height", "width"], [(1, 3, 96, 64), (3, 3, 97, 131)]),
        ("places", ".onnx", ["batch", 3, "height", "width"], [(1, 3, 96, 64), (3, 3, 97, 131)]),
        ("recogniser", ".onnx", ["batch", 3, 4, 32, 32], [(1, 3, 4, 32, 32), (3, 3, 4, 32, 32)]),
        ("places", ".pt2", None, [(1, 3, 96, 64), (3, 3, 97, 131)]),
    ],
)
def test_a_graph_computes_what_the_network_does_normalisation_included(
    checkpoints, tmp_path, caplog, name, suffix, axes, shapes
):
    caplog.set_level("INFO")
    file = exported(checkpoints[name], tmp_path / "taken" / f"network{suffix}")
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert "differs from the network by" in caplog.text
    run, about = as_function(file)
    if axes:
        assert about["axes"] == {"images": axes}
    network, settings = LOADERS[name](checkpoints[name])
    assert about["settings"] == json.loads(json.dumps(dataclasses.asdict(settings)))
    assert about["config"] == TRAINED.get(name, {"seed": 3})
    for shape in shapes:
        images = torch.rand(shape)
        with torch.no_grad():
            torch.testing.assert_close(run(images=images), network.eval()(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("view", "suffix", "size"), [("pixels", ".onnx", ()), ("camera", ".onnx", (48, 40))])
def test_a_darkener_takes_exposures_beside_the_images(checkpoints, tmp_path, view, suffix, size):
    file = exported(checkpoints[view], tmp_path / f"night{suffix}", *(("--size", *size) if size else ()))
    run, about = as_function(file)
    assert about["axes"] == {
        "images": ["batch", 3, *(size or ("height", "width"))],
        "exposure": ["batch", 1, 1, 1],
    }
    assert about["output"].startswith("night") and ("before the camera's noise" in about["output"]) == (size != ())
    darkener = load_darkener(checkpoints[view])
    images, exposure = torch.rand(3, 3, 48, 40), torch.tensor([0.05, 0.1, 0.2]).view(3, 1, 1, 1)
    night = run(images=images, exposure=exposure)
    # Without noise `darken` still rounds as a camera does.
    rounding = 0.5 / 255 if view == "camera" else 0.0
    torch.testing.assert_close(night, darkener.darken(images, exposure), rtol=0, atol=rounding + 1e-5)
    assert night.amin() >= 0 and night.amax() <= 1


def test_the_shipped_darkener_is_exported_for_one_size(tmp_path):
    with pytest.raises(UsageError, match="view scene is exported for images of one size; add --size HEIGHT WIDTH"):
        exported("night-to-look-at", tmp_path / "night.pt2")
    run, _ = as_function(exported("night-to-look-at", tmp_path / "night.pt2", "--size", 48, 40))
    images, exposure = torch.rand(3, 3, 48, 40), torch.full((3, 1, 1, 1), 0.1)
    expected = load_darkener("night-to-look-at").darken(images, exposure)
    torch.testing.assert_close(run(images=images, exposure=exposure), expected, rtol=0, atol=1e-4)


PLAIN_TIMM = """
import json, sys, timm, torch
from safetensors import safe_open
assert not {"minmax", "classifier"} & set(sys.modules)
with safe_open("model.safetensors", "pt") as file:
    about = {name: json.loads(value) for name, value in file.metadata().items()}
name, size = about["settings"]["model"].removeprefix("timm/"), about["settings"]["image_size"]
model = timm.create_model(name, num_classes=len(about["classes"]), img_size=size, checkpoint_path="model.safetensors")
mean, std = (torch.tensor(about[key]).view(3, 1, 1) for key in ("mean", "std"))
images = torch.load("images.pt")
with torch.no_grad():
    torch.save({"scores": model.eval()((images - mean) / std), "classes": about["classes"]}, "found.pt")
"""


def test_plain_timm_loads_the_weights_and_predicts_the_same(checkpoints, tmp_path):
    exported(checkpoints["classifier"], tmp_path / "model.safetensors")
    images = torch.rand(3, 3, 64, 64)
    torch.save(images, tmp_path / "images.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", PLAIN_TIMM], check=True, cwd=tmp_path, env=environment)
    found = torch.load(tmp_path / "found.pt")
    network, settings = load_classifier(checkpoints["classifier"])
    with torch.no_grad():
        torch.testing.assert_close(found["scores"], network.eval()(images), rtol=0, atol=1e-6)
    assert found["classes"] == list(settings.classes)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        about = {name: json.loads(value) for name, value in file.metadata().items()}
    assert (about["layers"], about["config"]) == (list(network.layers), {"seed": 3})


def test_plain_torchvision_loads_the_weights(checkpoint, tmp_path):
    payload = torch.load(exported(checkpoint, tmp_path / "model.pth"), weights_only=True)
    model = torchvision.models.resnet18(num_classes=len(payload["classes"]))
    model.load_state_dict(payload["state_dict"])
    assert (payload["classes"], payload["layers"]) == (["bus", "car"], ["layer4"])
    assert payload["mean"] == pytest.approx([0.485, 0.456, 0.406])
    foreign, _ = load_classifier(tmp_path / "model.pth", foreign=lambda: ClassifierSettings("resnet18", ("bus", "car")))
    assert_same(foreign.model.state_dict(), load_classifier(checkpoint)[0].model.state_dict())


@pytest.mark.parametrize("name", ["segmenter", "places", "recogniser"])
def test_weights_keep_the_names_of_the_model(checkpoints, tmp_path, name):
    network, _ = LOADERS[name](checkpoints[name])
    assert_same(load_file(exported(checkpoints[name], tmp_path / "a.safetensors")), network.model.state_dict())
    payload = torch.load(exported(checkpoints[name], tmp_path / "a.pth"), weights_only=True)
    assert_same(payload["state_dict"], network.model.state_dict())
    assert payload.get("classes") == {"segmenter": [*CLASSES, "void"], "recogniser": ["Run", "Sit"]}.get(name)


def test_weights_of_a_darkener_are_read_as_those_that_ship(checkpoints, tmp_path):
    again = load_darkener(exported(checkpoints["pixels"], tmp_path / "night.safetensors"))
    before = load_darkener(checkpoints["pixels"])
    assert again.settings == before.settings
    assert_same(again.state_dict(), before.state_dict())


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "a.pt"], "--output .*a.pt: expected a file that ends in .onnx, .pt2, .safetensors, .pth"),
        (["--output", "a.pth", "--size", "64", "64"], "--size 64 64: expected it only for .onnx and .pt2"),
        (["--output", "a.pt2", "--size", "0", "64"], "--size 0 64: expected height and width of 1 or more"),
    ],
)
def test_wrong_flags_are_refused(checkpoints, flags, message):
    with pytest.raises(UsageError, match=message):
        parse_flags(export.Config, None, ["--checkpoint", str(checkpoints["classifier"]), *flags])


def test_the_checkpoint_is_not_overwritten(checkpoint, tmp_path):
    (file := tmp_path / "best.pth").write_bytes(checkpoint.read_bytes())
    with pytest.raises(UsageError, match=r"--output .*best.pth: expected another file than the checkpoint"):
        exported(file, file)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (
            {"format": "similarity-minmax/other"},
            "expected best.pt .*; this is a file of the kind similarity-minmax/other",
        ),
        ({"format": ["a list"]}, "expected best.pt .*; this is a file of the kind .'a list'."),
        ({"format": "similarity-minmax/classifier"}, "is not a checkpoint of this version"),
    ],
)
def test_other_files_are_refused(tmp_path, payload, message):
    torch.save(payload, tmp_path / "best.pt")
    with pytest.raises(UsageError, match=message) as caught:
        exported(tmp_path / "best.pt", tmp_path / "a.pth")
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_with_the_command_that_installs_it(checkpoints, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    expected = "needs onnxruntime; install with: python -m pip install onnx onnxscript onnxruntime"
    with pytest.raises(UsageError, match=expected):
        exported(checkpoints["classifier"], tmp_path / "a.onnx")


def test_a_size_must_be_known(checkpoint, tmp_path):
    with pytest.raises(UsageError, match="does not say for images of what size it was trained; add --size"):
        exported(checkpoint, tmp_path / "a.pt2")
    settings = PlaceSettings("timm/test_vit")
    save_place_network(build_place_network(settings), settings, tmp_path / "vit.pt", {})
    with pytest.raises(UsageError, match="vit.pt: a network with Attention is exported for .* one size; add --size"):
        exported(tmp_path / "vit.pt", tmp_path / "a.pt2")


def test_a_network_that_cannot_be_exported_is_an_error_of_one_line(tmp_path, monkeypatch, checkpoints):
    def fails(*_, **__):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(torch.export, "export", fails)
    with pytest.raises(RunError) as caught:
        exported(checkpoints["places"], tmp_path / "a.pt2")
    assert str(caught.value).endswith("as .pt2: first line second line; --size HEIGHT WIDTH may help")


@pytest.mark.parametrize("suffix", [".pt2", ".pth"])
def test_a_file_that_fails_the_check_does_not_appear(checkpoints, tmp_path, monkeypatch, suffix):
    (file := tmp_path / f"model{suffix}").write_text("the former one")
    save = torch.save
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    if suffix == ".pth":
        other = {"state_dict": {"head.bias": torch.zeros(2)}}
        monkeypatch.setattr(torch, "save", lambda payload, file: save(other, file))
    with pytest.raises(RunError, match="not kept"):
        exported(checkpoints["classifier"], file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name] and file.read_text() == "the former one"


@pytest.mark.parametrize("wrong", [torch.full((1, 2), torch.nan), torch.zeros(1, 3), torch.full((1, 2), 1e-3)])
def test_the_check_sees_what_is_wrong(wrong):
    network = export.Network(lambda images: torch.zeros(1, 2), torch.nn.Identity(), (3, 4, 4), "scores", {})
    with pytest.raises(RunError, match="differs from the network by"):
        export.compare(network, lambda: lambda inputs: wrong)
    with pytest.raises(RunError, match="the file does not run on images 1 x 3 x 4 x 4 .*; it was not kept"):
        export.compare(network, lambda: wrong.no_such_name)


def test_the_command_finds_the_task_from_any_folder(checkpoints, tmp_path):
    (tmp_path / "classifier.py").write_text("raise SystemExit('another classifier.py')")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def command(*flags):
        whole = [sys.executable, "-m", "minmax.export", "--checkpoint", str(checkpoints["classifier"]), *flags]
        return subprocess.run(whole, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)

    assert command("--output", "a.safetensors").returncode == 0
    assert_same(load_file(tmp_path / "a.safetensors"), torch.load(checkpoints["classifier"])["network"])
    failed = command("--output", "a.pt2", "--size", "1", "1")
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1 and failed.stderr.startswith("error: ")


def test_without_the_folders_of_the_tasks_it_says_so(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "REPOSITORY", tmp_path)
    with pytest.raises(UsageError, match="belongs to segmentation; start this command from a checkout"):
        exported(checkpoints["segmenter"], tmp_path / "a.pth")


def test_every_kind_of_checkpoint_has_its_loader():
    for kind, (folder, name, loader, _) in export.SOURCES.items():
        module = importlib.import_module(name)
        assert kind == module.CHECKPOINT_FORMAT and callable(getattr(module, loader))
        assert not folder or Path(module.__file__) == REPOSITORY / folder / f"{name}.py"
    assert set(SHIPPED_DARKENERS) == set(SHIPPED)


def test_developers_get_what_the_extra_has():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    assert set(extras["export"]) <= set(extras["dev"])
    assert {line.partition(">")[0] for line in extras["export"]} == set(export.ONNX_PACKAGES)
