"""Take a trained network home: one file that works without this project.

python -m minmax.export --checkpoint runs/classification/adapted/best.pt --output model.onnx

- `.onnx` (ONNX Runtime and others) and `.pt2` (torch.export.load) hold the whole computation, normalisation first:
  RGB in [0, 1] goes in, in batches of any size.
- `.safetensors` and `.pth` hold the weights under the names of torchvision and timm, which load them strictly, and
  what goes with them: classes, mean, standard deviation, feature layers, the config of the training.

The file is compared with the network before it appears.
"""

import importlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from minmax.features import FeatureModel, freeze, one_line
from minmax.runtime.checkpoints import load_checkpoint, write_atomically
from minmax.runtime.config import REPOSITORY, require, run_script
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
_STARTED_AGAIN = "MINMAX_EXPORT_STARTED_AGAIN"


DARKENER = "similarity-minmax/darkener"


class Source(NamedTuple):
    """Where the loader of one kind of checkpoint is, by name: nothing here imports a task."""

    folder: str
    """Of the task, whose modules import each other by name; empty for what is importable anyway."""
    module: str
    loader: str
    output: str
    """What the network gives."""


SOURCES = {
    "similarity-minmax/classifier": Source("classification", "classifier", "load_classifier", "scores"),
    "similarity-minmax/segmenter": Source("segmentation", "segmenter", "load_segmenter", "scores"),
    "similarity-minmax/place-network": Source(
        "visual-place-recognition", "place_checkpoints", "load_place_network", "descriptors"
    ),
    "similarity-minmax/recogniser": Source("low-light-action-recognition", "recogniser", "load_recogniser", "scores"),
    DARKENER: Source("", "darkening.darkener_files", "load_darkener", "night"),
}
"""By the `format` of the checkpoint."""
SHIPPED_DARKENERS = ("night-to-look-at", "starting-point")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write a network, or a darkener, as a file that works without this project."""

    checkpoint: Path
    """best.pt of any training of this project, or a darkener that ships: `night-to-look-at` or `starting-point`."""
    output: Path
    """The file: .onnx or .pt2 for the whole computation, .safetensors or .pth for the weights."""
    size: tuple[int, int] | None = None
    """Height and width that an .onnx or .pt2 takes. By default classifiers take the images that they were trained on,
    recognisers the clips; all others take any size."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and make paths absolute."""
        object.__setattr__(self, "output", self.output.expanduser().absolute())
        if not self.ships:
            object.__setattr__(self, "checkpoint", self.checkpoint.expanduser().absolute())
        endings = (*GRAPHS, *WEIGHTS)
        require(self.output.suffix in endings, "--output", self.output, f"a file that ends in {', '.join(endings)}")
        if self.size is not None:
            require(min(self.size) >= 1, "--size", self.size, "height and width of 1 or more")
            require(self.output.suffix in GRAPHS, "--size", self.size, "it only for .onnx and .pt2")
        same = self.output.exists() and self.checkpoint.exists() and self.output.samefile(self.checkpoint)
        require(not same, "--output", self.output, "another file than the checkpoint")

    @property
    def ships(self) -> bool:
        """Whether it is a darkener that ships with the package."""
        return str(self.checkpoint) in SHIPPED_DARKENERS


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

    @property
    def is_darkener(self) -> bool:
        """Whether exposures go in beside the images."""
        return self.output == "night"

    def inputs(self, count: int, height: int, width: int, seed: int) -> dict[str, Tensor]:
        """Random images of a size, or of that of the network where it takes no other."""
        generator = torch.Generator().manual_seed(seed)
        free = [size for size, own in zip((height, width), self.shape[-2:], strict=True) if own is None]
        shape = [size for size in self.shape if size is not None] + free
        found = {"images": torch.rand(count, *shape, generator=generator)}
        if self.is_darkener:
            found["exposure"] = torch.rand(count, 1, 1, 1, generator=generator) * 0.4
        return found


def main(config: Config) -> None:
    """Write the file."""
    if config.output.suffix == ".onnx":
        _require_onnx()
    payload = {"format": DARKENER} if config.ships else load_checkpoint(config.checkpoint)
    kind = str(payload.get("format") or "")
    if kind not in SOURCES:
        found = f"of the kind {kind}" if kind else f"with {', '.join(map(str, list(payload)[:3])) or 'nothing'}"
        raise UsageError(
            f"--checkpoint {config.checkpoint}: expected best.pt of a training of this project; this is a file {found}"
        )
    source = SOURCES[kind]
    if not _can_import(source):
        _start_again(config, source)
        return
    network = _network(config, payload, importlib.import_module(source.module), source)
    write, check = _format(config, network)
    difference = ""

    def write_and_check(file: Path) -> None:
        nonlocal difference
        write(file)
        difference = check(file)

    write_atomically(config.output, write_and_check)
    log.info("%s: %s", config.output, difference)


def _require_onnx() -> None:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"an .onnx file needs {', '.join(missing)}; install with: python -m pip install {' '.join(ONNX_PACKAGES)}"
        )


def _can_import(source: Source) -> bool:
    """Whether the loader's own module, and no other of its name, would be imported."""
    if not source.folder:
        return True
    spec = importlib.util.find_spec(source.module)
    file = REPOSITORY / source.folder / f"{source.module}.py"
    return spec is not None and spec.origin is not None and file.exists() and file.samefile(spec.origin)


def _start_again(config: Config, source: Source) -> None:
    """Do the same in a process that finds the modules of the task.

    Raises:
        UsageError: when the task's folder is not there.
    """
    folder = REPOSITORY / source.folder
    if os.environ.get(_STARTED_AGAIN) or not (folder / f"{source.module}.py").is_file():
        raise UsageError(
            f"{config.checkpoint} belongs to {source.folder}, and {folder} cannot be imported from; start this command "
            "from a checkout of the whole project"
        )
    size = () if config.size is None else ("--size", *map(str, config.size))
    flags = ("--checkpoint", str(config.checkpoint), "--output", str(config.output), *size)
    paths = [str(folder), str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), _STARTED_AGAIN: "1"}
    # -P: a classifier.py in the folder that the user happens to be in is not the task's.
    done = subprocess.run([sys.executable, "-P", "-m", "minmax.export", *flags], env=environment, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def _network(config: Config, payload: Mapping[str, Any], module: Any, source: Source) -> Network:
    loaded = getattr(module, source.loader)(config.checkpoint if source.folder else str(config.checkpoint))
    trained: Mapping[str, Any] = payload.get("config") or {}
    about: dict[str, Any] = {}
    if isinstance(loaded, tuple):
        network, settings = loaded
        assert isinstance(network, FeatureModel)
        graph, model = network, network.model
        mean, std = (network.normalization.get_buffer(name).flatten().tolist() for name in ("mean", "std"))
        about |= {"mean": mean, "std": std, "layers": list(network.layers)}
        if classes := _classes(settings, module):
            about["classes"] = classes
    else:
        settings = loaded.settings
        graph, model = importlib.import_module("darkening.darkener").DarkenerGraph(loaded), loaded
    plain = asdict(settings) if isinstance(loaded, tuple) else module.plain_settings(loaded)
    about |= {"kind": payload["format"], "settings": plain, "config": trained}
    shape: tuple[int | None, ...] = ()
    if config.output.suffix in GRAPHS:
        freeze(graph.float())
        shape = _shape(config, source, settings, trained, graph)
        about["input"] = _described(shape, source.output == "night")
        about["output"] = source.output
        if getattr(settings, "view", "") == "camera":
            about["output"] += ", before the camera's noise and its rounding to 8 bits"
    return Network(graph, model, shape, source.output, json.loads(json.dumps(about, default=str)))


def _classes(settings: Any, module: Any) -> list[str]:
    """The names of the outputs, as far as they have any."""
    if hasattr(settings, "classes"):
        return list(settings.classes)
    return [*module.CLASSES, "void"][: settings.outputs] if hasattr(settings, "outputs") else []


def _shape(
    config: Config, source: Source, settings: Any, trained: Mapping[str, Any], graph: nn.Module
) -> tuple[int | None, ...]:
    """What one image or clip must measure; None is anything.

    Raises:
        UsageError: when a size must be given.
    """
    height, width = config.size or (None, None)
    if source.module in ("classifier", "recogniser"):
        views = trained.get("images") or trained.get("clips") or {}
        side = getattr(settings, "image_size", None) or views.get("size")
        if config.size is None and not isinstance(side, int):
            raise UsageError(
                f"{config.checkpoint} does not say for images of what size it was trained; add --size HEIGHT WIDTH"
            )
        height, width = height or side, width or side
        frames = (views.get("length", 16),) if source.module == "recogniser" else ()
        return (3, *frames, height, width)
    if config.size is None and (reason := _one_size_only(settings, graph)):
        raise UsageError(f"{config.checkpoint}: {reason}; add --size HEIGHT WIDTH")
    return (3, height, width)


def _one_size_only(settings: Any, graph: nn.Module) -> str:
    """Why a graph cannot be made for images of any size, as far as that is known before it is tried."""
    if getattr(settings, "view", "") == "scene":
        return "a darkener of view scene is exported for images of one size"
    # Windows that depend on the size keep torch.export busy for hours.
    attention = next((type(m).__name__ for m in graph.modules() if "attention" in type(m).__name__.lower()), "")
    return f"a network with {attention} is exported for images of one size" if attention else ""


def _described(shape: tuple[int | None, ...], darkener: bool) -> str:
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    exposure = "; exposure: mean intensities of the nights, (any, 1, 1, 1)" if darkener else ""
    return f"images: float32 RGB in [0, 1], (any, {sizes}){exposure}"


Write = Callable[[Path], object]
Check = Callable[[Path], str]


def _format(config: Config, network: Network) -> tuple[Write, Check]:
    """How to write a file, and how to compare it with the network, which says so or raises a RunError."""
    suffix = config.output.suffix
    if suffix in WEIGHTS:
        # A tensor under two names is written twice: safetensors knows no other way, and both names are asked for.
        weights = {name: tensor.detach().clone().contiguous() for name, tensor in network.model.state_dict().items()}
        write, read = _safetensors(network, weights) if suffix == ".safetensors" else _pth(network, weights)
        return write, lambda file: _compared_weights(weights, read(file), network)
    try:
        with _quietly():
            program = _program(network)
            write, opened = _onnx(network, program) if suffix == ".onnx" else _pt2(network, program)
    except Exception as error:  # noqa: BLE001  (what exporters raise has no end)
        hint = "" if None not in network.shape else "; --size HEIGHT WIDTH may help"
        raise RunError(f"{config.checkpoint} cannot be exported as {suffix}: {one_line(error)}{hint}") from error
    return write, lambda file: _compared_outputs(network, opened, file)


@contextmanager
def _quietly() -> Iterator[None]:
    """Exporters speak to their own developers."""
    names = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in names:
                logging.getLogger(name).setLevel(logging.CRITICAL)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _safetensors(network: Network, weights: Mapping[str, Tensor]) -> tuple[Write, Callable[[Path], Mapping[str, Any]]]:
    texts = {name: json.dumps(value) for name, value in network.about.items()}

    def read(file: Path) -> Mapping[str, Any]:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a dict)

    return lambda file: file.write_bytes(safetensors.torch.save(dict(weights), texts)), read


def _pth(network: Network, weights: Mapping[str, Tensor]) -> tuple[Write, Callable[[Path], Mapping[str, Any]]]:
    payload = {"state_dict": dict(weights), **network.about}
    return lambda file: torch.save(payload, file), lambda file: load_checkpoint(file)["state_dict"]


def _compared_weights(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], network: Network) -> str:
    differing = [name for name in ours.keys() | theirs.keys() if not _equal(ours.get(name), theirs.get(name))]
    if differing:
        raise RunError(f"the file was read back with other tensors, such as {min(differing)}; it was not kept")
    return f"{len(ours)} tensors of {type(network.model).__name__}, read back equal"


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.dtype == other.dtype and torch.equal(one, other)


def _program(network: Network) -> torch.export.ExportedProgram:
    example = network.inputs(*_TRIED, seed=0)
    axes = _axes(network, *[torch.export.Dim.DYNAMIC] * 3)
    return torch.export.export(network.graph, tuple(example.values()), dynamic_shapes=axes, strict=False)


def _axes(network: Network, batch: Any, height: Any, width: Any) -> dict[str, dict[int, Any]]:
    """What the axes of each input are called that may have any length."""
    last = len(network.shape)
    images = {0: batch} | ({last - 1: height, last: width} if None in network.shape else {})
    return {"images": images} | ({"exposure": {0: batch}} if network.is_darkener else {})


Run = Callable[[Mapping[str, Tensor]], Tensor]


def _pt2(network: Network, program: torch.export.ExportedProgram) -> tuple[Write, Callable[[Path], Run]]:
    extra = {"about.json": json.dumps(network.about)}

    def write(file: Path) -> None:
        with file.open("wb") as stream:
            torch.export.save(program, stream, extra_files=extra)

    def opened(file: Path) -> Run:
        with file.open("rb") as stream:
            module = torch.export.load(stream).module()
        return lambda inputs: module(*inputs.values())

    return write, opened


def _onnx(network: Network, program: torch.export.ExportedProgram) -> tuple[Write, Callable[[Path], Run]]:
    import onnxruntime

    exported = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        opset_version=_ONNX_OPERATORS,
        output_names=[network.output],
        dynamic_shapes=_axes(network, "batch", "height", "width"),
    )
    assert exported is not None
    exported.model.metadata_props.update({name: json.dumps(value) for name, value in network.about.items()})
    content = exported.model_proto.SerializeToString()  # raises where the network is larger than one file may be

    def opened(file: Path) -> Run:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

        def run(inputs: Mapping[str, Tensor]) -> Tensor:
            (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
            return torch.from_numpy(found)

        return run

    return lambda file: file.write_bytes(content), opened


@torch.no_grad()
def _compared_outputs(network: Network, opened: Callable[[Path], Run], file: Path) -> str:
    """Compares on random images, of other batches than the file was made by.

    Raises:
        RunError: when the file does not run, or differs.
    """
    try:
        run = opened(file)
    except Exception as error:  # noqa: BLE001  (whatever the runtime raises)
        raise RunError(f"the file cannot be read back: {one_line(error)}; it was not kept") from error
    worst, shown = 0.0, []
    for seed, sizes in enumerate(_OTHERS):
        inputs = network.inputs(*sizes, seed=seed + 1)
        # Under no_grad a learned camera rounds to 8 bits, which its graph leaves out.
        with torch.enable_grad():
            expected = network.graph(*inputs.values())
        shown.append(" x ".join(map(str, inputs["images"].shape)))
        try:
            found = run(inputs)
        except Exception as error:  # noqa: BLE001  (whatever the runtime raises)
            raise RunError(
                f"the file does not run on images {shown[-1]}: {one_line(error)}; it was not kept"
            ) from error
        difference = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
        limit = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= limit:  # nor is nan
            raise RunError(
                f"the file differs from the network by {difference:.1e} on images {shown[-1]}, more than {limit:.1e}; "
                "it was not kept"
            )
        worst = max(worst, difference)
    about = f"{network.about['input']}; output: {network.about['output']}"
    return f"{about}; differs from the network by {worst:.1e} at most on random {' and '.join(shown)}"


if __name__ == "__main__":
    run_script(Config, main, __doc__)
