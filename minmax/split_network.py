"""Any classifier as a task network: its graph is traced and cut where the last map of features leaves the trunk.

Works for whatever torch.fx can trace, which is torchvision's classifiers, most of timm's and most hand-written ones.
The two halves keep the names of the whole network's tensors, so that its checkpoints fit.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from minmax.task_network import InputNormalization, TaskNetwork


def split_network(
    network: nn.Module,
    example: Tensor,
    normalization: InputNormalization,
    leaves: Collection[type[nn.Module]] = (),
    leaf_functions: Sequence[Any] = (),
) -> TaskNetwork:
    """Cut a classifier behind its last map of features.

    A map `(N, C, H, W)` becomes the one feature. The tokens of a transformer become two: the map of its patches and,
    where there is one, the class token `(N, C)`.

    Args:
        network: images `(N, 3, H, W)` to logits `(N, classes)`; its layers are taken over, not copied.
        example: a batch of two images in the size that the network is made for.
        normalization: becomes the first layer of the encoder.
        leaves: kinds of modules that must not be traced into, beside those of torch.nn.
        leaf_functions: functions that must not be traced into.

    Returns:
        A TaskNetwork that computes what `network` computes on normalised images.

    Raises:
        ValueError: when the network cannot be traced or cut, or its halves do not compute what it computes; says why.
    """
    expected = _predict(network.eval(), example)
    stored = set(network.state_dict())
    whole = _trace(network, leaves, leaf_functions)
    with torch.no_grad():
        try:
            ShapeProp(whole).propagate(example)
        except RuntimeError as error:
            raise ValueError(f"torch.fx traced it wrongly: {_start_of(error)}") from error
    node, layout = _last_map(whole)
    encoder = _encoder(whole, node, layout, normalization)
    head = _head(whole, node, layout)
    for half in (encoder, head):
        _forget_constants(half, stored)
    split = TaskNetwork(encoder.eval(), head.eval(), feature_widths=[])
    with torch.no_grad():
        # The identity in front: `example` went into the bare network.
        encoder.normalization = InputNormalization.identity()
        features = encoder(example)
        if not torch.allclose(head(features, example.shape[-2:]), expected, rtol=1e-4, atol=1e-5):
            raise ValueError("its halves do not compute what the whole computes")
        encoder.normalization = normalization
    split.feature_widths = tuple(feature.shape[1] for feature in features)
    return split.train()


def _predict(network: nn.Module, example: Tensor) -> Tensor:
    if hasattr(network, "normalization"):
        raise ValueError("it has a part named normalization, as the first layer is called here")
    try:
        with torch.no_grad():
            prediction = network(example)
    except Exception as error:  # noqa: BLE001  (a network's own code)
        raise ValueError(f"it does not work on images {tuple(example.shape[1:])}: {_start_of(error)}") from error
    if not (isinstance(prediction, Tensor) and prediction.dim() == 2):
        raise ValueError("its prediction is not one tensor (N, classes)")
    return prediction


def _start_of(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


class _Tracer(fx.Tracer):
    # A value computed from a buffer while tracing would not follow when weights are loaded.
    proxy_buffer_attributes = True

    def __init__(self, leaves: Collection[type[nn.Module]], functions: Sequence[Any]) -> None:
        super().__init__(autowrap_functions=tuple(functions))
        self.leaves = tuple(leaves)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # torch counts its own layers as leaves, but not classes derived from them, such as LayerNorm2d.
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)


def _trace(network: nn.Module, leaves: Collection[type[nn.Module]], functions: Sequence[Any]) -> fx.GraphModule:
    opaque = set(leaves)
    while True:
        training, in_training = _symbols(network.train(), opaque, functions)
        evaluation, in_evaluation = _symbols(network.eval(), opaque, functions)
        if in_training == in_evaluation:
            return fx.GraphModule(network, evaluation)
        # There a layer asks in its own code whether it is in training: it must stay whole.
        both = zip(training.nodes, in_training, evaluation.nodes, in_evaluation, strict=False)
        first = next((node, other) for node, call, other, other_call in both if call != other_call)
        asking = [kind for kind in (_caller(node, network) for node in first) if kind not in opaque | {type(network)}]
        if not asking:
            raise ValueError("its own forward method asks whether it is in training")
        opaque.add(asking[0])


_CONSTANT = "_tensor_constant"  # what fx calls a tensor that forward makes of nothing, and keeps in the network


def _symbols(
    network: nn.Module, leaves: Collection[type[nn.Module]], functions: Sequence[Any]
) -> tuple[fx.Graph, list[tuple[str, ...]]]:
    """The graph, and its calls in words."""
    for name in [name for name in vars(network) if name.startswith(_CONSTANT)]:
        delattr(network, name)  # of a former trace: both shall count from 0
    try:
        graph = _Tracer(leaves, functions).trace(network)
    except Exception as error:  # noqa: BLE001  (a network's own code runs here on symbols: anything can come)
        raise ValueError(f"torch.fx cannot trace it: {_start_of(error)}") from error
    constants = {name: str(value.tolist()) for name, value in vars(network).items() if name.startswith(_CONSTANT)}
    calls: list[tuple[str, ...]] = [
        (node.op, str(node.target), str(node.args), str(node.kwargs), constants.get(str(node.target), ""))
        for node in graph.nodes
    ]
    return graph, calls


def _caller(node: fx.Node, network: nn.Module) -> type[nn.Module]:
    """The kind of module in whose own code a call stands."""
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    if node.op == "call_module":
        paths = paths[:-1]  # the last is the module that is called
    return type(network.get_submodule(paths[-1])) if paths else type(network)


def _last_map(whole: fx.GraphModule) -> tuple[fx.Node, str]:
    """The last node through which everything flows, whose value still has positions and is not yet the prediction."""
    nodes = list(whole.graph.nodes)
    place = {node: position for position, node in enumerate(nodes)}
    # What comes after the last weights is no feature: scores of each position, say, that are only averaged.
    weights = {name for name, _ in whole.named_parameters()}
    last_weights = max((place[node] for node in nodes if _has_weights(whole, node, weights)), default=0)
    reach = 0  # the last place at which a value of an earlier node is used
    found = None
    for position, node in enumerate(nodes[:last_weights]):
        if node.op in ("get_attr", "output"):
            continue
        layout = _layout(node) if reach <= position and node.op != "placeholder" else None
        if layout is not None:
            found = (node, layout)
        reach = max([reach, *(place[user] for user in node.users)])
    # Branches that meet only as vectors leave one map, the early one where they part: that is no feature.
    if found is None or place[found[0]] < len(nodes) / 4:
        raise ValueError("no single map of features leads to its prediction")
    return found


def _has_weights(whole: fx.GraphModule, node: fx.Node, weights: Collection[str]) -> bool:
    if node.op == "call_module":
        return any(True for _ in whole.get_submodule(str(node.target)).parameters())
    return node.op == "get_attr" and str(node.target) in weights


def _layout(node: fx.Node) -> str | None:
    """How a map of two positions or more per side lies in memory; None for anything else."""
    shape = _shape(node)
    if len(shape) == 4 and shape[2] == shape[3] > 1:
        return "NCHW"
    if len(shape) == 4 and shape[1] == shape[2] > 1:
        return "NHWC"
    flattened = any(_shape(source)[:2] == shape[:2] and len(_shape(source)) == 4 for source in node.all_input_nodes)
    if len(shape) == 3 and shape[1] > 3 and not flattened:  # (N, C, H * W) has no tokens
        return "tokens"
    return None


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))


def _encoder(whole: fx.GraphModule, cut: fx.Node, layout: str, normalization: InputNormalization) -> fx.GraphModule:
    graph = fx.Graph()
    inputs = [node for node in whole.graph.nodes if node.op == "placeholder"]
    normalised = graph.call_module("normalization", (graph.placeholder("images"),))
    value = _copy(whole.graph, graph, {inputs[0]: normalised}, until=cut)
    graph.output(graph.call_function(_TO_FEATURES[layout], (value,)))
    whole.add_module("normalization", normalization)
    return fx.GraphModule(whole, graph, "Encoder")


def _head(whole: fx.GraphModule, cut: fx.Node, layout: str) -> fx.GraphModule:
    graph = fx.Graph()
    features = graph.placeholder("features")
    graph.placeholder("size")
    output = next(node for node in whole.graph.nodes if node.op == "output")
    value = graph.call_function(_FROM_FEATURES[layout], (features,))
    graph.output(_copy(whole.graph, graph, {cut: value}, until=output.args[0]))
    return fx.GraphModule(whole, graph, "Head")


def _forget_constants(half: fx.GraphModule, stored: Collection[str]) -> None:
    """Keep out of the state what the whole network does not store: fx stores every tensor that it meets."""
    for name, buffer in list(half.named_buffers()):
        if name not in stored:
            parent, _, last = name.rpartition(".")
            half.get_submodule(parent).register_buffer(last, buffer, persistent=False)


def _copy(source: fx.Graph, target: fx.Graph, known: dict[fx.Node, fx.Node], until: fx.Node) -> fx.Node:
    """Copy what `until` is computed from, apart from what is known, in the order of the source."""
    needed, open_nodes = set(), [until]
    while open_nodes:
        node = open_nodes.pop()
        if node not in known and node not in needed:
            needed.add(node)
            open_nodes += node.all_input_nodes
    copies = dict(known)
    for node in source.nodes:
        if node in needed:
            copies[node] = target.node_copy(node, copies.__getitem__)
    return copies[until]


def single_map(value: Tensor) -> list[Tensor]:
    """A map `(N, C, H, W)` as the only feature."""
    return [value]


def only_feature(features: list[Tensor]) -> Tensor:
    """The inverse of `single_map`."""
    return features[0]


def channels_first(value: Tensor) -> list[Tensor]:
    """A map `(N, H, W, C)` as the only feature `(N, C, H, W)`."""
    return [value.permute(0, 3, 1, 2)]


def channels_last(features: list[Tensor]) -> Tensor:
    """The inverse of `channels_first`."""
    return features[0].permute(0, 2, 3, 1)


def token_features(tokens: Tensor) -> list[Tensor]:
    """Tokens `(N, T, C)` as the map of the patches `(N, C, H, W)` and each token before them `(N, C)`.

    The patches are the largest square number of tokens at the end.
    """
    side = math.isqrt(tokens.shape[1])
    before = tokens.shape[1] - side * side
    patches = tokens[:, before:].transpose(1, 2).unflatten(2, (side, side))
    return [patches, *tokens[:, :before].unbind(1)]


def feature_tokens(features: list[Tensor]) -> Tensor:
    """The inverse of `token_features`."""
    patches = features[0].flatten(2).transpose(1, 2)
    return torch.cat([*(token.unsqueeze(1) for token in features[1:]), patches], dim=1)


_TO_FEATURES = {"NCHW": single_map, "NHWC": channels_first, "tokens": token_features}
_FROM_FEATURES = {"NCHW": only_feature, "NHWC": channels_last, "tokens": feature_tokens}
