"""Made things come in any colour: more pictures of them, in colours that their captions then name."""

import random
from dataclasses import replace

from torch import Tensor

from training.corpus import read_words
from training.dataset import Picture

MADE = frozenset(
    ["brick", "concrete", "fabric", "marble", "metal", "panel", "paving", "plaster", "roof", "tiles", "wood"]
)
COLOURS = {
    "red": (0.62, 0.16, 0.13),
    "orange": (0.80, 0.44, 0.16),
    "yellow": (0.82, 0.72, 0.26),
    "green": (0.25, 0.48, 0.24),
    "turquoise": (0.22, 0.58, 0.57),
    "blue": (0.18, 0.32, 0.62),
    "purple": (0.42, 0.24, 0.52),
    "pink": (0.82, 0.52, 0.58),
    "brown": (0.40, 0.27, 0.18),
    "beige": (0.76, 0.68, 0.55),
    "white": (0.86, 0.86, 0.85),
    "grey": (0.50, 0.50, 0.50),
    "black": (0.12, 0.12, 0.13),
}
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def add_tints(pictures: list[Picture], each: int, rng: random.Random) -> list[Picture]:
    """The pictures, and `each` painted versions of every made thing."""
    made = [picture for picture in pictures if picture.category in MADE and picture.tint is None]
    painted = [_paint(picture, name) for picture in made for name in rng.sample(sorted(COLOURS), each)]
    return pictures + painted


def _paint(picture: Picture, name: str) -> Picture:
    words = [word for word in picture.caption.split() if word not in read_words("colours")]
    return replace(picture, caption=" ".join([name, *words]), tint=COLOURS[name])


def apply_tint(crop: Tensor, tint: tuple[float, float, float], share: float = 1.0) -> Tensor:
    """The crop's light and dark in one colour, with `share` of paint and the rest as it was.

    (3, h, w) in [-1, 1] in and out; the paint's mean colour is `tint` (0 to 1).
    """
    weights = crop.new_tensor(_LUMA).view(3, 1, 1)
    luma = (crop.add(1).div(2) * weights).sum(0, keepdim=True)
    colour = crop.new_tensor(tint).view(3, 1, 1)
    painted = (colour * luma / luma.mean().clamp(min=0.05)).clamp_(0, 1).mul_(2).sub_(1)
    return crop.lerp(painted, share)
