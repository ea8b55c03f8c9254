"""The run that trains a darkener against a frozen daytime model; its step is that of `fit.fit_darkener`."""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from darkening.darkener import Darkener, DarkenerSettings
from darkening.darkener_files import NIGHT_TO_LOOK_AT, SHIPPED, STARTING_POINT, load_darkener, save_darkener
from darkening.exposures import RequestConfig
from darkening.fit import DarkenerOptim, Observer, check_training, darkening_step
from darkening.losses import OBEDIENT_LOSS, DarkeningLoss
from darkening.preview import contact_sheet
from minmax.features import FeatureModel, InputNormalization, freeze
from minmax.runtime.batches import epoch_loader
from minmax.runtime.config import CommonFlags, to_plain
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import UsageError
from minmax.runtime.report import draw_curves, markdown_table, save_picture
from minmax.runtime.run import Fingerprinted, Run
from minmax.runtime.seeding import seed_globally

log = logging.getLogger(__name__)

REPORTED_EXPOSURES = (0.05, 0.1, 0.2, 0.3, 0.4)
VALIDATION_PIXELS = 2**20  # at a time


@dataclass(frozen=True, kw_only=True)
class TrainingFlags(CommonFlags):
    """How a darkener is trained, whether against a daytime model or, to be shipped, without one."""

    request: RequestConfig = field(default_factory=RequestConfig)
    darkener: DarkenerSettings = field(default_factory=DarkenerSettings)
    loss: DarkeningLoss = OBEDIENT_LOSS
    """Weights of the losses (docs/deviations.md has the paper's); view camera has similarity and recognisable alone."""
    optim: DarkenerOptim = field(default_factory=DarkenerOptim)


@dataclass(frozen=True, kw_only=True)
class DarkenerFlags(TrainingFlags):
    """The flags that every train_darkener.py has."""

    name: str = "darkener"
    """Name of the run; its folder is RUNS/TASK/NAME and must not exist yet."""
    checkpoint: Path
    """The daytime model: a best.pt of train_day.py, a released checkpoint, or what else train.py takes."""
    init: str = "auto"
    """auto (the shipped one of the same --darkener.view; camera starts as a night made by hand), starting-point,
    night-to-look-at, scratch, or a darkener's path to continue from."""
    features: Literal["normalised", "unnormalised"] = "normalised"
    """What the frozen model is fed: images normalised as it was trained, or raw as in the authors' code."""

    def __post_init__(self) -> None:
        """Refuse values out of range; `init` may be a path as well."""
        super().__post_init__()
        if self.init not in ("auto", "scratch", *SHIPPED):
            object.__setattr__(self, "init", str(Path(self.init).expanduser().absolute()))


def run_darkener(
    task: str,
    config: DarkenerFlags,
    runtime: Runtime,
    network: FeatureModel,
    training: Fingerprinted,
    views: Dataset[Tensor],
    held_out: Tensor,
    columns: int = 8,
) -> Path:
    """What every train_darkener.py does once its data are open: train against the frozen network, save and show.

    Args:
        task: folder of the runs.
        config: the flags.
        runtime: the devices.
        network: the daytime model.
        training: the day data, which tell themselves from others.
        views: the same, indexed by (epoch, index): RGB of 8 bits, `(3, H, W)` or `(3, T, H, W)`.
        held_out: other day images `(N, 3, H, W)` in [0, 1].
        columns: at most so many images, evenly spaced over `held_out`, in the picture.
    """
    network = runtime.place(network)
    if config.features == "unnormalised":
        network.normalization = runtime.place(InputNormalization.identity())
    seed_globally(config.seed, "darkener")
    darkener = runtime.place(initial_darkener(config.init, config.darkener))
    loader = epoch_loader(views, config.optim.batch_size, config.seed, config.workers, runtime)
    with Run(task, config, runtime, training=training) as run:
        train_darkener(darkener, network, loader, held_out, config, run, runtime)
        best = run.directory / "best.pt"
        if runtime.is_main:
            save_darkener(darkener, best, to_plain(config))
            shown = held_out[:: max(1, len(held_out) // columns)][:columns]
            contrast = sum(config.request.contrast) / 2  # the mean of what training asked for
            sheet = contact_sheet(darkener, shown, runtime, contrast=contrast, cell=config.request.cell)
            save_picture(sheet, run.directory / "pictures" / "darkened.png")
            draw_curves(run.directory / "metrics.jsonl", run.directory / "pictures" / "curves.png")
        log.info("on %d held-out day images:\n%s", len(held_out), obedience_table(darkener, held_out, runtime))
        log.info("darkener: %s", best)
        return best


def initial_darkener(init: str, settings: DarkenerSettings) -> Darkener:
    """The darkener that a training starts from.

    Args:
        init: `auto`, the shipped darkener of the same view (of view camera there is none: it starts as a night made by
            hand); `starting-point`, `night-to-look-at`, `scratch`, or the path of a darkener to continue from.
        settings: of one from scratch; of any other only as a check, the defaults excepted.

    Raises:
        UsageError: when `init` cannot be read, or was made with other settings.
    """
    if init == "auto":
        init = {"pixels": STARTING_POINT, "scene": NIGHT_TO_LOOK_AT, "camera": "scratch"}[settings.view]
    if init == "scratch":
        return Darkener(settings)
    darkener = load_darkener(init)
    if settings.view != darkener.settings.view:
        raise UsageError(f"--init {init}: it is of another view; add --darkener.view {darkener.settings.view}")
    if settings not in (DarkenerSettings(view=settings.view), darkener.settings):
        raise UsageError(
            f"--init {init}: it was made with {asdict(darkener.settings)}; other --darkener flags need --init scratch"
        )
    return darkener


def train_darkener(
    darkener: Darkener,
    encoder: FeatureModel | None,
    loader: DataLoader[Tensor],
    validation: Tensor,
    config: TrainingFlags,
    run: Run,
    runtime: Runtime,
) -> None:
    """What `fit_darkener` does, in place and as a run: it logs, is saved and resumed, and may use several devices.

    Args:
        darkener: placed on the device.
        encoder: the daytime model, frozen here; None trains for exposure and realism only.
        loader: batches of day images or clips as `darkening_step` takes them, drawn by `EpochBatches`; a fourth channel
            of images tells where the sky is.
        validation: held-out day images `(N, 3, H, W)` on which obedience is measured after every epoch.
        config: request, losses and optimisation.
        run: the opened run.
        runtime: its devices.
    """
    optim = config.optim
    check_training(darkener, encoder, config.loss)
    darkener.trained_on = config.request
    optimizer = optim.adam(darkener)
    steps_per_epoch = loader.batch_sampler.batches_per_epoch  # type: ignore[union-attr]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: optim.rate_factor(step / steps_per_epoch, step)
    )
    parallel = runtime.parallel(darkener)
    observe = None if encoder is None else runtime.spread(Observer(freeze(encoder), config.loss))
    run.restore(darkener=darkener, optimizer=optimizer, schedule=schedule, scaler=runtime.scaler)
    for epoch in run.epochs(optim.epochs):
        darkener.train()
        for batch in run.batches(loader, epoch):
            seen = runtime.intensities(batch)
            day, sky = seen[:, :3], seen[:, 3:] if seen.shape[1] == 4 else None
            losses = darkening_step(
                darkener, observe, day, config.request, config.loss, run.generator, parallel, runtime.autocast(), sky
            )
            run.backward(losses)
            run.step(optimizer, schedule, optim.clip)
        means = obedience(darkener, validation, runtime)
        errors = [abs(mean - wanted) for wanted, mean in means.values()]
        log.info("epoch %d: largest distance from min(request, day) %.3f", epoch + 1, max(errors))
        run.finish_epoch({f"mean_at_{asked}": mean for asked, (_, mean) in means.items()})


@torch.no_grad()
def obedience(darkener: Darkener, images: Tensor, runtime: Runtime) -> dict[float, tuple[float, float]]:
    """Of day `images` `(N, 3, H, W)`, for each of `REPORTED_EXPOSURES`, what it asks for and what it gets.

    Both are means over images: of min(request, the day's mean), and of the darkened image's intensity, of view camera
    before its noise.
    """
    runtime.evaluate(darkener)
    found = []
    for chunk in runtime.dealt(images.split(max(1, VALIDATION_PIXELS // (images.shape[-2] * images.shape[-1])))):
        day = runtime.to_device(chunk)
        sums = []
        for asked in REPORTED_EXPOSURES:
            darkened = darkener.darken(day, darkener.trained_on.bounded(day, torch.full((len(day), 1, 1, 1), asked)))
            wanted = day.mean(dim=(1, 2, 3)).clamp(max=asked).sum()
            sums.append(torch.stack([wanted, darkened.mean(dim=(1, 2, 3)).sum()]).cpu() / len(images))
        found.append(torch.stack(sums))
    means = sum(runtime.collected(found), torch.zeros(len(REPORTED_EXPOSURES), 2))
    return {asked: (wanted, mean) for asked, (wanted, mean) in zip(REPORTED_EXPOSURES, means.tolist(), strict=True)}


def obedience_table(darkener: Darkener, images: Tensor, runtime: Runtime) -> str:
    """`obedience` as Markdown."""
    rows = [
        [f"{asked:.2f}", f"{wanted:.3f}", f"{mean:.3f}", f"{mean - wanted:+.3f}"]
        for asked, (wanted, mean) in obedience(darkener, images, runtime).items()
    ]
    return markdown_table(["requested", "or the day's mean", "mean of the output", "difference"], rows)
