"""What a run shows: learning curves, picture grids, tables and JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from minmax.runtime.checkpoints import write_atomically

SMOOTHING = 20  # training steps averaged into one point of a curve


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draw every number of a run's `metrics.jsonl` over the steps, one panel each."""
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
    picture.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(picture, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))


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
    """Write plain values as JSON, atomically."""
    text = json.dumps(values, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; the first column is text, the others are numbers."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        aligned = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)])
