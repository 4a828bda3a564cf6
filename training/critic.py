"""A light patch critic for sharp textures."""

import torch
from torch import Tensor, nn


class PatchCritic(nn.Module):
    """Judges overlapping patches (PatchGAN, Isola et al. 2017) without batch statistics.

    Args:
        channels: of the input.
        strides: of the 4x4 convolutions; their product is the step between patches.
    """

    def __init__(self, channels: int, width: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, stride in enumerate(strides):
            out = width * min(2**index, 4)
            layers += [nn.Conv2d(channels, out, 4, stride, padding=1), nn.LeakyReLU(0.2)]
            channels = out
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """Scores, high for real, (B, 1, h, w)."""
        return self.layers(image)


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss (Lim & Ye 2017)."""
    return torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """The other side of the hinge."""
    return -fake.mean()
