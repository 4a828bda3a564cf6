"""Which layers of a pipeline a LoRA may change, and under which names files know them."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

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
    """One layer.

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
    for name, layer in network.named_modules():
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
