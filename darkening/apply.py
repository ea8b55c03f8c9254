"""Darken images and videos: a file, a folder or a whole data set; the tree of folders is kept.

    python -m darkening.apply --darkener runs/classification/darkener/best.pt --input photos --output dark

Finished files are skipped when the same command is given again. Exposure and noise of each image, or of each video as a
whole, depend on the seed and on its path below the input alone, so an interrupted run ends with the files that an
uninterrupted one would have made. A file is written under another name and renamed when it is whole.
"""

import logging
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from darkening.night_view import NightConfig, NightView, build_night_view
from darkening.pictures import (
    DECODING_ERRORS,
    PICTURE_SUFFIXES,
    decode_picture,
    find_pictures,
    listed_below,
    write_picture,
)
from darkening.starting_point import NIGHT_TO_LOOK_AT_NAME, load_darkener_or_starting_point
from darkening.video_frames import VIDEO_SUFFIXES, BrokenVideo, expected_frames
from darkening.video_writer import VideoOptions
from darkening.videos import darken_video
from minmax.runtime.checkpoints import file_digest, remove_leftovers
from minmax.runtime.config import require, run_script, to_plain
from minmax.runtime.devices import Runtime, open_runtime
from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.report import recorded, write_json
from minmax.runtime.seeding import generator_for

log = logging.getLogger(__name__)
SETTINGS_FILE = ".darkening.json"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Darken images and videos."""

    input: Path
    """An image or a video, or a folder of such files with any folders below it."""
    output: Path
    """The darkened file, or the folder for the darkened files; made when missing."""
    darkener: str = NIGHT_TO_LOOK_AT_NAME
    """A darkener checkpoint, or one that ships with the package: `night-to-look-at` or `starting-point`."""
    night: NightConfig = field(default_factory=NightConfig)
    size: tuple[int, int] | None = None
    """Height and width that images and frames are brought to before they are darkened; by default they keep theirs."""
    video: VideoOptions = field(default_factory=VideoOptions)
    seed: int = 0
    """Seed of exposures and noise."""
    skip_corrupt: bool = False
    """Go on when files cannot be read, instead of ending with an error that lists them."""
    device: str = "auto"
    """auto, cpu, mps, cuda or cuda:1."""
    workers: int = 2
    """Processes that decode images; 0 does it in the main process."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(self.workers >= 0, "--workers", self.workers, "0 or more")
        if self.size is not None:
            require(min(self.size) >= 8, "--size", self.size, "two numbers, 8 or more each")


class PictureFiles(Dataset[tuple[Path, torch.Tensor | str]]):
    """Decoded files, brought to a size if one is given, or the reason why one cannot be decoded."""

    def __init__(self, files: list[Path], size: tuple[int, int] | None = None) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        """Number of files."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Path, torch.Tensor | str]:
        """File and pixels, uint8 `(3, H, W)`; or file and reason."""
        file = self.files[index]
        try:
            return file, decode_picture(file, self.size)
        except DECODING_ERRORS as error:
            return file, str(error) or type(error).__name__


def main(config: Config) -> None:
    """Darken everything that is not darkened yet."""
    files = find_pictures(config.input, PICTURE_SUFFIXES | VIDEO_SUFFIXES)
    targets = _targets(config, files)
    # Of a folder, what is done is left alone; of a single file nothing would tell what it was darkened with.
    left = [file for file in files if config.input.is_file() or not targets[file].exists()]
    if len(left) < len(files):
        log.info("%d of %d files are done already", len(files) - len(left), len(files))
    bad: list[str] = []
    with open_runtime(config.device) as runtime:
        # The default of --darkener is not a wish: hand-made nights do without.
        wanted = config.night.source == "learned" or config.darkener != NIGHT_TO_LOOK_AT_NAME
        darkener = load_darkener_or_starting_point(config.darkener) if wanted else None
        view = build_night_view(config.night, darkener, runtime)
        _refuse_other_settings(config, files)
        pictures, videos = ([file for file in left if _is_video(file) == wanted] for wanted in (False, True))
        bad += darken_pictures(config, pictures, targets, view, runtime)
        bad += darken_videos(config, videos, targets, view, runtime)
    log.info("%d files darkened into %s", len(left) - len(bad), config.output)
    if bad:
        message = f"{len(bad)} of {len(files)} files cannot be read:{listed_below(bad)}"
        if not config.skip_corrupt:
            raise RunError(f"{message}\nall others are done; mend or remove these, or give --skip-corrupt")
        log.warning("left out: %s", message)


def darken_pictures(
    config: Config, files: list[Path], targets: dict[Path, Path], view: NightView, runtime: Runtime
) -> list[str]:
    """Darken images; a line for each that cannot be read."""
    bad = []
    loader = DataLoader(PictureFiles(files, config.size), batch_size=None, num_workers=min(config.workers, len(files)))
    hidden = None if files else True
    for file, pixels in tqdm(loader, desc="darkening", unit="image", disable=hidden):
        if isinstance(pixels, str):
            bad.append(f"{file}: {pixels}")
            continue
        images = runtime.to_device(pixels[None]) / 255.0
        write_picture(view(images, generator_for(config.seed, _draws_name(config, file)))[0], targets[file])
    return bad


def darken_videos(
    config: Config, files: list[Path], targets: dict[Path, Path], view: NightView, runtime: Runtime
) -> list[str]:
    """Darken videos, each with one exposure and one noise map; a line for each that cannot be read."""
    bad = []
    total = sum(map(expected_frames, files))
    with tqdm(total=total, desc="darkening", unit="frame", disable=None if files else True) as bar:
        for file in files:
            bar.set_postfix_str(file.name, refresh=False)
            remove_leftovers(targets[file])
            generator = generator_for(config.seed, _draws_name(config, file))
            # A function of its own for each video, as the next one's generator must not reach it.
            start = partial(view.for_video, generator=generator)
            try:
                darken_video(file, targets[file], start, runtime, config.video, config.size, bar.update)
            except BrokenVideo as error:
                bad.append(f"{file}: {error}")
    return bad


def _draws_name(config: Config, file: Path) -> str:
    """What a file's draws depend on: its path below the input."""
    return file.name if file == config.input else file.relative_to(config.input).as_posix()


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEO_SUFFIXES


def _refuse_other_settings(config: Config, files: list[Path]) -> None:
    """Keep beside the images what darkened them: a second run with other settings would mix two sorts."""
    if config.input.is_file():
        return
    darkener = Path(config.darkener)
    now = {
        "night": to_plain(config.night),
        "size": to_plain(config)["size"],
        "seed": config.seed,
        "darkener": file_digest(darkener) if darkener.is_file() else config.darkener,
    }
    if any(map(_is_video, files)):
        now["crf"] = config.video.crf
    # A folder that held images alone says nothing of the quality of videos.
    stored = recorded(now, config.output / SETTINGS_FILE)
    before = {"crf": now.get("crf")} | stored
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise UsageError(
            f"--output {config.output}: holds images darkened with other settings ({', '.join(changed)}); choose "
            "another folder, or remove this one"
        )
    if before != stored and "crf" in now:  # from here on it holds videos too
        write_json(before, config.output / SETTINGS_FILE)


def _targets(config: Config, files: list[Path]) -> dict[Path, Path]:
    """Where each file goes."""
    if config.input.is_file():
        inside = config.output.is_dir() or not config.output.suffix
        target = config.output / config.input.name if inside else config.output
        kinds, example = (
            (VIDEO_SUFFIXES, "video such as .mp4")
            if _is_video(config.input)
            else (PICTURE_SUFFIXES, "picture such as .png")
        )
        if target.suffix.lower() not in kinds:
            raise UsageError(f"--output {config.output}: expected a folder or a {example}")
        if target.resolve() == config.input.resolve():
            raise UsageError(f"--output {config.output}: would overwrite the input")
        return {config.input: target}
    source, output = config.input.resolve(), config.output.resolve()
    if source == output or source in output.parents:
        raise UsageError(f"--output {config.output}: is the input or lies inside it; choose a folder elsewhere")
    if config.output.exists() and not config.output.is_dir():
        raise UsageError(f"--output {config.output}: is a file; expected a folder")
    if config.output.exists() and not os.access(config.output, os.W_OK):
        raise UsageError(f"--output {config.output}: cannot be written to")
    return {file: config.output / file.relative_to(config.input) for file in files}


if __name__ == "__main__":
    run_script(Config, main, __doc__)
