"""LoRA files of the transformer families: layouts that all have, and each family's own."""

from tests.conformance.fused_layers import FLUX_1, FLUX_2, Z_IMAGE, fuse, xlabs
from tests.conformance.lora_cases import Case
from tests.conformance.lora_files import Layout, dotted, kohya, peft
from tests.worker.adapters.families.transformers import CASES

FLAT = {"transformer": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
LAYERS = {
    "stable-diffusion-3": (
        "attn.to_q", "attn.to_out.0", "attn.add_k_proj", "attn2.to_v", "ff.net.0.proj", "ff_context.net.2", "norm1.linear",
    ),
    "flux": ("attn.to_q", "attn.to_out.0", "attn.add_k_proj", "attn.to_add_out", "ff.net.0.proj", "norm1.linear"),
    "sana": ("attn1.to_q", "attn2.to_out.0", "ff.conv_inverted", "ff.conv_point"),
    "qwen-image": ("attn.to_q", "attn.to_out.0", "attn.add_k_proj", "img_mlp.net.0.proj", "txt_mlp.net.2", "img_mod.1"),
    "z-image": ("attention.to_q", "attention.to_out.0", "feed_forward.w2", "adaLN_modulation.0"),
    "flux-2": ("attn.to_q", "attn.to_out.0", "attn.add_k_proj", "ff.linear_in", "ff_context.linear_out"),
}  # fmt: skip
OUTER = {
    "stable-diffusion-3": ("proj_out", "context_embedder", "time_text_embed.timestep_embedder.linear_1"),
    "flux": (
        "proj_out",
        "x_embedder",
        "single_transformer_blocks.0.proj_out",
        "single_transformer_blocks.0.attn.to_v",
    ),
    "sana": ("proj_out", "caption_projection.linear_1"),
    "qwen-image": ("proj_out", "img_in", "norm_out.linear"),
    "z-image": ("cap_embedder.1", "noise_refiner.0.attention.to_k", "all_final_layer.2-1.linear"),
    "flux-2": (
        "proj_out",
        "x_embedder",
        "single_transformer_blocks.0.attn.to_out",
        "single_stream_modulation.linear",
    ),
}
CLIP = {
    "stable-diffusion-3": tuple(
        f"{part}.text_model.encoder.layers.0.{each}"
        for part in ("text_encoder", "text_encoder_2")
        for each in ("self_attn.q_proj", "mlp.fc1")
    ),
    "flux": ("text_encoder.encoder.layers.0.self_attn.q_proj", "text_encoder.encoder.layers.0.mlp.fc1"),
}
FAMILIES = {
    "stable-diffusion-3": "stable-diffusion-3",
    "flux-dev": "flux",
    "sana": "sana",
    "qwen-image": "qwen-image",
    "z-image": "z-image",
    "flux-2": "flux-2",
}


def _layers(family: str) -> list[str]:
    block = "layers.0" if family == "z-image" else "transformer_blocks.0"
    return [
        *(f"transformer.{block}.{each}" for each in LAYERS[family]),
        *(f"transformer.{each}" for each in OUTER[family]),
    ]


def _cases(name: str) -> list[Case]:
    family = FAMILIES[name]
    inner = _layers(family)
    every = [*inner, *CLIP.get(family, ())]
    cases = [
        Case("diffusers", Layout(peft(), has_alpha=False), every),
        Case("diffusers, alphas in the header", Layout(peft(), config="header"), every),
        Case("diffusers, alphas as keys", Layout(dotted("", "lora_A", "lora_B", part=True)), every),
        Case("diffusers, biases", Layout(peft(), has_alpha=False), inner, "bias"),
        Case("peft", Layout(peft("base_model.model.", part=False), config="peft"), inner),
        Case("peft, bare", Layout(peft(part=False), config="peft"), inner),
        Case("peft, from inside a run", Layout(peft(adapter=".default", part=False), has_alpha=False), inner),
        Case("ComfyUI", Layout(dotted("diffusion_model.", "lora_down", "lora_up")), inner),
        Case("ComfyUI, peft's names", Layout(dotted("diffusion_model.", "lora_A", "lora_B", alpha=False), has_alpha=False), inner),
        Case("bare, kohya's names", Layout(dotted("", "lora_down", "lora_up")), inner),
        Case("kohya", Layout(kohya(FLAT)), every),
        Case("OneTrainer", Layout(kohya(FLAT | {"transformer": "lora_transformer_"})), every),
        Case("LyCORIS", Layout(kohya({"transformer": "lycoris_"})), inner),
        Case("DoRA, diffusers", Layout(peft(), has_alpha=False), every, "dora"),
        Case("DoRA, kohya, half strength", Layout(kohya(FLAT)), every, "dora", 0.5),
    ]  # fmt: skip
    return cases + _fused_cases(family)


def _fused_cases(family: str) -> list[Case]:
    """q, k and v in one, as the makers' own code has them."""
    model = {"flux": FLUX_1, "flux-2": FLUX_2, "z-image": Z_IMAGE}.get(family)
    if model is None:
        return []
    writers = {
        "kohya": kohya(FLAT),
        "ComfyUI": dotted("diffusion_model.", "lora_A", "lora_B"),
        "ComfyUI, kohya's names": dotted("diffusion_model.", "lora_down", "lora_up"),
        "peft": dotted("base_model.model.", "lora_A", "lora_B"),
        "bare": dotted("", "lora_A", "lora_B"),
    }
    if family == "flux":
        writers["x-labs"] = xlabs
    return [
        Case(
            f"makers' names, {name}",
            Layout(fuse(model, writer), has_alpha=name != "x-labs"),
            [each for each in model.layers if name != "x-labs" or "attn" in each or "single" in each],
            tied=model.tied,
        )
        for name, writer in writers.items()
    ]


TRANSFORMER_CASES = [(case, each) for case in CASES if case.name in FAMILIES for each in _cases(case.name)]
