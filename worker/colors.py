"""What an enlarged picture's colours are corrected by. The worker applies it, so nothing here needs numpy."""

from array import array
from dataclasses import dataclass
from itertools import product

from api_schemas.generation import BitDepth


@dataclass(frozen=True, slots=True)
class ColorFix:
    """gain * level + offset in each channel, of levels in [0, 1]."""

    gains: tuple[float, ...]
    offsets: tuple[float, ...]

    def tabulate(self, bit_depth: BitDepth) -> "array[int]":
        """The new level of every level, channel by channel for each: the same wherever it is applied."""
        most, channels = 2**bit_depth - 1, list(zip(self.gains, self.offsets, strict=True))
        levels = (
            level * gain + offset * most for level, (gain, offset) in product(range(most + 1), channels)
        )
        return array("B" if bit_depth == 8 else "H", (min(max(round(level), 0), most) for level in levels))
