"""A linear map from latent to RGB, so that a preview costs next to nothing."""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from api_schemas.folder_settings import LatentRgb
from worker.engine.canvas import Plane
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan
from worker.engine.vae.decode import DecodedTile, decode
from worker.engine.vae.operations import Decoder


@dataclass(frozen=True, slots=True)
class PreviewMap:
    """RGB in [0, 1] = weight (3, C) @ latent (C, h, w) + bias (3,)."""

    weight: Tensor
    bias: Tensor


def read_preview_map(stored: LatentRgb) -> PreviewMap:
    return PreviewMap(torch.tensor(stored.weight), torch.tensor(stored.bias))


@torch.inference_mode()
def fit_preview_map(decoder: Decoder, channels: int, device: torch.device) -> PreviewMap:
    """Least squares between smooth random latents and what the decoder makes of them."""
    coarse = initial_noise(0, channels, 16, 16)[None]
    latent = F.interpolate(coarse, scale_factor=4, mode="bicubic")[0]
    events = decode(latent.to(device), decoder, Plane(latent.shape[-2], latent.shape[-1]), DecodePlan())
    image = next(event.image for event in events if isinstance(event, DecodedTile)).float().cpu()
    levels = F.avg_pool2d(image[None] / 2 + 0.5, decoder.scale)[0]
    return _solve(latent, levels)


def _solve(latent: Tensor, levels: Tensor) -> PreviewMap:
    inputs = torch.cat([latent.flatten(1), torch.ones(1, latent[0].numel())]).T
    solution = cast(Tensor, torch.linalg.lstsq(inputs, levels.flatten(1).T).solution)  # pyright: ignore[reportUnknownMemberType]
    return PreviewMap(solution[:-1].T.contiguous(), solution[-1].contiguous())
