"""What a stage starts from: noise, a picture under noise, or noise beside a smaller picture."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from worker.engine.canvas import Paint, Plane


@dataclass(frozen=True, slots=True)
class LowBandPlan:
    """How strongly the low frequencies of the stage before guide a stage.

    Args:
        start: weight of the reference at the first step; goes in a straight line to `end` at the last. Below 0 it leads away
            from the reference.
        cutoff: share of the highest frequency of each axis up to which the reference counts; None: all do.
        tint: how far the reference first takes the mean and deviation that each channel has in what is made, in [0, 1]: at
            1 its forms count, and not its tones.
    """

    start: float = 1.0
    end: float = 0.0
    cutoff: float | None = 0.2
    tint: float = 0.0


@dataclass(frozen=True, slots=True)
class GivenPixels:
    """A picture that a stage begins with, and that is encoded for it.

    Args:
        canvas: the latent pixels that it is encoded to.
        smaller: the pixels that it was enlarged from by `BICUBIC`, as far as the canvas goes; None: it was not.
    """

    paint: Paint
    canvas: Plane
    smaller: Plane | None = None


@dataclass(frozen=True, slots=True)
class GivenLatent:
    """The kept final state of a picture that a stage begins with.

    Args:
        read: its clean latent, (C, H, W), float32.
    """

    read: Callable[[], Tensor]


Given = GivenPixels | GivenLatent


@dataclass(frozen=True, slots=True)
class Noise:
    """A stage starts from pure noise."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A stage starts from a picture under noise, and runs the tail of a schedule (Meng et al., "SDEdit", 2022).

    Args:
        skipped: steps of the whole schedule that are left out, from its beginning.
        low_band: how the picture guides the stage, if it does.
        given: the picture, at the stage's own size; None: what the stage before has made.
    """

    skipped: int
    low_band: LowBandPlan | None = None
    given: Given | None = None


@dataclass(frozen=True, slots=True)
class Upscale:
    """A stage starts from pure noise, and its model sees a smaller picture: the clean latent of it enlarged, on
    channels of its own (Saharia et al., "Image Super-Resolution via Iterative Refinement", 2021, section 2.2, here of latents).

    Args:
        augmentation: standard deviation of the noise that is added to that latent, as in its model's training
            (Ho et al., "Cascaded Diffusion Models", 2021, section 4.2).
        given: the picture; None: what the stage before has made.
        skipped: steps of the whole schedule that are left out, from its beginning: it starts from `StagePlan.kept` under
            noise in place of pure noise.
        low_band: how the picture guides the stage beside what the model sees of it, if it does.
        held: how far what is made is projected back to the picture before it was enlarged, in [0, 1].
        reduced: (height, width) in latent pixels, what the picture of the stage before is reduced to before it is enlarged;
            None: it is enlarged as it is.
    """

    augmentation: float = 0.0
    given: Given | None = None
    skipped: int = 0
    low_band: LowBandPlan | None = None
    held: float = 1.0
    reduced: tuple[int, int] | None = None


Start = Noise | Picture | Upscale
