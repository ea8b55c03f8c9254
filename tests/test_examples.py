"""The examples run, in small; what they gain stands in their docstrings and takes minutes."""

import importlib
from pathlib import Path

import pytest
import timm
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize("name", ["classifier", "segmenter", "detector"])
def test_an_example_adapts_a_model(name, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module(f"adapt_your_{name}")
    found = example.main(count=32 if name != "detector" else 8, epochs=2, unseen_count=8)
    assert list(found) == ["before", "after"]
    assert all(0.0 <= share <= 1.0 for by_time in found.values() for share in by_time.values())
    assert all(list(by_time) == ["day", "night"] for by_time in found.values())


def test_every_example_is_run():
    assert {file.stem for file in EXAMPLES.glob("adapt_*.py")} == {
        f"adapt_your_{name}" for name in ("classifier", "segmenter", "detector")
    }


@pytest.mark.parametrize("page", ["README.md", "docs/own-model.md"])
def test_the_twenty_lines_of_python_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (EXAMPLES.parent / page).read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0].replace("resnet50", "test_resnet")
    torch.manual_seed(0)
    day = [(torch.rand(4, 3, 64, 64), torch.arange(4))]
    exec(code, {"day_images": [images for images, _ in day], "day_loader": day})  # noqa: S102  (our own page)
    saved = torch.load("night.pth", weights_only=True)
    assert saved.keys() == timm.create_model("test_resnet", num_classes=9).state_dict().keys()
