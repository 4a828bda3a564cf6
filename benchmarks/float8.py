"""Matrix products of a network's transformer blocks in float8: the possible speed-up."""

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn

_TYPE = torch.float8_e4m3fn
_LARGEST = 448.0


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


def store_in_float8(network: nn.Module) -> None:
    """Layers of self-attention and feed-forward; the text's few rows are not worth it."""
    parts = cast(Iterable[tuple[str, nn.Module]], network.named_modules())
    for name, part in list(parts):
        inside = "transformer_blocks." in name and ".attn2.to_k" not in name and ".attn2.to_v" not in name
        if inside and isinstance(part, nn.Linear):
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, Float8Linear(part))
