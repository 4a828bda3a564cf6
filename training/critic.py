"""Critics for sharp textures: a light one of patches, and one that sees through a known network."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from training.features import Features, normalize


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


class FeatureCritic(nn.Module):
    """Judges colours, and the feature maps of a known network (projected GANs, Sauer et al. 2021, section 3.2); a head for each."""

    def __init__(self, features: Features, text_width: int, width: int = 64) -> None:
        super().__init__()
        self.features = features
        self.heads = nn.ModuleList(
            _Head(channels, text_width, width) for channels in (3, *features.chosen.values())
        )

    def look(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """What the heads judge, and the pooled features of the deepest stage, (B, channels).

        Args:
            image: (B, 3, H, W) in [-1, 1].
        """
        stages = self.features.stages(image)
        colours = functional.adaptive_avg_pool2d(image, stages[-1].shape[2:])
        return [colours, *map(normalize, stages)], stages[-1].mean(dim=(2, 3))

    def forward(self, maps: list[Tensor], text: Tensor) -> Tensor:
        """Scores of all places, high for real, (B, stages, h, w), each stage brought to the size of the smallest.

        Args:
            maps: what `look` gave.
            text: (B, tokens, width), the states of the captions.
        """
        scores = [head(stage, text.mean(1)) for head, stage in zip(self.heads, maps, strict=True)]
        return torch.cat([functional.adaptive_avg_pool2d(each, maps[-1].shape[2:]) for each in scores], dim=1)


class _Head(nn.Module):
    """Hears the caption by projection (Miyato & Koyama 2018, equation 4)."""

    def __init__(self, channels: int, text_width: int, width: int) -> None:
        super().__init__()
        self.gain = channels**0.5  # features have unit length over the channels
        self.look = nn.Sequential(
            spectral_norm(nn.Conv2d(channels, width, 1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
            nn.LeakyReLU(0.2),
        )
        self.score = spectral_norm(nn.Conv2d(width, 1, 1))
        self.hear = spectral_norm(nn.Linear(text_width, width))

    def forward(self, stage: Tensor, text: Tensor) -> Tensor:
        seen = self.look(self.gain * stage)
        return self.score(seen) + (seen * self.hear(text)[:, :, None, None]).mean(1, keepdim=True)


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss (Lim & Ye 2017)."""
    return torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """The other side of the hinge."""
    return -fake.mean()
