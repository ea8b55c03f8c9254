"""Darken images and videos: a file, a folder or a whole data set; the tree of folders is kept.

    python -m darkening.apply --darkener runs/classification/darkener/best.pt --input photos --output dark

Finished files are skipped when the same command is given again. Exposure and noise of each image, or of each video as a
whole, depend on the seed and on its path below the input alone, so an interrupted run ends with the files that an
uninterrupted one would have made. A file is written under another name and renamed when it is whole.

`--shard 1/2` and `--shard 2/2`, or the processes of torchrun, fill one output with several GPUs or machines.

`--exposures 0.05 0.1 0.2` makes several nights of each file, photo@0.05.jpg, photo@0.1.jpg and photo@0.2.jpg.
"""

import logging
import os
import warnings
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    # Read when torch is loaded. Its threads otherwise spin while they wait, and take the cores from the video codecs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from tqdm import tqdm

from darkening.darkener_files import NIGHT_TO_LOOK_AT, load_darkener
from darkening.night_view import NightConfig, NightView, build_night_view, refuse_untrained
from media.pictures import (
    DECODING_ERRORS,
    PICTURE_SUFFIXES,
    UnwritableFile,
    as_intensities,
    count_of,
    decode_fully,
    find_pictures,
    is_file,
    listed_below,
    reading_problem,
    told_losses,
    write_picture,
)
from media.video_frames import VIDEO_SUFFIXES, BrokenVideo, expected_frames
from media.video_writer import VideoOptions
from media.videos import darken_video
from minmax.runtime.checkpoints import file_digest, remove_leftovers
from minmax.runtime.config import replace_settings, run_script, to_plain
from minmax.runtime.devices import Runtime, open_runtime
from minmax.runtime.errors import RunError, UsageError, printable, problem_of_the_machine, require
from minmax.runtime.report import read_or_record
from minmax.runtime.seeding import generator_for
from minmax.runtime.shares import read_share
from minmax.runtime.splits import OnePerExample

log = logging.getLogger(__name__)
SETTINGS_FILE = ".darkening.json"
_LONG = timedelta(days=30)  # that one share may take longer than another
SHOWN_EXPOSURES = (0.05, 0.2)
"""Training draws from 0 on, as the paper; what is darkened for people to see should not be black."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Darken images and videos."""

    input: Path
    """An image or a video, or a folder of such files with any folders below it."""
    output: Path
    """The darkened file, or the folder for the darkened files; made when missing."""
    darkener: str = NIGHT_TO_LOOK_AT
    """A darkener checkpoint, or one that ships with the package: `night-to-look-at` or `starting-point`."""
    night: NightConfig = field(default_factory=lambda: NightConfig(exposure=SHOWN_EXPOSURES))
    exposures: tuple[float, ...] = ()
    """Darken each file once to each of these mean intensities, into NAME@EXPOSURE, instead of to one that is drawn."""
    size: tuple[int, int] | None = None
    """Height and width that images and frames are brought to before they are darkened; by default they keep theirs."""
    video: VideoOptions = field(default_factory=VideoOptions)
    shard: str = ""
    """i/n: darken the i-th of n shares of the files alone, so that several GPUs or machines can fill one --output."""
    seed: int = 0
    """Seed of exposures and noise."""
    skip_corrupt: bool = False
    """Go on when files cannot be read, instead of ending with an error that lists them."""
    device: str = "auto"
    """auto, cpu, mps, cuda or cuda:1."""
    workers: int = 2
    """Processes that decode images; 0 does it in the main process."""
    threads: int = 0
    """CPU threads of torch; 0 keeps torch's choice. Video codecs have threads of their own."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        read_share(self.shard)
        require(self.workers >= 0, "--workers", self.workers, "0 or more")
        require(self.threads >= 0, "--threads", self.threads, "0 or more")
        require(self.size is None or min(self.size) >= 8, "--size", self.size, "two numbers, 8 or more each")
        if self.exposures:
            within = all(0.0 <= exposure <= 1.0 for exposure in self.exposures)
            once = len(set(map(_mark, self.exposures))) == len(self.exposures)
            require(within and once, "--exposures", self.exposures, "numbers from 0 to 1, each once")
            drawn, source = self.night.exposure, self.night.source
            require(drawn == SHOWN_EXPOSURES, "--night.exposure", drawn, "no such flag beside --exposures")
            by_request = source not in ("day", "augmix")
            require(by_request, "--night.source", source, "a night beside --exposures; this one does not follow them")


def _mark(exposure: float) -> str:
    """What is put behind the name of a file that is darkened to one of several exposures."""
    return f"@{exposure:g}"


class PictureFiles(OnePerExample[tuple[Path, torch.Tensor | None, list[str]]]):
    """Decoded files, brought to a size if one is given, or the reason why one cannot be decoded."""

    def __init__(self, files: list[Path], size: tuple[int, int] | None = None) -> None:
        super().__init__(files)
        self.files, self.size = files, size

    def __getitem__(self, index: int) -> tuple[Path, torch.Tensor | None, list[str]]:
        """File, pixels, uint8 `(3, H, W)`, and what of the file is not in them; or file, None and the reason."""
        file = self.files[index]
        try:
            return file, *decode_fully(file, self.size)
        except DECODING_ERRORS as error:
            return file, None, [reading_problem(error)]


Work = dict[Path, list[tuple[Path, NightView]]]
"""What is to be made of each file: targets, and the night views that make them."""


@dataclass
class Outcome:
    """What came of the work so far."""

    done: int = 0
    """Files that were written."""
    bad: dict[Path, str] = field(default_factory=dict)
    """Files that cannot be read, or whose darkened files cannot be written, and why."""
    losses: Counter[str] = field(default_factory=Counter)
    """What is not kept, of how many files."""


def main(config: Config) -> None:
    """Darken everything that is not darkened yet."""
    _quieten()
    source, output = config.input.resolve(), config.output.resolve()
    if source.is_dir() and (source == output or source in output.parents):
        raise UsageError(f"--output {config.output}: is the input or lies inside it; choose a folder elsewhere")
    # A link below the input may lead to where the output is: what was darkened is no input.
    files = find_pictures(config.input, PICTURE_SUFFIXES | VIDEO_SUFFIXES, but=config.output)
    targets = _targets(config, files)
    with open_runtime(config.device, threads=config.threads) as runtime:
        number, count = read_share(config.shard)
        if runtime.world_size > 1:
            require(not config.shard, "--shard", config.shard, "none under torchrun, whose processes share the files")
            number, count = runtime.rank, runtime.world_size
            together = dist.new_group(timeout=_LONG, backend="gloo")
        files = files[number::count]
        share = f"share {number + 1}/{count}: " if count > 1 else ""
        views = _night_views(config, runtime)
        marked = {
            file: [(targets[file].with_stem(targets[file].stem + mark), view) for mark, view in views.items()]
            for file in files
        }
        _refuse_overwriting(config, marked)
        _make_folder(config)
        remove_leftovers(target for jobs in marked.values() for target, _ in jobs)
        _refuse_other_settings(config)
        work: Work = {}
        for file, jobs in marked.items():
            # Of a folder, what is done is left alone; of a single file nothing would tell what it was darkened with.
            left = [job for job in jobs if is_file(config.input) or not is_file(job[0])]
            if left:
                work[file] = left
        asked, to_do = len(files) * len(views), sum(map(len, work.values()))
        if to_do < asked:
            log.info("%s%d of %d files are done already", share, asked - to_do, asked)
        outcome = Outcome()
        darken_pictures(config, {file: jobs for file, jobs in work.items() if not _is_video(file)}, runtime, outcome)
        darken_videos(config, {file: jobs for file, jobs in work.items() if _is_video(file)}, runtime, outcome)
        if count > 1:
            _refuse_other_settings(config)  # of a share that was started in the same moment
        if runtime.world_size > 1:
            # torchrun ends all processes when one fails, as for a file that cannot be read.
            dist.barrier(together)  # type: ignore[arg-type]
    place = config.output if is_file(config.output) or config.output.is_dir() else config.output.parent
    log.info("%s%s darkened into %s", share, count_of(outcome.done, "file"), place)
    if outcome.losses:
        log.warning("%snot kept: %s", share, told_losses(outcome.losses))
    if outcome.bad:
        listed = listed_below([f"{printable(file)}: {reason}" for file, reason in outcome.bad.items()])
        message = f"{share}{len(outcome.bad)} of {count_of(len(files), 'file')} cannot be darkened:{listed}"
        if not config.skip_corrupt:
            others = "all others are done; mend or remove these, or give --skip-corrupt"
            raise RunError(f"{message}\n{others if len(files) > 1 else 'mend it, or give another'}")
        log.warning("left out: %s", message)


def _quieten(_: int = 0) -> None:
    """Leave out Pillow's warnings of odd entries and large sizes: what matters is told in our own words."""
    warnings.filterwarnings("ignore", module="PIL")


def _night_views(config: Config, runtime: Runtime) -> dict[str, NightView]:
    """The night that each file gets, or those of several exposures, by what they put behind its name."""
    # The default of --darkener is not a wish: hand-made nights do without.
    wanted = config.night.source in (None, "learned") or config.darkener != NIGHT_TO_LOOK_AT
    darkener = load_darkener(config.darkener) if wanted else None
    if not config.exposures:
        return {"": build_night_view(config.night, darkener, runtime)}
    if darkener is not None:
        refuse_untrained("--exposures", config.exposures, darkener)
    views = {}
    for exposure in config.exposures:
        night = replace_settings(config.night, exposure=(exposure, exposure))
        views[_mark(exposure)] = build_night_view(night, darkener, runtime)
    return views


def darken_pictures(config: Config, work: Work, runtime: Runtime, outcome: Outcome) -> None:
    """Darken images, each decoded once."""
    files = list(work)
    loader = DataLoader(
        PictureFiles(files, config.size),
        batch_size=None,
        num_workers=min(config.workers, len(files)),
        worker_init_fn=_quieten,
    )
    total = sum(map(len, work.values()))
    with tqdm(total=total, desc="darkening", unit="image", disable=runtime.hides_bar if files else True) as bar:
        for file, pixels, told in loader:
            if pixels is None:
                outcome.bad[file] = told[0]
                bar.update(len(work[file]))
                continue
            outcome.losses.update(told)
            for target, view in work[file]:
                try:
                    write_picture(_darkened(pixels, view, _draws_name(config, file), config.seed, runtime), target)
                    outcome.done += 1
                except UnwritableFile as error:
                    outcome.bad[file] = str(error)
                bar.update()


def _darkened(pixels: torch.Tensor, view: NightView, name: str, seed: int, runtime: Runtime) -> torch.Tensor:
    """A darkened image `(3, H, W)`; raises UnwritableFile when there is no memory for one of this size."""
    try:
        image = as_intensities(runtime.to_device(pixels[None]))
        return view(image, generator_for(seed, name))[0]
    except (MemoryError, RuntimeError) as error:  # torch's are RuntimeErrors
        if problem_of_the_machine(error) is None:
            raise
        height, width = pixels.shape[1:]
        raise UnwritableFile(f"needs more memory than there is for {width}x{height} pixels; give --size") from error


def darken_videos(config: Config, work: Work, runtime: Runtime, outcome: Outcome) -> None:
    """Darken videos, each with one noise map and, in each of its targets, one exposure."""
    total = sum(expected_frames(file) * len(jobs) for file, jobs in work.items())
    with tqdm(total=total, desc="darkening", unit="frame", disable=runtime.hides_bar if work else True) as bar:
        for file, jobs in work.items():
            losses: list[str] = []
            for target, view in jobs:
                bar.set_postfix_str(printable(target.name), refresh=False)
                generator = generator_for(config.seed, _draws_name(config, file))
                # A function of its own for each video, as the next one's generator must not reach it.
                start = partial(view.for_video, generator=generator)
                try:
                    losses = darken_video(file, target, start, runtime, config.video, config.size, bar.update)
                    outcome.done += 1
                except UnwritableFile as error:
                    outcome.bad[file] = str(error)
                except BrokenVideo as error:
                    outcome.bad[file] = printable(error)
                    break
            outcome.losses.update(losses)


def _draws_name(config: Config, file: Path) -> str:
    """What a file's draws depend on: its path below the input."""
    return file.name if file == config.input else file.relative_to(config.input).as_posix()


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEO_SUFFIXES


def _refuse_other_settings(config: Config) -> None:
    """Keep beside the images what darkened them: a second run with other settings would mix two sorts."""
    if config.input.is_file():
        return
    darkener = Path(config.darkener)
    now = {
        "night": to_plain(config.night),
        "exposures": list(config.exposures),
        "size": to_plain(config)["size"],
        "seed": config.seed,
        "darkener": file_digest(darkener) if darkener.is_file() else config.darkener,
        "input": str(config.input.resolve()),
        "crf": config.video.crf,
    }
    record = config.output / SETTINGS_FILE
    remove_leftovers([record])
    try:
        before = read_or_record(now, record)
    except (ValueError, TypeError) as error:  # JSON of another kind, or none
        raise UsageError(
            f"{record}: expected what the files beside it were darkened with; remove it, or choose another --output"
        ) from error
    changed = [name for name in now if before.get(name) != now[name]]
    if changed == ["input"]:
        raise UsageError(
            f"--output {config.output}: holds what was darkened from {before.get('input')}, so that files of "
            f"{now['input']} with the same names would count as done; choose another folder (or, where the input was "
            f"only moved, correct {SETTINGS_FILE} in the output)"
        )
    if changed:
        raise UsageError(
            f"--output {config.output}: holds images darkened with other settings ({', '.join(changed)}); choose "
            "another folder, or remove this one"
        )


def _targets(config: Config, files: list[Path]) -> dict[Path, Path]:
    """Where each file goes."""
    if config.input.is_file():
        inside = config.output.is_dir() or not config.output.suffix
        target = config.output / config.input.name if inside else config.output
        kinds, example = PICTURE_SUFFIXES, "picture such as .png"
        if _is_video(config.input):
            kinds, example = VIDEO_SUFFIXES, "video such as .mp4"
        if target.suffix.lower() not in kinds:
            raise UsageError(f"--output {config.output}: expected a folder or a {example}")
        return {config.input: target}
    return {file: config.output / file.relative_to(config.input) for file in files}


def _refuse_overwriting(config: Config, marked: Work) -> None:
    """Refuse a target that is the file to darken, or lies in the folder of these files."""
    source = config.input.resolve()
    for jobs in marked.values():
        for target, _ in jobs:
            place = target.resolve()
            if source == place or source in place.parents:
                raise UsageError(f"--output {config.output}: {printable(target)} would overwrite the input")


def _make_folder(config: Config) -> None:
    """Make the folder of the output, or refuse one that cannot be made or written to."""
    single = is_file(config.input) and bool(config.output.suffix) and not config.output.is_dir()
    folder = config.output.parent if single else config.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UsageError(f"--output {config.output}: is a file; expected a folder") from error
    except OSError as error:
        raise UsageError(f"--output {config.output}: this folder cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--output {config.output}: cannot be written to")


if __name__ == "__main__":
    run_script(Config, main, __doc__)
