"""What a run shows: learning curves, confusion matrices, picture grids, tables and JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minmax.runtime.checkpoints import write_atomically

# matplotlib is imported where it draws: it takes as long as all the rest that a darkening of pictures needs.

SMOOTHING = 20  # training steps averaged into one point of a curve
GAMMA = 0.5  # by which dark images are shown brightened
MOST_NUMBERED = 25  # classes of a confusion matrix with a number in each cell, and class names along an axis


def duration(seconds: float) -> str:
    """A time for people: `45 s`, `3 min`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def read_last_validation(run: Path) -> dict[str, Any]:
    """Read the numbers that select checkpoints from the last epoch of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last: dict[str, Any] = [line for line in lines if line["kind"] == "validation"][-1]
    return last


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draw every number of a run's `metrics.jsonl` over the steps, one panel each."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("kind", "epoch", "step"):
                curves.setdefault(f"{line['kind']}: {name}", []).append((line["step"], value))
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (name, points) in zip(panels, curves.items(), strict=False):
        steps, values = np.array([p[0] for p in points]), np.array([p[1] for p in points])
        panel.plot(steps, values, alpha=0.3 if name.startswith("train") else 1.0, marker="." if len(steps) < 30 else "")
        if name.startswith("train") and len(values) >= 2 * SMOOTHING:
            mean = np.convolve(values, np.full(SMOOTHING, 1 / SMOOTHING), mode="valid")
            panel.plot(steps[SMOOTHING - 1 :], mean, color="C0")
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=8)
    for panel in panels[len(curves) :]:
        panel.set_visible(False)
    write_atomically(picture, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))


def draw_confusion(
    rows: Sequence[Sequence[tuple[str, Tensor]]], classes: Sequence[str], picture: Path, counted: str = "images"
) -> None:
    """Draw confusion matrices, each cell in percent of its row's class.

    With more than 25 classes the cells have no numbers and only some classes are named. A class that does not occur is
    grey.

    Args:
        rows: rows of panels, all as long; a panel is a title and counts `(C, C)`, truth by row.
        classes: names of the C classes.
        picture: the .png file, written atomically.
        counted: what the counts are of.
    """
    from matplotlib.figure import Figure

    count = len(classes)
    named = range(0, count, math.ceil(count / MOST_NUMBERED))
    names = [shorten(classes[i]) for i in named]
    side = min(max(0.36 * count, 2.6), 8.0)
    longest = max(map(len, names))
    size = (side * len(rows[0]) + 1.5 + 0.07 * longest, (side + 0.5) * len(rows) + 0.4 + 0.05 * longest)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for panel, (title, confusion) in zip(panels.flatten(), [cell for row in rows for cell in row], strict=True):
        percent = (100 * confusion.double() / confusion.sum(dim=1, keepdim=True)).numpy()
        panel.set_facecolor("lightgrey")  # shows where a class without images leaves NaN
        shown = panel.imshow(percent, cmap="Blues", vmin=0, vmax=100)
        # Class names come from folders: a dollar sign is no formula.
        panel.set_xticks(named, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8, parse_math=False)
        panel.set_yticks(named, names, fontsize=8, parse_math=False)
        panel.set_xlabel("prediction", fontsize=9)
        panel.set_ylabel("truth", fontsize=9)
        panel.set_title(title, fontsize=9, parse_math=False)
        panel.label_outer()
        if count <= MOST_NUMBERED:
            for i, j in np.argwhere(percent >= 0.5):
                color = "white" if percent[i, j] > 55 else "black"
                panel.text(j, i, f"{percent[i, j]:.0f}", ha="center", va="center", fontsize=8, color=color)
    bar = figure.colorbar(shown, ax=panels, shrink=0.8, aspect=30)
    bar.set_label(f"% of the {counted} of a class", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    write_atomically(picture, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))


def shorten(name: str, limit: int = 18) -> str:
    """Shorten a name to `limit` characters for a picture, with an ellipsis for its middle."""
    if len(name) <= limit:
        return name
    end = (limit - 1) // 2
    return f"{name[: limit - 1 - end]}…{name[-end:]}"


class Cell(NamedTuple):
    """A picture in a sheet: `(3, H, W)` in [0, 1], the caption below it, and the colour of its frame."""

    image: Tensor
    caption: str = ""
    frame: str = "black"


def draw_sheet(
    title: str,
    headings: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Cell | None]]],
    picture: Path,
    width: float = 1.4,
    legend: Mapping[str, Any] | None = None,
) -> None:
    """Draw rows of pictures, such as images beside what a network makes of them.

    Args:
        title: of the sheet.
        headings: of the columns, from the first on.
        rows: label and pictures of each; None leaves a place empty.
        picture: the .png file, written atomically.
        width: of a picture, inches.
        legend: names and colours, shown below.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = [cell for _, cells in rows for cell in cells if cell is not None]
    columns = max(len(cells) for _, cells in rows)
    height = width * min(1.0, max(cell.image.shape[1] / cell.image.shape[2] for cell in shown)) + 0.08
    lines = sum(max(cell.caption.count("\n") + bool(cell.caption) for cell in cells if cell) for _, cells in rows)
    margin = 0.07 * max(len(line) for label, _ in rows for line in label.split("\n")) + 0.2
    size = (
        max(width * columns + margin, 0.09 * len(title)),
        height * len(rows) + 0.13 * lines + (1.1 if legend else 0.6),
    )
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=11, parse_math=False)
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for panel in panels.flatten():
        panel.set_axis_off()
    for row, (label, cells) in zip(panels, rows, strict=True):
        for panel, cell in zip(row, cells, strict=False):
            if cell is None:
                continue
            panel.set_axis_on()
            panel.imshow(cell.image.permute(1, 2, 0).numpy(), interpolation="nearest" if legend else None)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set(color=cell.frame, linewidth=0.8 if cell.frame == "black" else 3)
            # Names come from files and folders: a dollar sign is no formula.
            panel.set_xlabel(cell.caption, fontsize=7, parse_math=False)
        row[0].set_ylabel(label, fontsize=7, rotation=0, ha="right", va="center", parse_math=False)
    for panel, heading in zip(panels[0], headings, strict=False):
        panel.set_title(heading, fontsize=8)
    if legend:
        patches = [Patch(color=colour, label=name) for name, colour in legend.items()]
        columns = min(len(patches), 10)
        figure.legend(handles=patches, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    write_atomically(picture, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))


def picture_grid(rows: Sequence[Tensor], gap: int = 2) -> Image.Image:
    """Rows of images `(N, 3, H, W)` in [0, 1], all of one size, as one picture with white gaps."""
    height, width = rows[0].shape[-2:]
    columns = max(len(row) for row in rows)
    canvas = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        pixels = (row.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
        for j, image in enumerate(pixels):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, atomically."""
    write_atomically(path, lambda temporary: picture.save(temporary, format="png"))


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write plain values as JSON, atomically; NaN and infinity, which JSON does not know, become null."""
    plain = json.loads(json.dumps(values), parse_constant=lambda _: None)
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8"))


def read_or_record(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Read the settings recorded beside results; when there is no record yet, write `settings` there first."""
    if not path.is_file():
        write_json(settings, path)
    return dict(json.loads(path.read_text(encoding="utf-8")))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; the first column is text, the others are numbers."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        aligned = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)])
