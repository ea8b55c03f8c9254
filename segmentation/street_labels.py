"""The 19 classes of Cityscapes: names, colours, and which label ids belong to them."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.datasets import Cityscapes

_TRAINED = sorted((kind for kind in Cityscapes.classes if 0 <= kind.train_id < 255), key=lambda kind: kind.train_id)

CLASSES: Final[tuple[str, ...]] = tuple(kind.name for kind in _TRAINED)
VOID: Final = len(CLASSES)
"""Train id of pixels without a class: not learned, not scored."""
COLOURS: Final = torch.tensor([*(kind.color for kind in _TRAINED), (0, 0, 0)], dtype=torch.uint8)
"""`(20, 3)` RGB of the classes, and black for void."""
LABEL_IDS: Final = 34
"""Label ids are 0 to 33."""

_TRAIN_ID_OF = {kind.id: kind.train_id for kind in _TRAINED}
_NO_ID: Final = 255
_TABLE = np.array([_TRAIN_ID_OF.get(label_id, VOID) for label_id in range(_NO_ID + 1)], np.uint8)
_KEPT = np.minimum(np.arange(_NO_ID + 1), VOID).astype(np.uint8)


_SELDOM = {5, 6, 9, 10, 14, 15, 16, 18, _NO_ID}
"""Label ids of things that are not trained on, but of classes (or void) where they are train ids."""


def to_train_ids(ids: NDArray[np.uint8], trained: bool = False) -> NDArray[np.uint8]:
    """Train ids 0 to 18 and VOID of label ids, or with `trained` of train ids as files hold them, uint8 `(H, W)`.

    255 is void too: so bytes store the id -1 of licence plates, and many programs what has no class.

    Raises:
        ValueError: names the ids that Cityscapes does not have.
    """
    known = VOID if trained else LABEL_IDS
    if int(ids.max(initial=0)) >= known and (foreign := sorted(set(np.unique(ids).tolist()) - {*range(known), _NO_ID})):
        kind = "train ids of Cityscapes" if trained else "label ids of Cityscapes"
        told = "" if trained else " (a *labelIds file, not train ids or colours)"
        raise ValueError(
            f"holds the ids {', '.join(map(str, foreign[:5]))}; expected {kind}, 0 to {known - 1} and {_NO_ID}{told}"
        )
    return np.asarray((_KEPT if trained else _TABLE)[ids])


def told_train_ids(ids: set[int]) -> str | None:
    """What speaks for train ids in files that are named as label ids, by all ids in a sample of them; None if nothing.

    Label ids of streets go on above 18, with vegetation (21), sky (23) and cars (26); train ids end there.
    """
    if any(VOID <= label_id < LABEL_IDS for label_id in ids):
        return None
    seldom = sorted(ids & _SELDOM)
    return f"holds no id from {VOID} to {LABEL_IDS - 1}, but {', '.join(map(str, seldom))}" if seldom else None


def colour_labels(labels: Tensor) -> Tensor:
    """Paint train ids `(H, W)` in the colours of their classes: a picture `(3, H, W)` in [0, 1]."""
    return COLOURS[labels.long().cpu()].permute(2, 0, 1) / 255.0
