"""A LoRA file laid over a model: every key is accounted for before the model is touched."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.adapters.lora_config import LoraScales
from worker.adapters.lora_conversion import Converter, convert_layers
from worker.adapters.lora_file import SUPPORTED, FileLayer, split_layers
from worker.adapters.lora_targets import Target
from worker.adapters.precision import DENOISERS


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


def lay_over(
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
        first = f", the first is {rest[0][:120]!r}" if rest else ""
        raise ValueError(
            f"{len(rest)} of {len(tensors)} keys have no effect on this model{first}; supported: {SUPPORTED}, of "
            f"layers of its {parts}"
        )


def _scale(layer: FileLayer, name: str, targets: Mapping[str, Target], scales: LoraScales) -> FileLayer:
    """With alpha / rank in `up` and in the bias; what alpha is left is the rank."""
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
    """(layers that fit, their keys). Of two for the same target the second does not fit.

    Of one that fits but for DoRA's magnitude the other keys are answered, so that it is what an error names.
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
    """None: shapes differ."""
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
