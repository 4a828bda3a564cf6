"""An auxiliary classifier: generated latents shall be classified as their caption's category (Odena et al. 2017)."""

from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional

from training.features import Features
from training.latents import Bank, Captions, decode_to_learn
from training.measures import Probe, fit_probe
from training.parts import place
from training.progress import half_precision

SIDE = 64  # of the window that is classified, latent pixels
BATCH = 64


class DecodedFeatures(nn.Module):
    """EfficientNet-Lite2's features of decoded latents; gradients flow through it."""

    def __init__(self, vae: AutoencoderTiny) -> None:
        super().__init__()
        self.vae, self.network = vae.requires_grad_(False), Features("efficientnet-lite2")

    def forward(self, latent: Tensor) -> Tensor:
        """Pooled features, (B, 1280), of latents (B, C, side, side)."""
        with half_precision(latent.device):
            return self.network(decode_to_learn(self.vae, latent)).float()


@dataclass(frozen=True, slots=True)
class AuxiliaryClassifier:
    """A linear one of EfficientNet-Lite2's features, learned from real pictures and fixed while a denoiser learns.

    Attributes:
        labels: (P,), the category of each picture.
    """

    features: DecodedFeatures
    probe: Probe
    labels: Tensor

    def measure_loss(self, latent: Tensor, owners: Tensor) -> Tensor:
        """The mean cross-entropy of the owners' categories; who is sure enough is not asked for more.

        Args:
            latent: (B, C, side, side); a window of it is classified, elsewhere each time.
            owners: (B,), the picture whose caption each was generated for.
        """
        scores = self.probe.score(self.features(_cut(latent)))
        return functional.cross_entropy(scores, self.labels[owners], label_smoothing=0.1)


def _cut(latent: Tensor) -> Tensor:
    side = min(SIDE, latent.shape[-1])
    top, left = (int(each) for each in torch.randint(latent.shape[-1] - side + 1, (2,)))
    return latent[..., top : top + side, left : left + side]


def build_classifier(
    vae: AutoencoderTiny, bank: Bank, captions: Captions, most: int = 8000
) -> AuxiliaryClassifier:
    """Learn the categories from `most` real latents at most."""
    device, names = bank.latents.device, sorted(set(captions.categories))
    features = place(DecodedFeatures(vae), device, torch.channels_last)
    latents = bank.latents[:most]
    owners: list[int] = bank.owners[:most].cpu().numpy().tolist()
    with torch.no_grad():
        seen = torch.cat([features(part.float()) for part in torch.split(latents, BATCH)])
    probe = fit_probe(seen, [captions.categories[owner] for owner in owners], names)
    labels = torch.tensor([names.index(category) for category in captions.categories], device=device)
    return AuxiliaryClassifier(features, probe, labels)
