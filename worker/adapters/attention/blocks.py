"""Where the networks of all families keep the attention of image tokens to each other."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from torch import nn

Order = Literal["all", "image_first", "image_last"]


@dataclass(frozen=True, slots=True)
class BlockKind:
    """Where a class of blocks keeps its attention.

    Args:
        order: where the image's tokens lie among all.
        linear: whether it is without a softmax.
    """

    attributes: tuple[str, ...]
    order: Order
    linear: bool = False


def find_attention(network: nn.Module) -> Iterator[tuple[nn.Module, BlockKind]]:
    """Every attention in which tokens of the image attend to each other."""
    blocks = cast(Iterator[tuple[str, nn.Module]], network.named_modules())
    for name, block in blocks:
        kind = _KINDS.get(type(block).__name__)
        # Where a UNet is told to, blocks attend to the text alone.
        if kind is None or _OF_TEXT in name or getattr(block, "only_cross_attention", False):
            continue
        for attribute in kind.attributes:
            attention = getattr(block, attribute, None)
            if isinstance(attention, nn.Module):
                yield attention, kind


_KINDS: Mapping[str, BlockKind] = {
    "BasicTransformerBlock": BlockKind(("attn1",), "all"),  # of UNets and PixArt
    "JointTransformerBlock": BlockKind(("attn", "attn2"), "image_first"),
    "FluxTransformerBlock": BlockKind(("attn",), "image_last"),
    "FluxSingleTransformerBlock": BlockKind(("attn",), "image_last"),
    "Flux2TransformerBlock": BlockKind(("attn",), "image_last"),
    "Flux2SingleTransformerBlock": BlockKind(("attn",), "image_last"),
    "QwenImageTransformerBlock": BlockKind(("attn",), "image_last"),
    "ZImageTransformerBlock": BlockKind(("attention",), "image_first"),
    "SanaTransformerBlock": BlockKind(("attn1",), "all", linear=True),
}
_OF_TEXT = "context_refiner"  # Z-Image's blocks that see no image
