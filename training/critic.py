"""Critics for sharp textures: a light one of patches, and one of the features of pretrained networks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from training.diffusion import Noising
from training.features import FeaturePair

Maps = list[list[Tensor]]  # of each backbone


class PatchCritic(nn.Module):
    """Scores overlapping patches (PatchGAN, Isola et al. 2017) without batch statistics.

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


class Backbone(nn.Module, ABC):
    """A pretrained, frozen network whose feature maps of finished latents a critic scores.

    Attributes:
        channels: of its maps.
        reads: whether its maps depend on the captions.
    """

    channels: tuple[int, ...]
    reads = False

    @abstractmethod
    def forward(self, latent: Tensor, text: Tensor) -> list[Tensor]:
        """The maps, (B, channels, h, w), of latents without noise, (B, C, side, side).

        Args:
            text: (B, tokens, width), the states of the captions.
        """


class LatentBackbone(Backbone):
    """A denoiser's maps of the latent under fresh noise, from its way down.

    Latent adversarial distillation (Sauer et al. 2024, section 4) with the denoiser's own features (Lin et
    al. 2024, section 3.3): it has seen every frequency of a latent at some level of noise.
    """

    reads = True

    def __init__(self, denoiser: UNet2DConditionModel, noising: Noising) -> None:
        super().__init__()
        widths: tuple[int, ...] = denoiser.config["block_out_channels"]
        self.channels = (*widths, widths[-1])
        self.denoiser, self.noising = denoiser.requires_grad_(False), noising

    def forward(self, latent: Tensor, text: Tensor) -> list[Tensor]:
        """The first layer's output of every block down, and the middle's; little noise more often than much: grain is at stake."""
        timestep = (999 * torch.rand(len(latent), device=latent.device).square()).long()
        noisy = self.noising.add(latent, torch.randn_like(latent), timestep)
        net, maps = self.denoiser, list[Tensor]()
        time = net.time_embedding(net.time_proj(timestep).to(noisy.dtype))
        x = net.conv_in(noisy)
        for block in net.down_blocks:
            attended = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
            x, layers = block(x, time, **attended)
            maps.append(layers[0])
        return [*maps, net.mid_block(x, time, encoder_hidden_states=text)]


class PictureBackbone(Backbone):
    """EfficientNet-Lite1's and -Lite2's maps of the decoded picture (projected GANs, Sauer et al. 2021, section 3.2).

    Two, since a denoiser learns what one network alone scores high.
    Real latents are decoded as well, so nothing is gained by what no latent of a picture decodes to.

    Args:
        reduced: whether they see the picture at half its size, too, and so twice as much of it at once.
    """

    def __init__(self, vae: AutoencoderTiny, *, reduced: bool = False) -> None:
        super().__init__()
        self.vae, self.reduced = vae.requires_grad_(False), reduced
        self.features = FeaturePair()
        self.channels = self.features.channels * (2 if reduced else 1)

    def forward(self, latent: Tensor, text: Tensor) -> list[Tensor]:
        """The maps of a window of seven eighths of the side, elsewhere each time: nothing is learned of places."""
        side = latent.shape[-1]
        window = max(4, side * 7 // 8 // 4 * 4)
        top, left = (int(each) for each in torch.randint(side - window + 1, (2,)))
        seen = latent[..., top : top + window, left : left + window]
        picture = self.vae.decoder(seen / self.vae.config["scaling_factor"])
        maps = self.features.all_stages(picture)
        if not self.reduced:
            return maps
        return [*maps, *self.features.all_stages(functional.avg_pool2d(picture, 2))]


class Critic(nn.Module):
    """Scores finished latents: a head for each feature map of its backbones.

    Args:
        backbones: one kind or several.
        text_width: of the captions' states.
    """

    def __init__(self, backbones: Sequence[Backbone], text_width: int, width: int = 64) -> None:
        super().__init__()
        self.backbones = nn.ModuleList(backbones)
        self.heads = nn.ModuleList(
            _Head(each, text_width, width) for kind in backbones for each in kind.channels
        )

    def _list_heads(self) -> list["_Head"]:
        return [head for head in self.heads if isinstance(head, _Head)]

    def extract(self, latent: Tensor, text: Tensor, known: Maps | None = None) -> Maps:
        """The maps of each backbone; gradients flow to the latents.

        Args:
            latent: (B, C, side, side), without noise.
            text: (B, tokens, width), the states of the captions.
            known: the maps of the same latents under other captions, kept where captions do not matter.
        """
        rows = known or [None] * len(self.backbones)
        return [
            row if row is not None and not kind.reads else kind(latent, text)
            for kind, row in zip(self._list_backbones(), rows, strict=True)
        ]

    def _list_backbones(self) -> list[Backbone]:
        return [each for each in self.backbones if isinstance(each, Backbone)]

    @torch.no_grad()
    def calibrate(self, maps: Maps) -> None:
        """Learn from the maps of real latents what each head's input is like on average."""
        for head, stage in zip(self._list_heads(), chain(*maps), strict=True):
            head.calibrate(stage)

    def forward(self, maps: Maps, text: Tensor) -> Tensor:
        """Scores of all places, high for real, (B, maps, h, w), each map's brought to the size of the smallest.

        Args:
            maps: as `extract` has them.
            text: (B, tokens, width), the states of the captions.
        """
        stages = list(chain(*maps))
        scores = [head(stage, text.mean(1)) for head, stage in zip(self.heads, stages, strict=True)]
        smallest = min(((stage.shape[2], stage.shape[3]) for stage in stages), key=max)
        return torch.cat([functional.adaptive_avg_pool2d(each, smallest) for each in scores], dim=1)


class _Head(nn.Module):
    """Conditioned on the caption by projection (Miyato & Koyama 2018, equation 4)."""

    mean: Tensor
    spread: Tensor

    def __init__(self, channels: int, text_width: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("spread", torch.ones(1, channels, 1, 1))
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(channels, width, 1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
            nn.LeakyReLU(0.2),
        )
        self.score = spectral_norm(nn.Conv2d(width, 1, 1))
        self.project = spectral_norm(nn.Linear(text_width, width))

    def calibrate(self, stage: Tensor) -> None:
        """Fixed from here on: a norm of each picture's own would hide how much contrast it has.

        A channel that no picture of the batch moves shall not drown the others when one does.
        """
        spread, self.mean = torch.std_mean(stage.float(), dim=(0, 2, 3), keepdim=True)
        self.spread = spread.clamp(min=0.1 * spread.mean().item())

    def forward(self, stage: Tensor, text: Tensor) -> Tensor:
        x: Tensor = self.layers((stage - self.mean) / self.spread)
        caption: Tensor = self.project(text)[:, :, None, None] / self.width**0.5
        return self.score(x) + (x * caption).sum(1, keepdim=True)


def critic_loss(real: Tensor, *false: Tensor) -> Tensor:
    """Hinge loss (Lim & Ye 2017); all kinds of `false` together weigh as much as `real`."""
    return torch.relu(1 - real).mean() + sum(torch.relu(1 + each).mean() for each in false) / len(false)


def generator_loss(fake: Tensor) -> Tensor:
    """The other side of the hinge."""
    return -fake.mean()
