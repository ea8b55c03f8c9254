"""Training steps of the four tasks, ours and the authors', from the same weights: on the CPU and, by gpu.py, on a GPU."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import formulation
import torch
import torch.nn.functional as F
from stages import Work
from torch import nn

from darkening.darkener import Darkener, DarkenerSettings
from darkening.darkener_files import STARTING_POINT, load_darkener
from darkening.exposures import RequestConfig, as_clips, as_images
from darkening.fit import DarkenerOptim, Observer, darkening_step
from darkening.losses import DarkeningLoss
from minmax.byol import build_pair
from minmax.features import FeatureModel, InputNormalization, freeze, independent_copy
from minmax.runtime.seeding import generator_for

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = ("classification", "segmentation", "visual-place-recognition", "low-light-action-recognition")
sys.path[:0] = [str(REPOSITORY / folder) for folder in FOLDERS]  # no packages, as when their scripts are started

from classifier import ClassifierSettings, build_classifier  # noqa: E402
from place_network import PlaceSettings, build_place_network, parameter_groups  # noqa: E402
from recogniser import RecogniserSettings, build_recogniser  # noqa: E402
from segmenter import SegmenterSettings, build_projectors, build_segmenter, pixel_cross_entropy  # noqa: E402
from tuple_pair import TuplePair, few_at_a_time  # noqa: E402


def script(folder: str, name: str = "train") -> Any:
    """A task's script as a module."""
    path = REPOSITORY / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def see_classifier(resnet, images):
    """Logits and last map of torchvision's ResNet."""
    *trunk, _, last = resnet.children()
    found = nn.Sequential(*trunk)(images)
    return last(found.mean(dim=(2, 3))), [found]


def see_segmenter(network, images):
    """Logits and four maps of RefineNet."""
    maps = list(network.backbone(images).values())
    return network.decoder(maps, images.shape[-2:]), maps


def see_recogniser(network, clips):
    """Logits and averaged feature of I3D."""
    *trunk, dropout, last = network.children()
    found = nn.Sequential(*trunk)(clips)
    return last(dropout(found)), [found]


@dataclass(frozen=True)
class Task:
    """What a step of a task needs."""

    folder: str
    network: Callable[[], FeatureModel]
    see: Callable[[nn.Module, torch.Tensor], Any]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy
    projectors: Any = None
    classes: int = 10


TASKS = {
    "classification": Task(
        "classification",
        lambda: build_classifier(ClassifierSettings("resnet18", tuple("abcdefghij"))),
        see_classifier,
    ),
    "segmentation": Task(
        "segmentation",
        lambda: build_segmenter(SegmenterSettings("refinenet_resnet101")),
        see_segmenter,
        pixel_cross_entropy,
        build_projectors,
        classes=19,
    ),
    "action": Task(
        "low-light-action-recognition",
        lambda: build_recogniser(RecogniserSettings("i3d_resnet50", tuple("abcdefghijk"))),
        see_recogniser,
    ),
}


def smooth_images(count, height, width, seed=0):
    """Images with slopes, edges and grain, `(count, 3, height, width)`: noise alone is nothing that occurs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 9, 16, generator=generator)
    grain = 0.04 * torch.rand(count, 3, height, width, generator=generator)
    return (F.interpolate(coarse, (height, width), mode="bicubic") + grain).clamp(0.0, 1.0)


def smooth(shape):
    """Images of a shape `(N, H, W)`, or clips of one `(N, T, H, W)`."""
    *count, height, width = shape
    images = smooth_images(count[0] * count[-1] if len(count) > 1 else count[0], height, width)
    return as_clips(images, count[1]).contiguous() if len(count) > 1 else images


def adaptation(name, shape, runtime) -> Work:
    """A step of train.py: both views forward, cross-entropy and BYOL, backward, optimiser, target.

    BatchNorm of each view by itself, as the authors. The first step has no dropout, so that its loss can be compared.
    """
    task, device = TASKS[name], runtime.device
    train = script(task.folder)
    config = train.Config(checkpoint=Path("none"))
    config = replace(config, byol=replace(config.byol, batch_norm="separate"))
    pair = build_pair(task.network(), config.byol, task.projectors)
    plain = formulation.Adaptation(pair, task.see, task.loss, config.byol.weight, name == "segmentation")
    plain = plain.to(device).train()
    pair = runtime.place(pair).train()
    if name == "action":
        optimizer, schedule = config.optim.build([p for p in pair.parameters() if p.requires_grad])
    else:
        optimizer, schedule = config.optim.build(pair, 1000, network=pair.online)
    parallel, daytime = runtime.parallel(pair), nn.Identity()
    images = smooth(shape)
    size = (shape[0], *shape[1:]) if name == "segmentation" else (shape[0],)
    labels = torch.randint(task.classes, size).to(device)
    views = [images.to(device), (0.3 * images.flip(0)).to(device)]
    placed = [runtime.to_device(view) for view in views]
    plain_optimizer = formulation.plain_optimizer(optimizer, plain)
    dropouts = [layer for whole in (pair, plain) for layer in whole.modules() if isinstance(layer, nn.Dropout)]
    shares = [layer.p for layer in dropouts]
    for layer in dropouts:
        layer.p = 0.0

    def ours():
        losses = train.step(parallel, daytime, *placed, labels, config, runtime)
        optimizer.zero_grad(set_to_none=True)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        optimizer.step()
        schedule.step()
        pair.update_target()
        return total.detach()

    def check(found, expected):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        for layer, share in zip(dropouts, shares, strict=True):
            layer.p = share

    return Work(ours, lambda: plain.step(plain_optimizer, *views, labels), check)


def place_adaptation(shape, runtime, trunk="resnet101") -> Work:
    """A step of visual-place-recognition/train.py without BYOL, as the authors: 5 tuples of 8 images."""
    train = script("visual-place-recognition")
    config = train.Config(checkpoint=Path("none"))
    config = replace(config, byol=replace(config.byol, weight=0.0))
    network = build_place_network(PlaceSettings(trunk))
    plain = independent_copy(network).to(runtime.device).eval()
    pair = runtime.place(build_pair(network, config.byol)).eval()
    groups = parameter_groups(pair.online, config.optim.lr, config.optim.weight_decay)
    optimizer, schedule = config.optim.build(pair, 1000, groups=groups)
    plain_optimizer = formulation.plain_optimizer(optimizer, plain)
    parallel = runtime.joined(TuplePair(pair, runtime))
    tuples = smooth_images(8 * shape[0], *shape[1:]).view(shape[0], 8, 3, *shape[1:]).to(runtime.device)
    tuples[:, 1] *= 0.3

    def ours():
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=runtime.device)
        for _, few in few_at_a_time(tuples, config.optim.at_once, parallel):
            days, nights = [t[0] for t in few], [t[1] for t in few]
            others = [image for t in few for image in t[2:]]
            losses = train.step(parallel, nn.Identity(), days, nights, others, config, runtime)
            loss = torch.stack(list(losses.values())).sum()
            loss.backward()
            total += loss.detach()
        optimizer.step()
        schedule.step()
        return total

    def check(found, expected):
        torch.testing.assert_close(found, expected.view(()), rtol=1e-2, atol=1e-3)

    margin = config.tuples.margin
    return Work(ours, lambda: formulation.tuple_step(plain, plain_optimizer, tuples, margin), check)


def darkener(network: FeatureModel, shape, runtime, view="pixels") -> Work:
    """A step of train_darkener.py with the paper's losses, from the starting point or of a camera.

    The straightforward form is that of the curve estimator in either case; its network is frozen by nothing.
    """
    device = runtime.device
    learning = load_darkener(STARTING_POINT) if view == "pixels" else Darkener(DarkenerSettings(view=view))
    plain, observed = load_darkener(STARTING_POINT).to(device), independent_copy(network).to(device).eval()
    learning, network = runtime.place(learning).train(), freeze(runtime.place(network))
    loss, optim = DarkeningLoss(), DarkenerOptim()
    observe = runtime.spread(Observer(network, loss))
    day = smooth(shape).to(device)
    placed = runtime.to_device(day)
    request = RequestConfig(exposure=(0.1, 0.1))

    def update(optimizer, module, losses):
        optimizer.zero_grad(set_to_none=True)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        nn.utils.clip_grad_norm_(module.parameters(), optim.clip)
        optimizer.step()
        return total.detach()

    optimizer = optim.adam(learning)
    plain_optimizer = formulation.plain_optimizer(optimizer, plain)

    def ours():
        generator = lambda _: generator_for("bench")  # noqa: E731
        losses = darkening_step(
            learning, observe, placed, request, loss, generator, autocast=runtime.autocast()
        )
        return update(optimizer, learning, losses)

    def straightforward():
        images, frames = as_images(day)
        exposure = torch.full((len(images), 1, 1, 1), 0.1, device=device)
        darkening = formulation.darken(plain, images, exposure)
        dark = darkening.image if day.dim() == 4 else as_clips(darkening.image, frames)
        losses = loss(images, darkening, exposure, observed.features(dark), observed.features(day))
        return update(plain_optimizer, plain, losses)

    def check(found, expected):
        if view == "pixels":
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)

    return Work(ours, straightforward, check)


def unnormalised(network: FeatureModel) -> FeatureModel:
    """Fed with images as they are, as the authors' darkener is trained."""
    network.normalization = InputNormalization.identity()
    return network
