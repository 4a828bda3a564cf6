"""Which table holds the fields of which part of which family.

Where several families have a part of one class, most of its fields are tried in one of them: what is read there
is read by the class. What a family's own pipeline or adapter reads is tried in each.
"""

from dataclasses import dataclass

from tests.conformance import autoencoder_fields as vae
from tests.conformance import scheduler_fields as scheduler
from tests.conformance import text_fields as text
from tests.conformance import transformer_fields as transformer
from tests.conformance import unet_fields as unet
from tests.conformance.fields import Fields, honoured, inert


@dataclass(frozen=True, slots=True)
class Table:
    """Of one part.

    Args:
        tried: here.
        elsewhere: (family, part) of the same class, where the other fields are tried.
    """

    tried: Fields
    elsewhere: tuple[tuple[str, str], ...] = ()


_SD, _SDXL, _SD3, _FLUX, _QWEN, _Z = (
    "stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3", "flux-dev", "qwen-image", "z-image",
)  # fmt: skip
_PIXART, _SANA, _FLUX_2, _KLEIN = "pixart-sigma", "sana", "flux-2", "flux-2-klein"
_NO_FIELDS = Table({})

TABLES: dict[str, dict[str, Table]] = {
    _SD: {
        "": Table({"requires_safety_checker": inert("pictures are not judged here", True)}),
        "unet": Table(unet.UNET),
        "vae": Table(vae.AUTOENCODER_KL),
        "scheduler": Table(scheduler.DPM),
        "text_encoder": Table(text.CLIP),
        "tokenizer": Table(text.CLIP_TOKENIZER),
    },
    _SDXL: {
        "unet": Table(unet.OF_SDXL, ((_SD, "unet"),)),
        "vae": Table(vae.OF_SDXL, ((_SD, "vae"),)),
        "scheduler": Table(scheduler.EULER),
        "text_encoder": Table(text.POOLED_CLIP | {"projection_dim": inert("of the other text encoder", 16)} | {"eos_token_id": inert("of the other text encoder", 2)}, ((_SD, "text_encoder"),)),
        "text_encoder_2": Table(text.POOLED_CLIP, ((_SD, "text_encoder"),)),
        "tokenizer": Table({}, ((_SD, "tokenizer"),)),
        "tokenizer_2": Table({"pad_token": honoured("c"), "padding_side": honoured("left")}, ((_SD, "tokenizer"),)),
    },
    "stable-diffusion-xl-plain": {
        "": Table({
            "force_zeros_for_empty_prompt": honoured(False),
            "add_watermarker": inert("not of the folder but of the call", True),
        }),
    },
    "stable-diffusion-tiny": {"vae": Table(vae.AUTOENCODER_TINY)},
    "flux-dev-tiny": {"vae": Table(vae.TINY_OF_FLUX, (("stable-diffusion-tiny", "vae"),))},
    _SD3: {
        "": _NO_FIELDS,
        "transformer": Table(transformer.SD_3),
        "vae": Table(vae.OF_SD_3, ((_SD, "vae"),)),
        "scheduler": Table(scheduler.FLOW_EULER),
        "text_encoder": Table({"eos_token_id": honoured(2)}, ((_SD, "text_encoder"),)),
        "text_encoder_2": Table({"eos_token_id": honoured(2)}, ((_SD, "text_encoder"),)),
        "text_encoder_3": Table({"num_layers": honoured(2)}, ((_PIXART, "text_encoder"), (_SD, "text_encoder"))),
        "tokenizer": Table({}, ((_SD, "tokenizer"),)),
        "tokenizer_2": Table({}, ((_SD, "tokenizer"),)),
        "tokenizer_3": Table({}, ((_PIXART, "tokenizer"), (_SD, "tokenizer"))),
    },
    _FLUX: {
        "": _NO_FIELDS,
        "transformer": Table(transformer.FLUX),
        "vae": Table(vae.OF_FLUX, ((_SD, "vae"),)),
        "scheduler": Table(scheduler.SHIFTED_FLOW_EULER, ((_SD3, "scheduler"),)),
        "text_encoder": Table({"eos_token_id": honoured(2)}, ((_SD, "text_encoder"),)),
        "text_encoder_2": Table({"num_layers": honoured(2)}, ((_PIXART, "text_encoder"), (_SD, "text_encoder"))),
        "tokenizer": Table({}, ((_SD, "tokenizer"),)),
        "tokenizer_2": Table({}, ((_PIXART, "tokenizer"), (_SD, "tokenizer"))),
    },
    "flux-schnell": {"transformer": Table(transformer.FLUX_SCHNELL, ((_FLUX, "transformer"),))},
    _PIXART: {
        "": _NO_FIELDS,
        "transformer": Table(transformer.PIXART),
        "vae": Table(vae.OF_PIXART, ((_SD, "vae"),)),
        "scheduler": Table({"prediction_type": honoured("v_prediction"), "timestep_spacing": honoured("trailing")}, ((_SD, "scheduler"),)),
        "text_encoder": Table(text.T5, ((_SD, "text_encoder"),)),
        "tokenizer": Table(text.T5_TOKENIZER, ((_SD, "tokenizer"),)),
    },
    _SANA: {
        "": _NO_FIELDS,
        "transformer": Table(transformer.SANA),
        "vae": Table(vae.AUTOENCODER_DC),
        "scheduler": Table(scheduler.OF_SANA, ((_SD, "scheduler"),)),
        "text_encoder": Table(text.GEMMA_2, ((_SD, "text_encoder"),)),
        "tokenizer": Table(text.GEMMA_TOKENIZER, ((_SD, "tokenizer"),)),
    },
    _QWEN: {
        "": _NO_FIELDS,
        "transformer": Table(transformer.QWEN_IMAGE),
        "vae": Table(vae.AUTOENCODER_KL_QWEN_IMAGE),
        "scheduler": Table({"base_shift": honoured(0.1), "shift_terminal": honoured(0.1)}, ((_SD3, "scheduler"),)),
        "text_encoder": Table(text.QWEN_2_5_VL, ((_Z, "text_encoder"), (_SD, "text_encoder"))),
        "tokenizer": Table({}, ((_Z, "tokenizer"), (_SD, "tokenizer"))),
    },
    _Z: {
        "": _NO_FIELDS,
        "transformer": Table(transformer.Z_IMAGE),
        "vae": Table(vae.OF_Z_IMAGE, ((_SD, "vae"),)),
        "scheduler": Table({"shift": honoured(1.5), "use_dynamic_shifting": honoured(True)}, ((_SD3, "scheduler"),)),
        "text_encoder": Table(text.QWEN_3, ((_SD, "text_encoder"),)),
        "tokenizer": Table(text.QWEN_TOKENIZER, ((_SD, "tokenizer"),)),
    },
    _FLUX_2: {
        "": _NO_FIELDS,
        "transformer": Table(transformer.FLUX_2),
        "vae": Table(vae.AUTOENCODER_KL_FLUX_2),
        "scheduler": Table(scheduler.OF_FLUX_2, ((_SD3, "scheduler"),)),
        "text_encoder": Table(text.MISTRAL_3, ((_Z, "text_encoder"), (_SD, "text_encoder"))),
        "tokenizer": Table(text.FLUX_2_TOKENIZER, ((_Z, "tokenizer"), (_SD, "tokenizer"))),
    },
    _KLEIN: {
        "": Table({"is_distilled": honoured(True)}),
        "transformer": Table(transformer.FLUX_2_KLEIN, ((_FLUX_2, "transformer"),)),
        "vae": Table(vae.OF_FLUX_2_KLEIN, ((_FLUX_2, "vae"),)),
        "scheduler": Table({"time_shift_type": honoured("linear")}, ((_FLUX_2, "scheduler"), (_SD3, "scheduler"))),
        "text_encoder": Table({"hidden_act": honoured("relu")}, ((_Z, "text_encoder"), (_SD, "text_encoder"))),
        "tokenizer": Table({}, ((_Z, "tokenizer"), (_SD, "tokenizer"))),
    },
}  # fmt: skip
