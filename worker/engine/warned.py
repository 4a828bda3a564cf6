"""A fault that the engine has recovered from: the picture goes on, but somebody should know."""

from dataclasses import dataclass
from typing import Literal

WarningCode = Literal[
    "batch_halved",
    "compiling",
    "control_left_out",
    "decode_widened",
    "mask_scaled",
    "prompt_cut",
    "region_faint",
]


@dataclass(frozen=True, slots=True)
class Warned:
    """What happened, in words for people."""

    code: WarningCode
    message: str
