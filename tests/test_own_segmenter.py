"""A segmentation network of the user's own: code in a file that he types, weights in another."""

import pytest
import torch
import torch.nn.functional as F
import yaml
from script_modules import load_module
from segmentation_scripts import SCRIPTS, SIZE, common, start
from segmenter import OwnFlags, load_segmenter

from minmax.runtime.config import parse_flags
from minmax.runtime.errors import UsageError

CODE = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Shape:
    width: int = 8

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        width = Shape().width
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.deep = nn.Conv2d(width, width, 3, 2, 1)
        self.head = nn.Conv2d(width, 20, 1)

    def forward(self, images):
        prediction = self.head(self.deep(self.body(images)))
        return {"aux": prediction[:, :5], "out": prediction} if self.training else (prediction, None)

class Other(Net):
    def __init__(self):
        super().__init__()
        self.more = nn.Conv2d(1, 1, 1)

class Few(Net):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(8, 11, 1)

class FewInTraining(Net):
    def forward(self, images):
        return list(super().forward(images).values()) if self.training else super().forward(images)

def frozen():
    return Net().requires_grad_(False)

def raises():
    raise KeyError("no such thing")

def leaves():
    raise SystemExit(3)

def number():
    return 3
"""


@pytest.fixture
def own(tmp_path):
    """The file of a network, and the file of its weights."""
    code, weights = tmp_path / "mine.py", tmp_path / "mine.pth"
    code.write_text(CODE)
    torch.manual_seed(0)
    network = load_module("mine", code).Net()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in network.state_dict().items()}}, weights)
    return code, weights


def test_a_network_of_the_users_own_is_adapted_by_the_scripts(own, streets, tmp_path):
    code, weights = own
    mine, told = ("--model", f"{code}:Net"), ("--normalization", "half", "--layers", "body", "deep")
    flags = common(streets, tmp_path)
    darkener = start("train_darkener", *flags, *mine, *told, "--checkpoint", weights)
    adapted = start("train", *flags, *mine, *told, "--checkpoint", weights, "--darkener", darkener, "--night.cell", 8)
    payload, before = torch.load(adapted, weights_only=True), load_module("mine", code).Net()
    settings = payload["settings"]
    assert settings["model"] == "own:Net" and str(code) not in str(settings)
    assert (settings["outputs"], settings["normalization"], settings["layers"]) == (20, "half", ["body", "deep"])
    assert payload["network"].keys() == before.state_dict().keys()

    where = ("--data", streets / "Cityscapes", "--night", streets / "NighttimeDrivingTest", *SIZE)
    found = start("test", "--checkpoint", adapted, "--before", weights, *where, *mine, *told)
    assert not torch.equal(*(found[name]["Cityscapes, val"].confusion for name in ("before", "checkpoint")))
    with pytest.raises(
        UsageError, match=r"holds a network of your own, .*: add --model FILE.py:Net \(or load the entry"
    ):
        start("test", "--checkpoint", adapted, *where)
    with pytest.raises(UsageError, match="--normalization none: .* was made with half; drop this flag"):
        start("test", "--checkpoint", adapted, *where, *mine, "--normalization", "none")


def test_its_prediction_is_brought_to_the_size_of_the_images(own):
    code, weights = own
    network, settings = load_segmenter(weights, own=OwnFlags(model=f"{code}:Net"))
    assert settings.layers == ("deep",) and network.layers == ("deep",)
    plain = load_module("mine", code).Net().eval()
    plain.load_state_dict(network.model.state_dict())
    images = torch.rand(2, 3, 36, 64, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    small = plain((images - mean) / std)[0]
    assert small.shape == (2, 20, 9, 16)
    for training in (False, True):
        network.train(training)
        assert network(images).shape == (2, 20, 36, 64)
    fresh, _ = load_segmenter(weights, own=OwnFlags(model=f"{code}:Net"))
    expected = F.interpolate(small, (36, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(fresh.eval()(images), expected)


WRONG = {
    "mine.py": "expected FILE.py:FUNCTION of a network of your own, found a name without :FUNCTION",
    "gone.py:Net": "no file gone.py",
    "{code}:gone": "mine.py has no function or class gone",
    "{code}:raises": "this code raises KeyError in line [0-9]+: 'no such thing'",
    "{code}:leaves": "this code raises SystemExit in line [0-9]+: 3",
    "{code}:number": r"number\(\) gave int; expected an nn.Module",
    "{code}:frozen": r"frozen\(\) gave Net; expected an nn.Module that can be trained",
    "{code}:Few": r"\(2, 11, 32, 64\); expected logits \(N, 19 or 20, h, w\)",
    "{code}:FewInTraining": r"\(2, 5, 32, 64\); expected logits",
    "{code}:Other": "does not fit Other: tensors 2 missing",
    "{broken}:Net": "this code raises SyntaxError",
}


@pytest.mark.parametrize("typed", WRONG)
def test_what_is_no_such_network_is_refused(typed, own, streets, tmp_path):
    code, weights = own
    (tmp_path / "broken.py").write_text("def Net(:\n")
    flags = ("--model", typed.format(code=code, broken=tmp_path / "broken.py"), "--checkpoint", weights)
    with pytest.raises(UsageError, match=WRONG[typed]) as caught:
        start("train", *common(streets, tmp_path), *flags)
    assert "\n" not in str(caught.value)


def test_code_is_run_only_when_it_was_typed(own, tmp_path):
    _, weights = own
    code, recipe = tmp_path / "hostile.py", tmp_path / "recipe.yaml"
    code.write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')\n")
    recipe.write_text(yaml.safe_dump({"adapt": {"model": f"{code}:Net"}}))
    script = SCRIPTS["train"]
    flags = ["--data", "scenes", "--runs", str(tmp_path), "--checkpoint", str(weights), "--config", str(recipe)]
    with pytest.raises(UsageError, match="would run code; type it"):
        script.main(parse_flags(script.Config, None, flags))
    assert not (tmp_path / "was-run").exists()


def test_flags_that_nothing_needs_are_refused(own, segmenter, streets, tmp_path):
    flags = (*common(streets, tmp_path), "--checkpoint", segmenter)
    with pytest.raises(UsageError, match="tells its own architecture; drop this flag"):
        start("train", *flags, "--model", f"{own[0]}:Net")
    with pytest.raises(UsageError, match="--normalization and --layers are those of a network of your own"):
        start("train", *flags, "--layers", "deep")
