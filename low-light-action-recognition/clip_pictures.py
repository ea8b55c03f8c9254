"""Strips of frames, to look at: what a video shows, and what networks say of it."""

from pathlib import Path

import torch
from clip_accuracy import ClipAccuracy
from clip_views import WholeClips
from clips import ClipConfig, LabelledClips
from matplotlib.figure import Figure

from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.report import picture_grid, shortened
from minmax.runtime.splits import evenly_spaced

VIDEOS, FRAMES = 8, 6
GAMMA = 0.5


def draw_strips(clips: LabelledClips, config: ClipConfig, verdicts: dict[str, ClipAccuracy], picture: Path) -> None:
    """Draw a few videos, evenly spread: their frames as they are and brightened, the truth and the verdicts.

    Videos on which the last of the verdicts differs from the first come first: these show what a training changed.

    Args:
        clips: the split.
        config: how its clips are read.
        verdicts: by caption.
        picture: the .png file, written atomically.
    """
    first, last = next(iter(verdicts.values())), list(verdicts.values())[-1]
    changed = first.predictions != last.predictions
    order = torch.cat([changed.nonzero().flatten(), (~changed).nonzero().flatten()]).tolist()
    candidates = order[: max(VIDEOS, int(changed.sum()))]
    chosen = evenly_spaced(candidates, VIDEOS)
    count = len(chosen)
    whole = WholeClips(clips, config, rounds=1)
    figure = Figure(figsize=(11, 1.15 * count + 0.4), layout="constrained")
    of_both = f": {int(changed.sum())} of {len(clips)} verdicts changed" if len(verdicts) > 1 else ""
    figure.suptitle(f"{clips.split}{of_both}", fontsize=10)
    panels = figure.subplots(count, 2, squeeze=False)
    for row, index in zip(panels, chosen, strict=True):
        frames = whole[index][0][0].transpose(0, 1) / 255.0
        kept = frames[evenly_spaced(range(len(frames)), FRAMES)]
        for panel, shown in zip(row, (kept, kept**GAMMA), strict=True):
            panel.imshow(picture_grid([shown]), interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
        named = {"truth": clips.labels[index], **{who: int(a.predictions[index]) for who, a in verdicts.items()}}
        lines = [f"{who}: {shortened(clips.classes[label], 15)}" for who, label in named.items()]
        row[0].set_ylabel("\n".join(lines), fontsize=7, rotation=0, ha="right", va="center", parse_math=False)
        row[1].set_xlabel(shortened(clips.name(index), 50), fontsize=6, parse_math=False)
    panels[0, 0].set_title("as it is", fontsize=8)
    panels[0, 1].set_title(f"brightened (gamma {GAMMA})", fontsize=8)
    write_atomically(picture, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))
