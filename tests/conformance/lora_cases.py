"""Which layouts of LoRA files take effect, for which layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tests.conformance.lora_files import (
    Layer,
    Layout,
    Tensors,
    dotted,
    kohya,
    old_diffusers,
    peft,
    processors,
)

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0"
UNET = (
    "unet.conv_in", "unet.conv_out", "unet.time_embedding.linear_1", "unet.down_blocks.0.resnets.0.conv1",
    "unet.down_blocks.0.resnets.0.time_emb_proj", "unet.down_blocks.0.downsamplers.0.conv",
    "unet.down_blocks.1.attentions.0.proj_in", "unet.down_blocks.1.resnets.0.conv_shortcut",
    f"unet.{ATTENTION}.attn1.to_q", f"unet.{ATTENTION}.attn2.to_k", f"unet.{ATTENTION}.attn2.to_out.0",
    f"unet.{ATTENTION}.ff.net.0.proj", f"unet.{ATTENTION}.ff.net.2", "unet.mid_block.resnets.1.conv2",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v",
    "unet.up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_q", "unet.up_blocks.0.upsamplers.0.conv",
    "unet.up_blocks.1.resnets.1.conv1",
)  # fmt: skip
TEXT = ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")
ONE = tuple(f"text_encoder.encoder.layers.0.{each}" for each in TEXT)
TWO = (
    *(f"text_encoder_2.text_model.encoder.layers.0.{each}" for each in TEXT),
    "text_encoder_2.text_projection",
)
XL = ("unet.add_embedding.linear_2",)
ATTENTIONS = tuple(name for name in UNET if ".attn" in name)

# What the tiny UNet's layers are called in Stability's own code: one layer a block and a sampler, counted through.
STABILITY = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "down_blocks.0.resnets.0.time_emb_proj": "input_blocks.1.0.emb_layers.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.attentions.0.": "input_blocks.3.1.",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.3.0.skip_connection",
    "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
    "mid_block.attentions.0.": "middle_block.1.",
    "up_blocks.0.attentions.1.": "output_blocks.1.1.",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.1.conv1": "output_blocks.3.0.in_layers.2",
}
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


def stability(name: str, joint: str) -> str:
    for ours, theirs in STABILITY.items():
        ours, theirs = (each.replace(".", joint) for each in (ours, theirs))
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def middle(layer: Layer) -> Tensors:
    """LyCORIS with use_tucker: down and up are 1x1, a middle one has the pixels; `down` is their product."""
    name, rank = f"lora_unet_{layer.flat}", len(layer.down)
    tensors = kohya(KOHYA)(layer)
    if layer.down.ndim == 4 and layer.down.shape[2] > 1:
        basis = torch.linalg.qr(torch.randn(layer.down.shape[1], layer.down.shape[1]))[0]
        rank = len(basis)
        tensors[f"{name}.lora_mid.weight"] = torch.einsum("aihw,bi->abhw", layer.down, basis)
        tensors[f"{name}.lora_mid.weight"] = torch.cat(
            [
                tensors[f"{name}.lora_mid.weight"],
                torch.zeros(max(rank - len(layer.down), 0), rank, *layer.down.shape[2:]),
            ]
        )[:rank]
        tensors[f"{name}.lora_down.weight"] = basis[:, :, None, None]
        up = torch.cat([layer.up, torch.zeros(len(layer.up), max(rank - len(layer.down), 0), 1, 1)], 1)
        tensors[f"{name}.lora_up.weight"] = up
        tensors[f"{name}.alpha"] = torch.tensor(layer.alpha * rank / len(layer.down))
    return tensors


def square(layer: Layer) -> Tensors:
    """Layers of 1x1 pixels without their last sides, and others with them."""
    tensors = kohya(KOHYA)(layer)
    is_wide = layer.down.ndim == 4
    if is_wide and layer.down.shape[2] > 1:
        return tensors
    return {
        key: tensor if tensor.ndim == 0 else tensor.flatten(1) if is_wide else tensor[:, :, None, None]
        for key, tensor in tensors.items()
    }


def untrained(layer: Layer) -> Tensors:
    """With what trainers write and did not train: zeros add nothing, wherever they would go."""
    zeros = {
        f"{layer.flat}.diff_b": torch.zeros(4),
        f"lora_unet_nowhere_{layer.flat}.lora_down.weight": torch.randn(2, 4),
        f"lora_unet_nowhere_{layer.flat}.lora_up.weight": torch.zeros(4, 2),
        f"lora_unet_nowhere_{layer.flat}.alpha": torch.tensor(1.0),
    }
    return kohya(KOHYA)(layer) | zeros


@dataclass(frozen=True)
class Case:
    name: str
    layout: Layout
    layers: Sequence[str]
    kind: str = "plain"
    strength: float = 1.0
    tied: Sequence[str] = ()


def _unet_cases(all_layers: Sequence[str], text: Mapping[str, str]) -> list[Case]:
    unet = [name for name in all_layers if name.startswith("unet.")]
    scaleless, bare = Layout(peft(), has_alpha=False), peft("base_model.model.", part=False)
    return [
        Case("diffusers", scaleless, all_layers),
        Case("diffusers, alphas in the header", Layout(peft(), config="header"), all_layers),
        Case("diffusers, alphas as keys", Layout(dotted("", "lora_A", "lora_B", part=True)), all_layers),
        Case("diffusers, biases", Layout(peft(), has_alpha=False), all_layers, "bias"),
        Case("diffusers before peft", Layout(old_diffusers, has_alpha=False), all_layers),
        Case("attention processors", Layout(processors("unet."), has_alpha=False), ATTENTIONS),
        Case("attention processors, bare", Layout(processors(""), has_alpha=False), ATTENTIONS),
        Case("peft", Layout(bare, config="peft"), unet),
        Case("peft without its configuration", Layout(bare, has_alpha=False), unet),
        Case("peft, bare", Layout(peft(part=False), config="peft"), unet),
        Case("peft, from inside a run", Layout(peft(adapter=".default"), has_alpha=False), all_layers),
        Case("peft, of the pipeline's parts", Layout(peft("base_model.model."), has_alpha=False), all_layers),
        Case("kohya", Layout(kohya(text)), all_layers),
        Case("kohya, half strength", Layout(kohya(text)), all_layers, strength=0.5),
        Case("kohya, less than nothing", Layout(kohya(text)), all_layers, strength=-0.6),
        Case("kohya, Stability's names", Layout(kohya(text, lambda name: stability(name, "_"))), all_layers),
        Case("ComfyUI, Stability's names", Layout(_comfy), all_layers),
        Case("LyCORIS, middle convolutions", Layout(middle), unet),
        Case("1x1 pixels or none", Layout(square), unet),
        Case("with what was not trained", Layout(untrained), unet),
        Case("text encoders only", Layout(kohya(text)), [each for each in all_layers if each not in unet]),
        Case("DoRA, kohya", Layout(kohya(text)), all_layers, "dora"),
        Case("DoRA, kohya, half strength", Layout(kohya(text)), all_layers, "dora", 0.5),
        Case("DoRA, diffusers", scaleless, all_layers, "dora"),
        Case("DoRA, peft", Layout(bare, config="peft"), unet, "dora"),
        Case("DoRA of every other layer", Layout(kohya(text)), all_layers, "mixed"),
    ]  # fmt: skip


def _comfy(layer: Layer) -> Tensors:
    prefixes = {
        "unet": "diffusion_model.",
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.clip_g.transformer.",
    }
    name = stability(layer.known_as, ".") if layer.part == "unet" else layer.known_as
    return {
        f"{prefixes[layer.part]}{name}.lora_up.weight": layer.up,
        f"{prefixes[layer.part]}{name}.lora_down.weight": layer.down,
        f"{prefixes[layer.part]}{name}.alpha": torch.tensor(layer.alpha),
    }


UNET_CASES = {
    "stable-diffusion": _unet_cases((*UNET, *ONE), KOHYA | {"text_encoder": "lora_te_"}),
    "stable-diffusion-xl": _unet_cases((*UNET, *XL, *ONE, *TWO), KOHYA),
}
