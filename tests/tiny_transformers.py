"""Tiny random diffusion transformers of true architecture, built where a test needs them."""

from pathlib import Path

import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import PixArtSigmaPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.tiny_autoencoders import tiny_dc, tiny_kl, tiny_kl_flux_2, tiny_kl_qwen_image
from tests.tiny_models import tiny_tokenizer, tiny_vae

WIDTH = 32  # of all text states
# FLUX.2 reads many layers over 512 tokens; with weights of the usual 0.02 they would hardly attend.
_DEEP = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.1}


def tiny_stable_diffusion_3(folder: Path) -> StableDiffusion3Pipeline:
    tokenizer = tiny_tokenizer(folder.with_name(folder.name + "-tokenizer"))
    torch.manual_seed(0)
    clip = tiny_clip_config(len(tokenizer), width=WIDTH // 2)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    pipe = StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), tiny_kl(16),
        CLIPTextModelWithProjection(clip), tokenizer,
        CLIPTextModelWithProjection(clip), tokenizer,
        tiny_t5(), tiny_t5_tokenizer(),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return pipe


def tiny_flux(folder: Path) -> FluxPipeline:
    """As FLUX.1-dev: its guidance is embedded, its schedule shifted by resolution."""
    return _tiny_flux(folder, distilled_guidance=True)


def tiny_flux_schnell(folder: Path) -> FluxPipeline:
    """Neither."""
    return _tiny_flux(folder, distilled_guidance=False)


def _tiny_flux(folder: Path, *, distilled_guidance: bool) -> FluxPipeline:
    tokenizer = tiny_tokenizer(folder.with_name(folder.name + "-tokenizer"))
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=distilled_guidance,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0 if distilled_guidance else 1.0, use_dynamic_shifting=distilled_guidance
    )
    text_encoder = CLIPTextModel(tiny_clip_config(len(tokenizer), width=WIDTH))
    pipe = FluxPipeline(
        scheduler, tiny_kl(4), text_encoder, tokenizer, tiny_t5(), tiny_t5_tokenizer(), transformer
    )
    pipe.save_pretrained(folder)
    return pipe


def tiny_pixart_sigma(folder: Path) -> PixArtSigmaPipeline:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=2,
        cross_attention_dim=32,
        sample_size=16,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    pipe = PixArtSigmaPipeline(
        tiny_t5_tokenizer(), tiny_t5(), tiny_vae(), transformer, DPMSolverMultistepScheduler()
    )
    pipe.save_pretrained(folder)
    return pipe


def tiny_sana(folder: Path) -> SanaPipeline:
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=4,
        cross_attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        sample_size=8,
    )
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    tokenizer = tiny_gemma_tokenizer()
    text_encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=37,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    ).eval()
    pipe = SanaPipeline(tokenizer, text_encoder, tiny_dc(8), transformer, scheduler)
    pipe.save_pretrained(folder)
    return pipe


def tiny_qwen_image(folder: Path) -> QwenImagePipeline:
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    tokenizer = tiny_qwen_tokenizer()
    text_encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=tiny_qwen_text(len(tokenizer))
            | {"rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}},
            vision_config={
                "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH,
            },
        )
    ).eval()  # fmt: skip
    pipe = QwenImagePipeline(scheduler, tiny_kl_qwen_image(4), text_encoder, tokenizer, transformer)
    pipe.save_pretrained(folder)
    return pipe


def tiny_z_image(folder: Path) -> ZImagePipeline:
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 32, 32],
    )
    torch.nn.init.normal_(transformer.x_pad_token)
    torch.nn.init.normal_(transformer.cap_pad_token)
    tokenizer = tiny_qwen_tokenizer()
    text_encoder = Qwen3Model(Qwen3Config(**tiny_qwen_text(len(tokenizer)), head_dim=8)).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = ZImagePipeline(scheduler, tiny_kl(4), text_encoder, tokenizer, transformer)
    pipe.save_pretrained(folder)
    return pipe


def tiny_flux_2(folder: Path) -> Flux2Pipeline:
    """Its tokenizer is read alone: with its companion for pictures it would need torchvision."""
    tokenizer = tiny_qwen_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endfor %}"
    text = {"model_type": "mistral", **tiny_qwen_text(len(tokenizer)), "num_hidden_layers": 30} | _DEEP
    vision = {
        "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }  # fmt: skip
    text_encoder = Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=vision, image_token_index=1)
    ).eval()
    pipe = Flux2Pipeline(
        tiny_flux_2_scheduler(), tiny_kl_flux_2(4), text_encoder, tokenizer, tiny_flux_2_transformer(True)
    )
    pipe.save_pretrained(folder)
    return pipe


def tiny_flux_2_klein(folder: Path) -> Flux2KleinPipeline:
    return _tiny_flux_2_klein(folder, distilled=False)


def tiny_flux_2_klein_few(folder: Path) -> Flux2KleinPipeline:
    """Trained to do without guidance, in few steps."""
    return _tiny_flux_2_klein(folder, distilled=True)


def _tiny_flux_2_klein(folder: Path, *, distilled: bool) -> Flux2KleinPipeline:
    torch.manual_seed(0)
    tokenizer = tiny_qwen_tokenizer()
    text = tiny_qwen_text(len(tokenizer)) | {"num_hidden_layers": 27} | _DEEP
    text_encoder = Qwen3ForCausalLM(Qwen3Config(**text, head_dim=8)).eval()
    transformer = tiny_flux_2_transformer(guidance_embeds=False)
    pipe = Flux2KleinPipeline(
        tiny_flux_2_scheduler(), tiny_kl_flux_2(4), text_encoder, tokenizer, transformer, distilled
    )
    pipe.save_pretrained(folder)
    return pipe


def tiny_flux_2_transformer(guidance_embeds: bool) -> Flux2Transformer2DModel:
    torch.manual_seed(0)
    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )


def tiny_flux_2_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def tiny_clip_config(words: int, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=37,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def tiny_t5() -> T5EncoderModel:
    config = T5Config(vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    return T5EncoderModel(config).eval()


def tiny_t5_tokenizer() -> T5Tokenizer:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *letters]
    return T5Tokenizer(
        vocab=[(piece, 0.0 if piece[0] == "<" else -2.0) for piece in pieces],
        extra_ids=0,
        model_max_length=512,
    )


def tiny_gemma_tokenizer() -> GemmaTokenizer:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *letters]
    return GemmaTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=4096)


def tiny_qwen_tokenizer() -> Qwen2Tokenizer:
    """Byte by byte; its chat template writes only the user's words."""
    pieces = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], model_max_length=4096
    )
    tokenizer.chat_template = "{% for message in messages %}<|im_start|>{{ message.role }} {{ message.content }}<|im_end|>{% endfor %}"
    return tokenizer


def tiny_qwen_text(words: int) -> dict[str, int]:
    return {
        "vocab_size": words, "hidden_size": WIDTH, "intermediate_size": 37, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
