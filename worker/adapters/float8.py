"""Matrix products of a network's transformer blocks in eight bits, which GPUs do at twice the speed.

In place of torchao's dynamic quantization, which wraps tensors in a class of their own: this is one function of PyTorch.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

_TYPE = torch.float8_e4m3fn
_LARGEST = 448.0
_UNIT = 16  # sides of a product are multiples of this
_NOT = (
    ".norm",
    ".attn2.to_k",
    ".attn2.to_v",
)  # of a few rows each: what steers normalisations, what reads the text


class Float8Linear(nn.Module):
    """Each row of the input and each of the weights is scaled to the type's range; sums are in float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = _narrow(linear.weight.detach())
        self.weight, self.scale = nn.Buffer(weight), nn.Buffer(scale)
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, value: Tensor) -> Tensor:
        rows, scale = _narrow(value.flatten(0, -2))
        multiply = cast(
            Callable[..., Tensor],
            torch._scaled_mm,  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        )
        product = multiply(
            rows, self.weight.T, scale, self.scale.T, self.bias, out_dtype=value.dtype, use_fast_accum=True
        )
        return cast(Tensor, product.unflatten(0, value.shape[:-1]))  # pyright: ignore[reportUnknownMemberType]


def _narrow(value: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (M, K) in eight bits, and what each is to be multiplied with, (M, 1), float32."""
    scale = value.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / _LARGEST
    return (value.float() / scale).to(_TYPE), scale


def multiplies_in_float8(weight: str, shape: Sequence[int]) -> bool:
    """Whether a weight of that name and shape is one of a product in eight bits: attention and feed-forward."""
    fits = len(shape) == 2 and not any(side % _UNIT for side in shape)
    return fits and "transformer_blocks." in weight and not any(part in weight for part in _NOT)


def multiply_in_float8(network: nn.Module) -> int:
    """Replace the layers in place.

    Returns:
        how many there are.
    """
    parts = cast(Iterable[tuple[str, nn.Module]], network.named_modules())
    chosen = [
        (name, part)
        for name, part in parts
        if type(part) is nn.Linear and multiplies_in_float8(name, part.weight.shape)
    ]
    for name, part in chosen:
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, Float8Linear(part))
    return len(chosen)


def can_multiply_in_float8(device: torch.device) -> bool:
    """GPUs from Hopper on scale rows apart; CPUs can all do it, slowly."""
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (9, 0)
