"""A whole model, and the layers whose outputs the method compares: one forward pass gives prediction and features.

    network = FeatureModel(torchvision.models.resnet50(), ["layer4"], InputNormalization.imagenet())
    prediction, [feature] = network.with_features(images)

The model is not cut, traced or renamed. Forward hooks on the named layers record what passes; they do nothing in any
other call of the model. So it works for what no tracer understands, and under DDP, DataParallel and autocast.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from threading import local
from types import CellType, FunctionType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)

IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IDENTITY_STATISTICS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

Layout = Literal["channels-first", "channels-last"]
"""Of a feature: `(N, C)` and `(N, C, ...)`, or `(N, ..., C)` as tokens and the maps of some transformers."""

# Of the forward pass that runs: threads, as those of DataParallel, whose replicas share their hooks, have each its own.
_RUNNING = local()


class InputNormalization(nn.Module):
    """First layer of a network: RGB images in [0, 1] to the statistics that the weights expect.

    Args:
        mean: per channel, in [0, 1].
        std: per channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Not persistent: released checkpoints do not hold them, and a network is rebuilt with its own.
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images `(N, 3, H, W)` or clips `(N, 3, T, H, W)`."""
        shape = (3, *[1] * (images.dim() - 2))
        return (images - self.get_buffer("mean").view(shape)) / self.get_buffer("std").view(shape)

    @classmethod
    def imagenet(cls) -> "InputNormalization":
        """Statistics of ImageNet, as torchvision's weights expect."""
        return cls(*IMAGENET_STATISTICS)

    @classmethod
    def identity(cls) -> "InputNormalization":
        """No normalisation: images go in as they are."""
        return cls(*IDENTITY_STATISTICS)


class _AllSeen(Exception):  # noqa: N818  (it stops a forward pass, and is no error)
    """Every feature is recorded: the rest of the forward pass is not needed."""


class _Recorder:
    """What feature layers give in one forward pass, by layer; `stop` ends it when all have given something."""

    def __init__(self, layers: Sequence[nn.Module], stop: bool) -> None:
        self.layers, self.stop = layers, stop
        self.found: dict[nn.Module, Any] = {}

    def record(self, layer: nn.Module, output: Any) -> None:
        if layer not in self.layers or layer in self.found:
            return
        self.found[layer] = output
        if self.stop and len(self.found) == len(set(self.layers)):
            raise _AllSeen
        if isinstance(output, Tensor):
            # The model may go on to change its own in place, as DenseNet's ReLU does.
            self.found[layer] = output.clone()


def _record(layer: nn.Module, _: object, output: object) -> None:
    recorder = getattr(_RUNNING, "recorder", None)
    if recorder is not None:
        recorder.record(layer, output)


class FeatureModel(nn.Module):
    """A model with names for some of its layers.

    `network(images)` is the model's prediction, `features(images)` are the outputs of the layers, for which the forward
    pass stops at the last of them, and `with_features(images)` are both. The model stays `network.model`, untouched but
    for its hooks: its `state_dict` has its own names.

    Args:
        model: images `(N, 3, H, W)` (or clips) to a prediction of any kind.
        layers: paths of the feature layers as `model.named_modules()` gives them; the first call in a pass counts.
        normalization: comes first; None when the model takes images in [0, 1] as they are.
        example: a batch of one or more images, on which the model is tried once.
        layouts: of each feature; by default told from its shape: three dimensions are tokens, and maps are as tall and
            as wide as images are.

    Raises:
        ValueError: when the model does not work on the example, has no such layer, or a layer gives no single tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        normalization: InputNormalization | None = None,
        example: Tensor | None = None,
        layouts: Sequence[Layout] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers)
        self.normalization = normalization or InputNormalization.identity()
        names = dict(model.named_modules())
        unknown = [name for name in self.layers if name not in names or not name]
        if unknown or not self.layers:
            top = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"no layers {unknown or '()'} in {type(model).__name__}; at its top are {top}")
        for name in self.layers:
            if _record not in names[name]._forward_hooks.values():
                names[name].register_forward_hook(_record)
        example = torch.zeros(2, 3, 128, 128) if example is None else example
        place = next(model.parameters(), example).device
        self.normalization, example = self.normalization.to(place), example.to(place)
        first: Layout = "channels-first"
        self.layouts = (first,) * len(self.layers)
        found, moving = _try(self, example)
        self.layouts = tuple(layouts or (_layout(feature, example) for feature in found))
        self.widths = tuple(
            feature.shape[1 if layout == "channels-first" else -1]
            for feature, layout in zip(found, self.layouts, strict=True)
        )
        self.feature_parameters = moving
        """Names of the model's parameters that its features depend on: all but those of the head."""

    def forward(self, images: Tensor, *inputs: Any) -> Any:
        """Predict for images in [0, 1]; further inputs reach the model as they are."""
        try:
            return self.model(self.normalization(images), *inputs)
        except _AllSeen:  # caught in here, so that `compile` takes the pass as one graph
            return None

    def features(self, images: Tensor, *inputs: Any) -> list[Tensor]:
        """The features of images in [0, 1], channels in dimension 1, in the order of `layers`."""
        return self._run_recorded(images, inputs, stop=True)[1]

    def with_features(self, images: Tensor, *inputs: Any) -> tuple[Any, list[Tensor]]:
        """Prediction and features of one forward pass."""
        return self._run_recorded(images, inputs, stop=False)

    def release(self) -> nn.Module:
        """The model without our hooks; this wrapper is of no use afterwards."""
        for layer in self.model.modules():
            for number, hook in list(layer._forward_hooks.items()):
                if hook is _record:
                    del layer._forward_hooks[number]
        return self.model

    def _run_recorded(self, images: Tensor, inputs: Sequence[Any], stop: bool) -> tuple[Any, list[Tensor]]:
        layers = [self.model.get_submodule(name) for name in self.layers]
        recorder = _Recorder(layers, stop)
        before, _RUNNING.recorder = getattr(_RUNNING, "recorder", None), recorder
        try:
            prediction = self(images, *inputs)
        finally:
            _RUNNING.recorder = before
        found = recorder.found
        features = []
        for name, layer, layout in zip(self.layers, layers, self.layouts, strict=True):
            feature = found.get(layer)
            if not isinstance(feature, Tensor) or feature.dim() < 2:
                kind = f"a tensor {tuple(feature.shape)}" if isinstance(feature, Tensor) else type(feature).__name__
                given = kind if layer in found else "nothing"
                raise ValueError(f"layer {name} gave {given} in a forward pass; expected one tensor (N, C, ...)")
            features.append(feature if layout == "channels-first" else feature.movedim(-1, 1))
        return prediction, features


def _layout(feature: Tensor, images: Tensor) -> Layout:
    """Where the channels of a feature are, by its shape."""
    if feature.dim() == 3:
        return "channels-last"
    if feature.dim() == 2:
        return "channels-first"
    height, width = images.shape[-2:]

    def distortion(rows: int, columns: int) -> float:
        return abs(rows * width - columns * height) / (rows * width + columns * height)

    *_, a, b, c = feature.shape
    return "channels-last" if distortion(a, b) < distortion(b, c) else "channels-first"


def _try(network: FeatureModel, example: Tensor) -> tuple[list[Tensor], frozenset[str]]:
    """The features of an example, and the names of the parameters that they depend on; nothing is changed."""
    parameters = {name: p for name, p in network.model.named_parameters() if p.requires_grad}
    with evaluation_mode(network), torch.enable_grad():
        features = attempt(network.features, example)
        learned = [feature.float().sum() for feature in features if feature.requires_grad]
        gradients = torch.autograd.grad(learned, list(parameters.values()), allow_unused=True) if learned else ()
    unused = {name for name, gradient in zip(parameters, gradients, strict=False) if gradient is None}
    moving = frozenset(name for name, _ in network.model.named_parameters() if name not in unused)
    return [feature.detach() for feature in features], moving


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, then every module's own mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def attempt(call: Callable[[Tensor], Any], images: Tensor) -> Any:
    """What a call of somebody else's model gives.

    Raises:
        ValueError: whatever it raises; one line.
    """
    try:
        return call(images)
    except Exception as error:  # noqa: BLE001  (a model's own code)
        shape = tuple(images.shape[1:])
        raise ValueError(f"the model does not work on images {shape}: {one_line(error)}") from error


def check_intensities(images: Any, name: str) -> None:
    """Raise ValueError unless `images` are a batch of floats in [0, 1]; `name` is the argument that they came by."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = f"{images.dtype} values" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"{name}: expected float images (N, 3, H, W) in [0, 1], found {kind}")
    low, high = images.amin().item(), images.amax().item()
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"{name}: expected intensities in [0, 1], found {low:.3g} to {high:.3g}; normalisation belongs into the "
            "model (FeatureModel, InputNormalization)"
        )


def one_line(error: BaseException) -> str:
    """The start of an error's message, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


@torch.no_grad()
def last_feature_layer(model: nn.Module, example: Tensor) -> str:
    """The path of the layer whose output a classifier pools: the last one with weights that still has positions.

    Args:
        model: images to one prediction per image; tried once, unchanged.
        example: a batch of images large enough for several positions in the last map.

    Raises:
        ValueError: when the model does not work on the example, or none of its layers gives a map or tokens.
    """
    finished: list[tuple[str, bool]] = []  # in the order in which they end: a layer after the layers inside it
    handles = []
    for name, layer in model.named_modules():
        if not name or not any(True for _ in layer.parameters()):
            continue

        def note(_: nn.Module, __: object, output: object, name: str = name) -> None:
            is_map = isinstance(output, Tensor) and output.dim() > 2 and output[0].numel() > max(output.shape[1:])
            finished.append((name, is_map and _positions(output) > 1))

        handles.append(layer.register_forward_hook(note))
    try:
        with evaluation_mode(model):
            attempt(model, example.to(next(model.parameters(), example).device))
    finally:
        for handle in handles:
            handle.remove()
    leaves = [name for name, _ in finished if not any(other.startswith(f"{name}.") for other, _ in finished)]
    # The last weights make the prediction: scores of each position, say, that are only averaged, are no feature.
    maps = [name for name, is_map in finished if is_map and not f"{leaves[-1]}.".startswith(f"{name}.")]
    if not maps:
        raise ValueError(f"no layer of {type(model).__name__} gives a map of features; name the layers to compare")
    return maps[-1]


def _positions(output: object) -> int:
    assert isinstance(output, Tensor)
    *_, a, b = output.shape
    return a if output.dim() == 3 else min(a * b, output.shape[-3] * a)


def independent_copy(module: ModuleT) -> ModuleT:
    """A deep copy, also where a module keeps a function of its own parts, such as a lambda for its `forward`.

    `copy.deepcopy` takes functions over as they are: they would go on to compute with the original's weights.
    """
    copies: dict[int, Any] = {}
    copied = copy.deepcopy(module, copies)
    for part in copied.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, FunctionType) and value.__closure__:
                cells = tuple(CellType(copy.deepcopy(cell.cell_contents, copies)) for cell in value.__closure__)
                vars(part)[name] = FunctionType(
                    value.__code__, value.__globals__, value.__name__, value.__defaults__, cells
                )
    return copied


def freeze(module: ModuleT) -> ModuleT:
    """Make a module a constant: no gradients for its parameters, BatchNorm and dropout in evaluation mode."""
    return module.requires_grad_(False).eval()
