"""Critics for sharp textures: a light one of patches, and one that sees latents as a known denoiser does."""

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm


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


class LatentCritic(nn.Module):
    """Judges noisy latents by what a frozen denoiser makes of them on its way down, a head for each stage.

    Latent adversarial distillation (Sauer et al. 2024, section 4) with the denoiser's own features (Lin et
    al. 2024, section 3.3): it has seen every frequency of a latent at some level of noise.
    """

    def __init__(self, denoiser: UNet2DConditionModel, width: int = 64) -> None:
        super().__init__()
        self.denoiser = denoiser.requires_grad_(False)
        widths = denoiser.config.block_out_channels
        self.heads = nn.ModuleList(
            _Head(channels, denoiser.config.cross_attention_dim, width) for channels in (*widths, widths[-1])
        )

    def forward(self, noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """Scores of all places, high for real, (B, stages, h, w), each stage brought to the size of the smallest.

        Args:
            noisy: latents (B, C, side, side) at their timesteps, (B,).
            text: (B, tokens, width), the states of the captions.
        """
        maps = self._look(noisy, timestep, text)
        scores = [head(stage, text.mean(1)) for head, stage in zip(self.heads, maps, strict=True)]
        return torch.cat([functional.adaptive_avg_pool2d(each, maps[-1].shape[2:]) for each in scores], dim=1)

    def _look(self, noisy: Tensor, timestep: Tensor, text: Tensor) -> list[Tensor]:
        """The first layer's output of every block down, and the middle's."""
        net, maps = self.denoiser, list[Tensor]()
        time = net.time_embedding(net.time_proj(timestep).to(noisy.dtype))
        x = net.conv_in(noisy)
        for block in net.down_blocks:
            heard = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
            x, layers = block(x, time, **heard)
            maps.append(layers[0])
        return [*maps, net.mid_block(x, time, encoder_hidden_states=text)]


class _Head(nn.Module):
    """Hears the caption by projection (Miyato & Koyama 2018, equation 4)."""

    def __init__(self, channels: int, text_width: int, width: int) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.GroupNorm(16, channels, affine=False),
            spectral_norm(nn.Conv2d(channels, width, 1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
            nn.LeakyReLU(0.2),
        )
        self.score = spectral_norm(nn.Conv2d(width, 1, 1))
        self.hear = spectral_norm(nn.Linear(text_width, width))

    def forward(self, stage: Tensor, text: Tensor) -> Tensor:
        seen = self.look(stage)
        return self.score(seen) + (seen * self.hear(text)[:, :, None, None]).mean(1, keepdim=True)


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss (Lim & Ye 2017)."""
    return torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """The other side of the hinge."""
    return -fake.mean()
