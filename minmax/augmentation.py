"""What training may do to images that changes their content, and therefore can be switched off."""

from dataclasses import dataclass

from minmax.runtime.config import Switch


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation."""

    flip: Switch = True
    """Mirror half of the images; false for signs, text and all else that is another thing in a mirror."""
