"""The whole method on built-in scenes in a few minutes: a day model fails at night and recovers without night images.

    make demo            or, in your own environment:   python demo.py --seed 0

Runs the four classification scripts one after the other, prints day and night accuracy of the daytime model, of a
control that is trained as long on day images only, and of the adapted model, and draws one picture. Given again, it
goes on where it was stopped.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from darkening.darkener_files import load_darkener
from darkening.night_view import LearnedNight
from minmax.features import freeze
from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.commands import Commands
from minmax.runtime.config import REPOSITORY, run_script
from minmax.runtime.devices import open_runtime
from minmax.runtime.report import markdown_table
from minmax.runtime.seeding import generator_for
from scenes import CLASSES, render_labelled

RECIPE = REPOSITORY / "classification" / "recipes" / "demo.yaml"
# Of the same augmentation, schedule and number of steps as the adaptation; its second view stays a day image.
CONTROL = ("--night.source", "day", "--byol.weight", "0")
log = logging.getLogger(__name__)

SHOWN_EXPOSURES = (0.2, 0.1, 0.05)
SIZE = 64  # pixels
NIGHT_SEED = 4  # of the test nights (classification/class_folders.py)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Show the method on built-in scenes."""

    seed: int = 0
    """Seed of everything random."""
    runs: Path = REPOSITORY / "runs" / "demo"
    """Folder of the demo's runs."""
    device: str = "auto"
    """auto, cpu, mps, cuda or cuda:1."""
    quick: bool = False
    """A smoke test: the figures mean nothing."""

    @property
    def label(self) -> str:
        """What tells the files of this demo from those of another."""
        return f"seed{self.seed}{'-quick' if self.quick else ''}"


def main(config: Config) -> None:
    """Run everything and report."""
    common = ["--data", "scenes", *(["--quick"] if config.quick else [])]
    commands = Commands("classification", config.runs, RECIPE, common, ["--device", config.device])

    def train(script: str, name: str, result: str, *flags: str) -> Path:
        return commands.train(script, f"{name}-{config.label}", result, "--seed", str(config.seed), *flags)

    def test(name: str, checkpoint: Path) -> dict[str, Any]:
        return commands.test(f"{name}-{config.label}", checkpoint)

    day = train("train_day.py", "day", "best.pt")
    before = test("day", day)
    against = ("--checkpoint", str(day))
    darkener = train("train_darkener.py", "darkener", "best.pt", *against)
    picture = config.runs / f"demo-{config.label}.png"
    draw_story(darkener, {"before": before["test_night"]}, config, picture)
    log.info("\nfirst picture, without the adapted model: %s", picture)
    adapted = train("train.py", "adapt", "last-epoch.pt", *against, "--darkener", str(darkener))
    after = test("adapt", adapted)
    draw_story(darkener, {"before": before["test_night"], "after": after["test_night"]}, config, picture)
    log.info("\npicture: %s", picture)
    control = test("control", train("train.py", "control", "last-epoch.pt", *against, *CONTROL))
    found = {
        "daytime model": before,
        "trained on by day (control)": control,
        "adapted without night images": after,
    }
    splits = ("test_day", "test_night")
    rows = [[name, *(f"{100 * results[split]['top1']:.1f}" for split in splits)] for name, results in found.items()]
    table = markdown_table(["accuracy in %, unseen scenes", "day", "night"], rows)
    (config.runs / f"demo-{config.label}.md").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}\n\npicture: {picture}")  # noqa: T201  (the result of the command)


def draw_story(darkener: Path, tested: dict[str, dict[str, Any]], config: Config, picture: Path) -> None:
    """One column per class, the first test scene of each: day, learned nights, real night, verdicts.

    Args:
        darkener: the file.
        tested: what test.py found on the test nights, by whose verdicts they are.
        config: the demo's.
        picture: the .png file.
    """
    count = 8 * len(CLASSES)
    cache = config.runs / "scenes"
    days, labels = render_labelled("day", count, SIZE, NIGHT_SEED, cache_dir=cache)
    nights, _ = render_labelled("night", count, SIZE, NIGHT_SEED, cache_dir=cache)
    first = [int(np.flatnonzero(labels == label)[0]) for label in range(len(CLASSES))]
    images = torch.from_numpy(days[first]).permute(0, 3, 1, 2) / 255.0
    rows: list[tuple[str, NDArray[np.uint8]]] = [("by day", days[first])]
    with open_runtime(config.device) as runtime:
        learned = LearnedNight(runtime.place(freeze(load_darkener(darkener))))
        for exposure in SHOWN_EXPOSURES:
            asked = torch.full((len(images), 1, 1, 1), exposure)
            dark = learned(runtime.to_device(images), asked, generator_for("demo", str(exposure))).cpu()
            pixels = (dark * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            rows.append((f"learned night\nexposure {exposure}", pixels))
    rows.append(("simulated real night\n(never trained on)", nights[first]))
    figure = Figure(figsize=(1.35 * len(first) + 1.6, 1.42 * len(rows) + 0.9), layout="constrained")
    panels = figure.subplots(len(rows), len(first))
    for i, (caption, pictures) in enumerate(rows):
        for j, panel in enumerate(panels[i]):
            panel.imshow(pictures[j], interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            if i == 0:
                panel.set_title(CLASSES[j], fontsize=10)
        panels[i][0].set_ylabel(caption, fontsize=9)
    for j, panel in enumerate(panels[-1]):
        for line, (who, found) in enumerate(tested.items()):
            verdict = found["predictions"][first[j]]
            colour, mark = ("#1a7f37", "✓") if verdict == j else ("#c62828", "✗")
            panel.text(
                0.5,
                -0.06 - 0.17 * line,
                f"{who}: {CLASSES[verdict]} {mark}",
                transform=panel.transAxes,
                ha="center",
                va="top",
                fontsize=8,
                color=colour,
            )
        shares = " → ".join(f"{100 * found['per_class'][CLASSES[j]]:.0f}" for found in tested.values())
        below = -0.06 - 0.17 * len(tested)
        panel.text(0.5, below, f"of all such: {shares} %", transform=panel.transAxes, ha="center", va="top", fontsize=8)
    picture.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(picture, lambda temporary: figure.savefig(temporary, dpi=90, format="png", bbox_inches="tight"))


if __name__ == "__main__":
    run_script(Config, main, __doc__)
