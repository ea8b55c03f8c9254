"""Take a trained network home: one file that works without this project.

python -m minmax.export --checkpoint runs/classification/adapt/last-epoch.pt --output model.onnx

- `.onnx` (ONNX Runtime and others) and `.pt2` (torch.export.load) hold the whole computation, normalisation first:
  RGB in [0, 1] goes in, in batches of any size.
- `.safetensors` and `.pth` hold the weights under the names of torchvision and timm, which load them strictly, and
  what goes with them: classes, mean, standard deviation, feature layers, the config of the training.

The file is compared with the network before it appears.
"""

import importlib
import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from minmax.features import freeze, one_line
from minmax.runtime.checkpoints import load_checkpoint, write_atomically
from minmax.runtime.config import REPOSITORY, SHIPPED_DARKENERS, require, run_script
from minmax.runtime.errors import RunError, UsageError

log = logging.getLogger(__name__)

GRAPHS = (".onnx", ".pt2")
WEIGHTS = (".safetensors", ".pth")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Of the largest value that the network gives, or of 1 where that is smaller."""

_ONNX_OPERATORS = 18  # the first set that resizes as torch does
_TRIED = (2, 160, 192)  # images, height and width by which a graph of any size is made ...
_OTHERS = ((1, 160, 192), (3, 161, 227))  # ... and those by which it is checked


DARKENER = "similarity-minmax/darkener"
SOURCES = {
    "similarity-minmax/classifier": ("classification", "classifier", "load_classifier", "scores"),
    "similarity-minmax/segmenter": ("segmentation", "segmenter", "load_segmenter", "scores"),
    "similarity-minmax/place-network": (
        "visual-place-recognition",
        "place_checkpoints",
        "load_place_network",
        "descriptors",
    ),
    "similarity-minmax/recogniser": ("low-light-action-recognition", "recogniser", "load_recogniser", "scores"),
    DARKENER: ("", "darkening.darkener_files", "load_darkener", "night"),
}
"""By the `format` of a checkpoint the task's folder, the module and its loader by name, as nothing here imports a task,
and what the network gives."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write a network, or a darkener, as a file that works without this project."""

    checkpoint: Path
    """last-epoch.pt or best.pt of any training of this project, or a darkener that ships: `night-to-look-at` or
    `starting-point`."""
    output: Path
    """The file: .onnx or .pt2 for the whole computation, .safetensors or .pth for the weights."""
    size: tuple[int, int] | None = None
    """Height and width that an .onnx or .pt2 takes. By default classifiers take the images that they were trained on,
    recognisers the clips; all others take any size."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        endings = (*GRAPHS, *WEIGHTS)
        require(self.output.suffix in endings, "--output", self.output, f"a file that ends in {', '.join(endings)}")
        if self.size is not None:
            require(min(self.size) >= 1, "--size", self.size, "height and width of 1 or more")
            require(self.output.suffix in GRAPHS, "--size", self.size, "it only for .onnx and .pt2")
        same = self.output.exists() and self.checkpoint.exists() and self.output.samefile(self.checkpoint)
        require(not same, "--output", self.output, "another file than the checkpoint")


class Network(NamedTuple):
    """What is exported."""

    graph: nn.Module
    """Images, and for a darkener exposures, to the output."""
    model: nn.Module
    """Whose weights, under its own names, go into a file of weights."""
    shape: tuple[int | None, ...]
    """Of one image or clip; None is any height, or any width."""
    output: str
    about: dict[str, Any]
    """What goes with the weights, in plain values."""

    def inputs(self, count: int, height: int, width: int, seed: int) -> dict[str, Tensor]:
        """Random images of a size, or of that of the network where it takes no other."""
        generator = torch.Generator().manual_seed(seed)
        free = [size for size, own in zip((height, width), self.shape[-2:], strict=True) if own is None]
        shape = [size for size in self.shape if size is not None] + free
        found = {"images": torch.rand(count, *shape, generator=generator)}
        if self.output == "night":
            found["exposure"] = torch.rand(count, 1, 1, 1, generator=generator) * 0.4
        return found

    def axes(self, batch: Any, height: Any, width: Any) -> dict[str, dict[int, Any]]:
        """What the axes of each input are called that may have any length."""
        last = len(self.shape)
        images = {0: batch} | ({last - 1: height, last: width} if None in self.shape else {})
        return {"images": images} | ({"exposure": {0: batch}} if self.output == "night" else {})


def main(config: Config) -> None:
    """Write the file."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if config.output.suffix == ".onnx" and missing:
        raise UsageError(
            f"an .onnx file needs {', '.join(missing)}; install with: python -m pip install {' '.join(ONNX_PACKAGES)}"
        )
    network = _network(config)
    said = ""

    def write_and_check(file: Path) -> None:
        nonlocal said
        said = (_write_graph if config.output.suffix in GRAPHS else _write_weights)(config, network, file)

    write_atomically(config.output, write_and_check)
    log.info("%s: %s", config.output, said)


def _network(config: Config) -> Network:
    ships = str(config.checkpoint) in SHIPPED_DARKENERS
    payload: dict[str, Any] = {"format": DARKENER} if ships else load_checkpoint(config.checkpoint)
    kind = str(payload.get("format") or "")
    if kind not in SOURCES:
        found = f"of the kind {kind}" if kind else f"with {', '.join(map(str, list(payload)[:3])) or 'nothing'}"
        raise UsageError(
            f"--checkpoint {config.checkpoint}: expected best.pt of a training of this project; this is a file {found}"
        )
    folder, name, loader, output = SOURCES[kind]
    module = _imported(name, folder, config.checkpoint)
    loaded = getattr(module, loader)(config.checkpoint)
    trained = payload.get("config") or {}
    about: dict[str, Any] = {"kind": kind, "config": trained, "output": output}
    if kind == DARKENER:
        settings, model = loaded.settings, loaded
        graph = importlib.import_module("darkening.darkener").DarkenerGraph(loaded)
        about["settings"] = module.plain_settings(loaded)
        if settings.view == "camera":
            about["output"] += ", before the camera's noise and its rounding to 8 bits"
    else:
        graph, settings = loaded
        model = graph.model
        nameless = config.output.suffix in WEIGHTS and getattr(settings, "normalization", "") == "ciconv"
        expected = ".onnx or .pt2, as torchvision and timm have no colour invariant, with which this network begins"
        require(not nameless, "--output", config.output, expected)
        normalization = dict(graph.normalization.named_buffers())
        about |= {key: normalization[key].flatten().tolist() for key in ("mean", "std")}
        about |= {"layers": list(graph.layers), "settings": asdict(settings)}
        if hasattr(settings, "classes"):
            about["classes"] = settings.classes
        elif hasattr(settings, "outputs"):
            about["classes"] = [*module.CLASSES, "void"][: settings.outputs]
    shape: tuple[int | None, ...] = ()
    if config.output.suffix in GRAPHS:
        freeze(graph.float())
        shape = _shape(config, name, settings, trained, graph)
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        about["input"] = f"images: float32 RGB in [0, 1], (any, {sizes})"
        if kind == DARKENER:
            about["input"] += "; exposure: mean intensities of the nights, (any, 1, 1, 1)"
    return Network(graph, model, shape, output, json.loads(json.dumps(about, default=str)))


def _imported(name: str, task: str, checkpoint: Path) -> Any:
    """A module by name; where a task's cannot be imported, all is done in a process that can, and this one ends."""
    file = REPOSITORY / task / f"{name}.py"
    spec = importlib.util.find_spec(name)
    if not task or (spec and spec.origin and file.exists() and file.samefile(spec.origin)):
        return importlib.import_module(name)
    if not file.is_file():
        raise UsageError(f"{checkpoint} belongs to {task}; start this command from a checkout of the whole project")
    paths = [str(file.parent), str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: a classifier.py in the folder that the user happens to be in is not the task's.
    command = [sys.executable, "-P", "-m", "minmax.export", *sys.argv[1:]]
    sys.exit(subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, check=False).returncode)


def _shape(
    config: Config, module: str, settings: Any, trained: Mapping[str, Any], graph: nn.Module
) -> tuple[int | None, ...]:
    """What one image or clip must measure; None is anything.

    Raises:
        UsageError: when a size must be given.
    """
    height, width = config.size or (None, None)
    frames: tuple[int, ...] = ()
    needed = ""
    if module in ("classifier", "recogniser"):
        views = trained.get("images") or trained.get("clips") or {}
        side = getattr(settings, "image_size", None) or views.get("size")
        height, width = height or side, width or side
        frames = (views.get("length", 16),) if module == "recogniser" else ()
        needed = " does not say for images of what size it was trained"
    elif getattr(settings, "view", "") == "scene":
        needed = ": a darkener of view scene is exported for images of one size"
    # Windows that depend on the size keep torch.export busy for hours.
    elif names := [type(m).__name__ for m in graph.modules() if "attention" in type(m).__name__.lower()]:
        needed = f": a network with {names[0]} is exported for images of one size"
    if needed and height is None:
        raise UsageError(f"{config.checkpoint}{needed}; add --size HEIGHT WIDTH")
    return (3, *frames, height, width)


def _write_weights(config: Config, network: Network, file: Path) -> str:
    # A tensor under two names is written twice: safetensors knows no other way, and both names are asked for.
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in network.model.state_dict().items()}
    if config.output.suffix == ".safetensors":
        file.write_bytes(safetensors.torch.save(weights, _texts(network)))
        found = safetensors.torch.load(file.read_bytes())
    else:
        torch.save({"state_dict": weights, **network.about}, file)
        found = load_checkpoint(file)["state_dict"]
    if weights.keys() != found.keys() or not all(torch.equal(weights[name], found[name]) for name in weights):
        raise RunError("the file was read back with other tensors; it was not kept")
    return f"{len(weights)} tensors of {type(network.model).__name__}, read back equal"


def _texts(network: Network) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in network.about.items()}


def _write_graph(config: Config, network: Network, file: Path) -> str:
    suffix = config.output.suffix
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable()  # exporters speak to their own developers
            content = _graph(network, suffix)
    except Exception as error:  # noqa: BLE001  (what exporters raise has no end)
        hint = "" if None not in network.shape else "; --size HEIGHT WIDTH may help"
        raise RunError(f"{config.checkpoint} cannot be exported as {suffix}: {one_line(error)}{hint}") from error
    finally:
        logging.disable(logging.NOTSET)
    file.write_bytes(content)
    return compare(network, lambda: _opened(file, suffix))


def _graph(network: Network, suffix: str) -> bytes:
    example = tuple(network.inputs(*_TRIED, seed=0).values())
    axes = network.axes(*[torch.export.Dim.DYNAMIC] * 3)
    program = torch.export.export(network.graph, example, dynamic_shapes=axes, strict=False)
    if suffix == ".pt2":
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={"about.json": json.dumps(network.about)})
        return content.getvalue()
    exported = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        opset_version=_ONNX_OPERATORS,
        output_names=[network.output],
        dynamic_shapes=network.axes("batch", "height", "width"),
    )
    assert exported is not None
    exported.model.metadata_props.update(_texts(network))
    graph: bytes = exported.model_proto.SerializeToString()  # raises where it is larger than one file may be
    return graph


Run = Callable[[Mapping[str, Tensor]], Tensor]


def _opened(file: Path, suffix: str) -> Run:
    """A graph in a file as a function."""
    if suffix == ".pt2":
        module = torch.export.load(io.BytesIO(file.read_bytes())).module()
        return lambda inputs: module(*inputs.values())
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {name: x.numpy() for name, x in inputs.items()})[0])


@torch.no_grad()
def compare(network: Network, open_graph: Callable[[], Run]) -> str:
    """Compare a graph with its network on random images, of other batches than it was made by.

    Raises:
        RunError: when the graph does not run, or differs.
    """
    tried = [network.inputs(*sizes, seed=seed) for seed, sizes in enumerate(_OTHERS, start=1)]
    shown = " and ".join(" x ".join(map(str, inputs["images"].shape)) for inputs in tried)
    try:
        run = open_graph()
        found = [run(inputs) for inputs in tried]
    except Exception as error:  # noqa: BLE001  (whatever the runtime raises)
        raise RunError(f"the file does not run on images {shown}: {one_line(error)}; it was not kept") from error
    # Under no_grad a learned camera rounds to 8 bits, which its graph leaves out.
    with torch.enable_grad():
        expected = [network.graph(*inputs.values()).detach() for inputs in tried]
    differences = [_difference(*both) for both in zip(found, expected, strict=True)]
    if not all(difference <= TOLERANCE for difference in differences):  # nan is not
        raise RunError(
            f"the file differs from the network by {' and '.join(f'{difference:.1e}' for difference in differences)} "
            f"of the largest value on images {shown}, more than {TOLERANCE:.0e}; it was not kept"
        )
    about = f"{network.about['input']}; output: {network.about['output']}"
    return f"{about}; differs from the network by {max(differences):.1e} at most on random {shown}"


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


if __name__ == "__main__":
    run_script(Config, main, __doc__)
