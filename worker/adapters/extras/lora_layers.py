"""Which layers of a model a LoRA file changes: every key is accounted for before the model is touched."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from worker.adapters.extras.lora_conversion import Converter, convert_layers
from worker.adapters.extras.lora_file import SUPPORTED, FileLayer, LoraScales, split_layers
from worker.adapters.precision import DENOISERS

_CLIP = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
_SGM = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_SGM_MIDDLE = {
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}
_SGM_INNER = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_SGM_OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


@dataclass(frozen=True, slots=True)
class Target:
    """A layer of the model that a LoRA can change.

    Args:
        part: of the pipeline, as `unet`.
        name: within the part.
        shape: of its weight: (out, in) or (out, in, h, w).
    """

    part: str
    name: str
    shape: tuple[int, ...]


def find_targets(parts: dict[str, nn.Module]) -> dict[str, Target]:
    """Every layer by each of its names; a name that fits two layers is left out."""
    found: dict[str, Target | None] = {}
    for part, network in parts.items():
        names = {name: tuple(layer.weight.shape) for name, layer in _find_layers(network)}
        for name, shape in names.items():
            target = Target(part, name, shape)
            spell = _spell_denoiser if part in DENOISERS else _spell_text_encoder
            for known_as in set(spell(part, name, network, names)):
                found[known_as] = None if known_as in found else target
    return {known_as: target for known_as, target in found.items() if target is not None}


def _find_layers(network: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    for name, layer in cast(Iterator[tuple[str, nn.Module]], network.named_modules()):
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
            yield name, layer


def _spell_denoiser(part: str, name: str, network: nn.Module, names: Collection[str]) -> Iterator[str]:
    """As diffusers, peft, ComfyUI, kohya, OneTrainer and LyCORIS do."""
    per_block = getattr(getattr(network, "config", None), "layers_per_block", None)
    spelled = {name, _spell_processor(name)}
    if part == "unet" and isinstance(per_block, int):
        spelled.add(_spell_sgm(name, per_block, names))
    for each in spelled:
        yield from _prefix(each, part, ("diffusion_model.", "model.diffusion_model."))
        for prefix in ("lora_unet_", f"lora_{part}_", "lycoris_"):
            yield prefix + each.replace(".", "_")


def _spell_text_encoder(part: str, name: str, network: nn.Module, names: Collection[str]) -> Iterator[str]:
    """CLIP's layers lie in `text_model`, except in newer versions of transformers."""
    short = name.removeprefix("text_model.")
    number = "1" if part == "text_encoder" else part.rpartition("_")[2]
    for each in {short, f"text_model.{short}"}:
        yield from _prefix(each, part, (f"text_encoders.{_CLIP.get(part, part)}.transformer.",))
        yield from _prefix(re.sub(r"self_attn\.(q|k|v)_proj$", r"self_attn.to_\1", each), part, ())
        yield from _prefix(each.replace("self_attn.out_proj", "self_attn.to_out"), part, ())
        for prefix in (f"lora_te{number}_", f"lora_{part}_", *(["lora_te_"] if number == "1" else [])):
            yield prefix + each.replace(".", "_")


def _prefix(name: str, part: str, others: Sequence[str]) -> Iterator[str]:
    """`base_model.model.` is what peft puts before all that it saves."""
    peft = "base_model.model."
    return (prefix + name for prefix in (f"{part}.", "", peft, f"{part}.{peft}", f"{peft}{part}.", *others))


def _spell_processor(name: str) -> str:
    """As diffusers named them when attention processors held them."""
    spelled = re.sub(r"\.(attn\d*)\.to_(q|k|v)$", r".\1.processor.to_\2", name)
    return re.sub(r"\.(attn\d*)\.to_out\.0$", r".\1.processor.to_out", spelled)


def _spell_sgm(name: str, per_block: int, names: Collection[str]) -> str:
    """As Stability's own UNet names them, whose blocks are counted through."""
    for ours, theirs in _SGM_MIDDLE.items():
        if name.startswith(ours):
            return theirs + _spell_sgm_inner(name.removeprefix(ours))
    match = _SGM.fullmatch(name)
    if match is None:
        return _SGM_OUTER.get(name, name)
    side, block, kind, layer, inner = match.groups()
    first = int(block) * (per_block + 1) + (side == "down")
    if kind == "downsamplers":
        return f"input_blocks.{first + per_block}.0.op"
    if kind == "upsamplers":
        attends = any(each.startswith(f"up_blocks.{block}.attentions.") for each in names)
        return f"output_blocks.{first + per_block}.{1 + attends}.{inner}"
    blocks = "input_blocks" if side == "down" else "output_blocks"
    return f"{blocks}.{first + int(layer)}.{int(kind == 'attentions')}.{_spell_sgm_inner(inner)}"


def _spell_sgm_inner(name: str) -> str:
    return _SGM_INNER.get(name, name)


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """W + up @ down; or DoRA's magnitude * (W + up @ down) / |W + up @ down| (Liu et al. 2024, eq. 5).

    Args:
        down: (rank, in) or (rank, in, h, w).
        up: (out, rank) or (out, rank, 1, 1), the file's scale multiplied in.
        bias: added to the layer's output, (out,).
        magnitude: (out,) or (1, out, 1, 1).
    """

    target: Target
    down: Tensor
    up: Tensor
    bias: Tensor | None
    magnitude: Tensor | None


def match_layers(
    tensors: Mapping[str, Tensor], scales: LoraScales, targets: Mapping[str, Target], pipe: Converter
) -> list[LoraLayer]:
    """Find the layer of the model that each layer of the file is for.

    Raises:
        ValueError: some keys are for none; says how many, names the first and what is supported.
    """
    layers, unread = split_layers(tensors)
    scaled = {name: _scale(layer, name, targets, scales) for name, layer in layers.items()}
    placed, used = _place(scaled, targets)
    left = {
        name: layer
        for name, layer in scaled.items()
        if not (layer.adds_nothing or used.issuperset(layer.keys.values()))
    }
    more, used_more = _place_converted(left, targets, pipe)
    unread += [key for layer in left.values() for key in layer.keys.values() if key not in used | used_more]
    twice = {layer.target for layer in placed} & {layer.target for layer in more}
    _require_all(tensors, {*unread, *(key for key in used_more if twice)}, targets)
    return placed + more


def _require_all(tensors: Mapping[str, Tensor], unread: set[str], targets: Mapping[str, Target]) -> None:
    rest = [key for key in tensors if key in unread]
    if rest or not tensors:
        parts = ", ".join(sorted({target.part for target in targets.values()}))
        found = (
            f"{len(rest)} of {len(tensors)} keys have no effect on this model, the first is {rest[0][:120]!r}"
            if rest
            else "it holds no tensors"
        )
        raise ValueError(f"{found}; supported: {SUPPORTED}, of layers of its {parts}")


def _scale(layer: FileLayer, name: str, targets: Mapping[str, Target], scales: LoraScales) -> FileLayer:
    """Multiply alpha / rank into `up` and the bias; the alpha that is left is the rank."""
    target, rank = targets.get(name), layer.rank
    part = target.part if target else next(each.part for each in targets.values() if each.part in DENOISERS)
    known = scales.find(part, target.name if target else name, rank)
    scale = known if layer.alpha is None else layer.alpha / rank
    scaled = {role: layer.tensors[role].float() * scale for role in ("up", "bias") if role in layer.tensors}
    alpha = {"alpha": torch.tensor(float(rank))} if "alpha" in layer.tensors else {}
    return replace(layer, tensors={**layer.tensors, **scaled, **alpha})


def _place(
    layers: Mapping[str, FileLayer], targets: Mapping[str, Target]
) -> tuple[list[LoraLayer], set[str]]:
    """Match layers by name and shape: (those that fit, their keys). Of two for one target the second does not fit.

    Of one that fits but for DoRA's magnitude the other keys count as used, so that an error names the magnitude.
    """
    placed: dict[Target, LoraLayer] = {}
    used: set[str] = set()
    for name, layer in layers.items():
        fitted = _fit(layer, targets[name]) if name in targets else None
        if fitted is not None and placed.setdefault(fitted.target, fitted) is fitted:
            used.update(layer.keys.values())
        elif fitted is None and name in targets and _fit(_without_magnitude(layer), targets[name]):
            used.update(_without_magnitude(layer).keys.values())
    return list(placed.values()), used


def _place_converted(
    layers: Mapping[str, FileLayer], targets: Mapping[str, Target], pipe: Converter
) -> tuple[list[LoraLayer], set[str]]:
    """The same for layers that diffusers has to cut up first; the keys are the file's own."""
    best: tuple[list[LoraLayer], set[str]] = ([], set())
    is_cut = any(target.part == "transformer" for target in targets.values())  # UNets have no such layers
    for converted in convert_layers(pipe, layers) if layers and is_cut else ():
        placed, used = _place(split_layers(converted.tensors)[0], targets)
        origins = set[str]().union(*(converted.origins[key] for key in used))
        best = max(best, (placed, origins | _find_alphas(layers, origins)), key=lambda found: len(found[1]))
    return best


def _find_alphas(layers: Mapping[str, FileLayer], used: set[str]) -> set[str]:
    """Of layers that are used: they are multiplied in already."""
    return {
        layer.keys["alpha"] for layer in layers.values() if "alpha" in layer.keys and layer.keys["up"] in used
    }


def _fit(layer: FileLayer, target: Target) -> LoraLayer | None:
    """The layer as its target holds it, or None where shapes differ."""
    (out, *inner), rank = target.shape, layer.rank
    ones = [1] * (len(inner) - 1)
    down = _reshape(layer.flatten_mid(), [rank, *inner])
    up = _reshape(layer.tensors["up"], [out, rank, *ones])
    bias, magnitude = layer.tensors.get("bias"), layer.tensors.get("magnitude")
    if down is None or up is None or (bias is not None and bias.shape != (out,)):
        return None
    if magnitude is not None:
        if not _is_of_outputs(layer, magnitude, out):
            return None
        magnitude = magnitude.reshape([1, out, *ones] if ones else [out])
    return LoraLayer(target, down, up, bias, magnitude)


def _without_magnitude(layer: FileLayer) -> FileLayer:
    return FileLayer(
        {role: key for role, key in layer.keys.items() if role != "magnitude"},
        {role: tensor for role, tensor in layer.tensors.items() if role != "magnitude"},
    )


def _is_of_outputs(layer: FileLayer, magnitude: Tensor, out: int) -> bool:
    """LyCORIS can also measure along the inputs, which shows as (1, in)."""
    along_inputs = (
        layer.keys["magnitude"].endswith("dora_scale") and magnitude.ndim > 1 and len(magnitude) != out
    )
    return magnitude.numel() == out and not along_inputs


def _reshape(tensor: Tensor, shape: list[int]) -> Tensor | None:
    """Trainers write a layer of 1x1 pixels with or without its last two sides."""
    return tensor.reshape(shape) if _sides(tensor.shape) == _sides(shape) else None


def _sides(shape: list[int] | torch.Size) -> list[int]:
    sides = list(shape)
    return sides[:2] if sides[2:] == [1, 1] else sides
