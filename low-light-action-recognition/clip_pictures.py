"""Strips of frames, to look at: what a video shows, and what networks say of it."""

from pathlib import Path

import torch
from clip_accuracy import ClipAccuracy
from clip_views import WholeClips
from clips import ClipConfig, LabelledClips
from torch.nn.functional import pad

from minmax.runtime.report import GAMMA, Cell, draw_sheet, shorten
from minmax.runtime.splits import evenly_spaced

VIDEOS, FRAMES = 8, 6


def draw_strips(clips: LabelledClips, config: ClipConfig, verdicts: dict[str, ClipAccuracy], picture: Path) -> None:
    """Draw a few videos, evenly spaced: their frames as they are and brightened, the truth and the verdicts.

    Videos on which the first and the last verdict differ come first: they show what training changed.

    Args:
        clips: the split.
        config: how its clips are read.
        verdicts: by caption.
        picture: the .png file, written atomically.
    """
    first, last = next(iter(verdicts.values())), list(verdicts.values())[-1]
    changed = first.predictions != last.predictions
    order = torch.cat([changed.nonzero().flatten(), (~changed).nonzero().flatten()]).tolist()
    rows = []
    whole = WholeClips(clips, config, rounds=1)
    for index in evenly_spaced(order[: max(VIDEOS, int(changed.sum()))], VIDEOS):
        frames = whole[index][0][0].transpose(0, 1) / 255.0
        strip = torch.cat(evenly_spaced([*pad(frames, (0, 2), value=1.0)], FRAMES), dim=2)
        named = {"truth": clips.labels[index], **{who: int(a.predictions[index]) for who, a in verdicts.items()}}
        lines = [f"{who}: {shorten(clips.classes[label], 15)}" for who, label in named.items()]
        rows.append(("\n".join(lines), [Cell(strip), Cell(strip**GAMMA, shorten(clips.name(index), 50))]))
    of_both = f": {int(changed.sum())} of {len(clips)} verdicts changed" if len(verdicts) > 1 else ""
    draw_sheet(f"{clips.split}{of_both}", ["as it is", f"brightened (gamma {GAMMA})"], rows, picture, width=5)
