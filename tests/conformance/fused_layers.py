"""Layers as the makers of FLUX and Z-Image have them: q, k and v are one, and others have other names."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from tests.conformance.lora_files import Layer, Tensors

_BLOCK, _SINGLE = "transformer_blocks.0", "single_transformer_blocks.0"


@dataclass(frozen=True)
class Makers:
    """
    Args:
        layers: part and name, as diffusers calls them.
        tied: those that are one, `fused`.
        names: what diffusers calls the others, and what their makers do.
    """

    layers: Sequence[str]
    tied: Sequence[str]
    fused: str
    names: dict[str, str]


_QKV = tuple(f"{_BLOCK}.attn.to_{each}" for each in "qkv")
_FLUX = {
    f"{_BLOCK}.attn.to_out.0": "double_blocks.0.img_attn.proj",
    f"{_BLOCK}.attn.to_add_out": "double_blocks.0.txt_attn.proj",
    "x_embedder": "img_in",
    "proj_out": "final_layer.linear",
}
_FLUX_1 = _FLUX | {
    f"{_BLOCK}.ff.net.0.proj": "double_blocks.0.img_mlp.0",
    f"{_BLOCK}.norm1.linear": "double_blocks.0.img_mod.lin",
    f"{_SINGLE}.proj_out": "single_blocks.0.linear2",
}
_FLUX_2 = _FLUX | {
    f"{_BLOCK}.ff_context.linear_out": "double_blocks.0.txt_mlp.2",
    f"{_SINGLE}.attn.to_out": "single_blocks.0.linear2",
    f"{_SINGLE}.attn.to_qkv_mlp_proj": "single_blocks.0.linear1",
}
_Z_QKV = tuple(f"layers.0.attention.to_{each}" for each in "qkv")
_Z_IMAGE = {
    "layers.0.attention.to_out.0": "layers.0.attention.out",
    "layers.0.feed_forward.w1": "layers.0.feed_forward.w1",
}


def _describe(tied: Sequence[str], fused: str, names: dict[str, str]) -> Makers:
    return Makers([f"transformer.{name}" for name in (*tied, *names)], tied, fused, names)


FLUX_1 = _describe(_QKV, "double_blocks.0.img_attn.qkv", _FLUX_1)
FLUX_2 = _describe(_QKV, "double_blocks.0.img_attn.qkv", _FLUX_2)
Z_IMAGE = _describe(_Z_QKV, "layers.0.attention.qkv", _Z_IMAGE)


def tie(layers: Sequence[Layer], tied: Sequence[str]) -> list[Layer]:
    """Those that are one in the file have the same `down` and alpha."""
    by_name = {layer.name: layer for layer in layers}
    if not tied:
        return list(layers)
    first = by_name[tied[0]]
    return [
        replace(layer, down=first.down, up=first.up.roll(tied.index(layer.name), 0), alpha=first.alpha)
        if layer.name in tied
        else layer
        for layer in layers
    ]


def fuse(makers: Makers, write: Callable[[Layer], Tensors]) -> Callable[[Layer], Tensors]:
    """The ups of tied layers one upon the other, at the last of them."""
    held: list[Layer] = []

    def wrap(layer: Layer) -> Tensors:
        if layer.name not in makers.tied:
            return write(replace(layer, name=makers.names[layer.name]))
        held.append(layer)
        if len(held) < len(makers.tied):
            return {}
        ups = torch.cat([each.up for each in held])
        held.clear()
        return write(replace(layer, name=makers.fused, up=ups))

    return wrap


def xlabs(layer: Layer) -> Tensors:
    """As X-Labs trained them, through processors of their own."""
    name = re.sub(r"img_attn\.(qkv|proj)", r"processor.\1_lora1", layer.name)
    name = name.replace("txt_attn.proj", "processor.proj_lora2").replace("linear2", "processor.proj_lora")
    return {f"{name}.down.weight": layer.down, f"{name}.up.weight": layer.up}
