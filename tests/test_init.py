"""Fine-tuning from the weights in a local file: --init of the train_day.py of all tasks."""

from urllib.error import URLError

import action_scripts as action
import classification_scripts as classification
import place_scripts as places
import pytest
import segmentation_scripts as segmentation
import timm
import torch
import torchvision
from classification_scripts import common, start
from classifier import ClassifierSettings, build_classifier
from place_network import build_place_network, settings_for
from recogniser import RecogniserSettings, build_recogniser
from safetensors.torch import save_file
from segmenter import SegmenterSettings, build_segmenter

from minmax.pretrained import load_start
from minmax.runtime.errors import UsageError

SMALL = "timm/test_efficientnet"


def published(model="resnet18", classes=1000):
    """A state_dict with every tensor other than a new network's."""
    torch.manual_seed(7)
    name = model.removeprefix("timm/")
    network = timm.create_model(name, num_classes=classes) if name != model else torchvision.models.get_model(name)
    return {
        n: tensor if tensor.dtype == torch.int64 else tensor + 0.01 * torch.rand_like(tensor)
        for n, tensor in network.state_dict().items()
    }


@pytest.mark.parametrize(("model", "last"), [("resnet18", "fc."), (SMALL, "classifier.")])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_all_but_the_last_layer_come_from_the_file(model, last, suffix, tmp_path):
    file, weights = tmp_path / f"weights.{suffix}", published(model)
    # Files from before BatchNorm counted its batches lack the counters.
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    if suffix == "pth":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, file)
    else:
        save_file(weights, file)
    network = build_classifier(ClassifierSettings(model, ("a", "b", "c")), init=file)
    for name, tensor in network.model.state_dict().items():
        if name.startswith(last):
            assert tensor.shape[0] == 3 and tensor.abs().max() < 0.01
        elif name.endswith("num_batches_tracked"):
            assert tensor == 0
        else:
            assert torch.equal(tensor, weights[name]), name


def test_a_last_layer_comes_from_the_file_if_it_is_there_and_fits(tmp_path):
    file, weights = tmp_path / "weights.pth", published(SMALL, classes=3)
    for there in (weights, without(weights, "classifier.weight")):
        torch.save(there, file)
        found = build_classifier(ClassifierSettings(SMALL, ("a", "b", "c")), init=file).model.state_dict()
        assert torch.equal(found["conv_stem.weight"], weights["conv_stem.weight"])
        is_new = not torch.equal(found["classifier.weight"], weights["classifier.weight"])
        assert is_new == (there is not weights)


def without(weights, name):
    return {other: tensor for other, tensor in weights.items() if other != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: without(w, "layer4.1.conv2.weight"), r"1 missing \(layer4.1.conv2.weight\)"),
        (lambda w: {"words": "none"}, "holds no weights that can be recognised"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, message, data, tmp_path):
    torch.save(change(published()), tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=message) as caught:
        start("train_day", *common(data, tmp_path / "runs"), "--init", tmp_path / "weights.pth")
    assert "weights.pth" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "runs" / "classification").exists()


def test_second_predictions_of_training_are_left_out():
    torch.manual_seed(7)
    whole = torchvision.models.googlenet(aux_logits=True, init_weights=False).state_dict()
    assert any(name.startswith("aux1.") for name in whole)
    network = torchvision.models.googlenet(num_classes=3, aux_logits=False, init_weights=False)
    load_start(network, whole, "weights.pth")
    assert torch.equal(network.conv1.conv.weight, whole["conv1.conv.weight"])


def test_a_classifier_of_this_project_is_a_start_for_other_classes(checkpoint):
    other = build_classifier(ClassifierSettings("resnet18", ("a", "b", "c")), init=checkpoint)
    trained, fresh = torch.load(checkpoint, weights_only=True)["network"], other.model.state_dict()
    assert torch.equal(fresh["layer1.0.conv1.weight"], trained["layer1.0.conv1.weight"])


# --- the other tasks: trunks under the names of the whole classifier


def same_tensors(body, weights):
    """Whether each of a module's tensors is one of others, by whatever name."""
    found = [tensor for tensor in weights.values() if tensor.dtype != torch.int64]
    own = [tensor for tensor in body.state_dict().values() if tensor.dtype != torch.int64]
    return len(own) > 20 and all(any(torch.equal(tensor, other) for other in found) for tensor in own)


@pytest.mark.parametrize("model", ["resnet18", SMALL])
def test_trunks_of_segmentation_and_retrieval_come_from_a_classifier(model, tmp_path):
    file, weights = tmp_path / "weights.pth", published(model)
    torch.save(weights, file)
    segmenter = build_segmenter(SegmenterSettings(f"refinenet_{model}", width=8), init=file)
    assert same_tensors(segmenter.model.backbone, weights)
    places = build_place_network(settings_for(model), init=file)
    assert same_tensors(places.model.features, weights)
    torch.save(without(weights, list(weights)[0]), file)
    for build in (
        lambda: build_segmenter(SegmenterSettings(f"refinenet_{model}", width=8), init=file),
        lambda: build_place_network(settings_for(model), init=file),
    ):
        with pytest.raises(UsageError, match=r"weights.pth does not fit \w+: tensors 1 missing"):
            build()


def test_an_i3d_starts_from_images_spread_over_time_or_from_clips(tmp_path):
    file, weights = tmp_path / "weights.pth", published()
    torch.save(weights, file)
    spread = build_recogniser(RecogniserSettings("i3d_resnet18", ("a", "b")), init=file)
    assert torch.allclose(spread.model.conv1.weight.sum(dim=2), weights["conv1.weight"], atol=1e-6)
    with pytest.raises(UsageError, match=r"weights.pth: these weights are for --width 64 \(conv1.weight"):
        build_recogniser(RecogniserSettings("i3d_resnet18", ("a", "b"), width=32), init=file)
    torch.save({f"module.{name}": tensor + 1 for name, tensor in spread.model.state_dict().items()}, file)
    clips = build_recogniser(RecogniserSettings("i3d_resnet18", ("a", "b", "c")), init=file)
    assert torch.equal(clips.model.conv1.weight, spread.model.conv1.weight + 1)
    assert clips.model.classifier.weight.shape == (3, 512)
    torch.save(without(spread.model.state_dict(), "layer4.1.conv2.weight"), file)
    with pytest.raises(UsageError, match=r"1 missing \(layer4.1.conv2.weight\)"):
        build_recogniser(RecogniserSettings("i3d_resnet18", ("a", "b")), init=file)


def test_a_network_of_torchvision_for_clips_starts_from_its_own(tmp_path):
    weights = torchvision.models.get_model("r3d_18").state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    network = build_recogniser(RecogniserSettings("r3d_18", ("a", "b", "c")), init=tmp_path / "weights.pth")
    assert same_tensors(network.model.layer4, weights)


TASKS = {
    "classification": (classification, ["--model", "resnet18"]),
    "segmentation": (segmentation, ["--images.size", 64, 64, "--model", "refinenet_resnet18", "--width", 8]),
    "visual-place-recognition": (places, ["--model", "resnet18"]),
    "low-light-action-recognition": (action, ["--model", "i3d_resnet18"]),
}


@pytest.mark.parametrize("task", TASKS)
def test_the_day_scripts_of_all_tasks_start_from_a_file(task, tmp_path):
    scripts, flags = TASKS[task]
    file = tmp_path / "weights.pth"
    torch.save(published(), file)
    given = ["--data", "scenes", "--quick", "--runs", tmp_path / "runs", *flags, "--init", file]
    best = scripts.start("train_day", *given)
    assert torch.load(best, weights_only=True)["config"]["init"] == str(file)
    with pytest.raises(UsageError, match="--pretrained contradict each other"):
        scripts.start("train_day", *given, "--pretrained")
    torch.save({name: tensor + 1 for name, tensor in published().items()}, file)
    with pytest.raises(UsageError, match="last.pt was made with .*--init"):
        scripts.start("train_day", *given, "--resume")


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: build_classifier(ClassifierSettings("resnet18", ("a",)), pretrained=True), "resnet18"),
        (lambda: build_classifier(ClassifierSettings(SMALL, ("a",)), pretrained=True), SMALL),
        (lambda: build_segmenter(SegmenterSettings("refinenet_resnet18"), pretrained=True), "resnet18"),
        (lambda: build_segmenter(SegmenterSettings("deeplabv3_resnet50"), pretrained=True), "resnet50"),
        (lambda: build_recogniser(RecogniserSettings("i3d_resnet18", ("a",)), pretrained=True), "i3d_resnet18"),
        (lambda: build_recogniser(RecogniserSettings("r3d_18", ("a",)), pretrained=True), "r3d_18"),
    ],
)
def test_weights_that_cannot_be_downloaded_are_told_in_a_line(build, name, monkeypatch, tmp_path):
    def offline(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=f"cannot download the .*weights of {name} .*connect once"):
        build()
