"""Training steps of the four tasks, ours and the authors', from the same weights; on the CPU, by gpu.py on a GPU."""

import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

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
from recogniser import RecogniserSettings, build_recogniser  # noqa: E402
from segmenter import SegmenterSettings, build_projectors, build_segmenter, pixel_cross_entropy  # noqa: E402


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


class Task(NamedTuple):
    """What a step of a task needs."""

    folder: str
    network: Callable[[], FeatureModel]
    see: Callable[[nn.Module, torch.Tensor], Any]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy
    projectors: Any = None


TEN = tuple("abcdefghij")
TASKS = {
    "classification": Task(FOLDERS[0], lambda: build_classifier(ClassifierSettings("resnet18", TEN)), see_classifier),
    "segmentation": Task(
        FOLDERS[1], lambda: build_segmenter(SegmenterSettings()), see_segmenter, pixel_cross_entropy, build_projectors
    ),
    "action": Task(FOLDERS[3], lambda: build_recogniser(RecogniserSettings("i3d_resnet50", TEN)), see_recogniser),
}


def smooth(shape):
    """Images `(N, 3, H, W)` of a shape `(N, H, W)`, or clips of `(N, T, H, W)`, with slopes, edges and grain."""
    count, *frames, height, width = shape
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(math.prod([count, *frames]), 3, 9, 16, generator=generator)
    images = F.interpolate(coarse, (height, width), mode="bicubic")
    images = (images + 0.04 * torch.rand(images.shape, generator=generator)).clamp(0.0, 1.0)
    return as_clips(images, *frames).contiguous() if frames else images


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
    optimizer, schedule = config.optim.build(pair, 1000, network=pair.online)
    parallel, daytime = runtime.parallel(pair), nn.Identity()
    images = smooth(shape)
    labels = torch.randint(len(TEN), shape if name == "segmentation" else shape[:1]).to(device)
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


def darkener(network: FeatureModel, shape, runtime, view="pixels") -> Work:
    """A step of train_darkener.py with the paper's losses, from the starting point or of a camera.

    The network sees images that are not normalised, as the authors'. The straightforward form is that of the curve
    estimator in either case; its network is frozen by nothing.
    """
    device = runtime.device
    network.normalization = InputNormalization.identity()
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
        losses = darkening_step(learning, observe, placed, request, loss, generator, autocast=runtime.autocast())
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
