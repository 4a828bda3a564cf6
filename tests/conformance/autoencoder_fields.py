"""Fields of autoencoders."""

from tests.conformance.fields import Fields, honoured, inert, refused, unusable
from tests.conformance.folders import MISSING, Together

_MEAN, _STD = [0.3, -0.2, 0.5, 0.1], [1.5, 0.7, 2.0, 1.1]
_OF_OTHERS = "this pipeline does not read it"
_HALF = "says how to compute in float16 only"
_TILING = "where diffusers' own tiling begins, which is off"
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"

_SCALED: Fields = {
    "scaling_factor": (*honoured(0.5), *inert("the class' default", MISSING), *unusable(None)),
    "shift_factor": inert(_OF_OTHERS, 0.3, None),
    "latents_mean": inert(_OF_OTHERS, _MEAN, Together(_MEAN, {"latents_std": _STD})),
    "latents_std": inert(_OF_OTHERS, _STD, [1.5]),
    "latent_channels": unusable(8),
}
_SHIFTED: Fields = {
    "scaling_factor": (*honoured(0.5), *unusable(None)),
    "shift_factor": (*honoured(0.3), *unusable(None)),
    "latents_mean": inert(_OF_OTHERS, Together(_MEAN, {"latents_std": _STD})),
    "latents_std": inert(_OF_OTHERS, _STD),
    "latent_channels": unusable(8),
}
AUTOENCODER_KL: Fields = {
    **_SCALED,
    "in_channels": refused(4),
    "out_channels": refused(4),
    "down_block_types": (*honoured([_DOWN, "AttnDownEncoderBlock2D", _DOWN]), *refused([_DOWN, _DOWN])),
    "up_block_types": (
        *honoured([_UP, "AttnUpDecoderBlock2D", _UP]),
        *unusable([_UP, _UP], [_UP, "UpBlock2D", _UP]),
    ),
    "block_out_channels": (*honoured([8, 16, 32]), *unusable([16, 16])),
    "layers_per_block": honoured(2),
    "act_fn": (*honoured("gelu"), *unusable("nonsense")),
    "norm_num_groups": (*honoured(2), *unusable(3)),
    "sample_size": inert(_TILING, 64, [64, 32]),
    "force_upcast": inert(_HALF, False),
    "use_quant_conv": honoured(False),
    "use_post_quant_conv": honoured(False),
    "mid_block_add_attention": honoured(False),
}
OF_PIXART = _SCALED
OF_SD_3 = OF_FLUX = OF_Z_IMAGE = _SHIFTED
OF_SDXL: Fields = {
    **_SCALED,
    "latents_mean": (
        *inert("both or none count", _MEAN),
        *honoured(Together(_MEAN, {"latents_std": _STD})),
        *unusable(Together([0.1], {"latents_std": _STD})),
    ),
    "latents_std": (
        *inert("both or none count", _STD),
        *honoured(Together(_STD, {"latents_mean": [0.0] * 4})),
        *unusable(Together([1.5], {"latents_mean": _MEAN})),
    ),
}
_TINY_SIZES: Fields = {
    "scaling_factor": (*honoured(0.5), *unusable(None)),
    "latent_channels": unusable(8),
}
AUTOENCODER_TINY: Fields = {
    **_TINY_SIZES,
    "in_channels": refused(4),
    "out_channels": refused(4),
    "encoder_block_out_channels": (*refused([8, 8, 8, 16]), *refused(Together([8] * 3, {"num_encoder_blocks": [1] * 3}))),
    "decoder_block_out_channels": unusable([16, 8, 8, 8], [8] * 3),
    "act_fn": honoured("silu"),
    "upsample_fn": (*honoured("bilinear", "bicubic"), *inert("the same for a factor of 2", "nearest-exact")),
    "upsampling_scaling_factor": refused(3),
    "num_encoder_blocks": honoured([1, 1, 1, 1]),
    "num_decoder_blocks": honoured([1, 1, 1, 1]),
    "latent_magnitude": inert("only for latents that are stored as bytes", 5),
    "latent_shift": inert("only for latents that are stored as bytes", 0.1),
    "shift_factor": inert(_OF_OTHERS, 0.3),
    "force_upcast": inert("the class sets it to false", True),
    "block_out_channels": inert("the class sets it to the decoder's", [8, 8]),
}  # fmt: skip
TINY_OF_FLUX: Fields = {**_TINY_SIZES, "shift_factor": honoured(0.3)}
AUTOENCODER_KL_FLUX_2: Fields = {
    "in_channels": refused(4),
    "out_channels": refused(4),
    "down_block_types": (*honoured([_DOWN, "AttnDownEncoderBlock2D"]), *refused([_DOWN])),
    "up_block_types": unusable([_UP]),
    "block_out_channels": honoured([8, 32]),
    "decoder_block_out_channels": (*honoured([16, 32]), *unusable([8, 16, 16])),
    "layers_per_block": honoured(1),
    "act_fn": honoured("gelu"),
    "latent_channels": unusable(8),
    "norm_num_groups": honoured(2),
    "sample_size": inert(_TILING, 64),
    "use_quant_conv": honoured(False),
    "use_post_quant_conv": honoured(False),
    "mid_block_add_attention": honoured(False),
    "batch_norm_eps": honoured(0.5),
    "batch_norm_momentum": inert("of training", 0.5),
    "patch_size": (*inert("patches are 2 x 2 in the pipeline; it counts pixels", [1, 4]), *unusable([1, 1])),
}
OF_FLUX_2_KLEIN: Fields = {"batch_norm_eps": honoured(0.5), "latent_channels": unusable(8)}
AUTOENCODER_KL_QWEN_IMAGE: Fields = {
    "base_dim": honoured(16),
    "z_dim": unusable(8),
    "dim_mult": (*honoured([1, 2, 4]), *refused([1, 2])),
    "num_res_blocks": honoured(2),
    "attn_scales": inert("of the encoder, with which diffusers' own fails", [0.5]),
    "temperal_downsample": (*inert("of later frames", [True, False]), *unusable([True])),
    "dropout": inert("rests outside of training", 0.5),
    "input_channels": refused(4),
    "latents_mean": (*honoured([1.0, 0.5, 0.0, 2.0]), *unusable([0.5], None)),
    "latents_std": (*honoured([1.0, 2.0, 3.0, 4.0]), *unusable(None)),
}
AUTOENCODER_DC: Fields = {
    "in_channels": refused(4),
    "latent_channels": unusable(4),
    "attention_head_dim": honoured(4),
    "encoder_block_types": honoured("ResBlock", ["ResBlock", "ResBlock", "EfficientViTBlock"]),
    "decoder_block_types": honoured("ResBlock"),
    "encoder_block_out_channels": (*honoured([8, 16, 32]), *unusable([16, 16])),
    "decoder_block_out_channels": (*honoured([8, 16, 32]), *refused([16, 16])),
    "encoder_layers_per_block": honoured([2, 1, 1], [0, 1, 1]),
    "decoder_layers_per_block": honoured([1, 2, 1], [0, 1, 1]),
    "encoder_qkv_multiscales": honoured([[], [3], [5]]),
    "decoder_qkv_multiscales": honoured([[], [3], [5]]),
    "upsample_block_type": honoured("pixel_shuffle"),
    "downsample_block_type": honoured("conv"),
    "decoder_norm_types": (*honoured("batch_norm"), *unusable("layer_norm")),
    "decoder_act_fns": honoured(Together("relu", {"decoder_block_types": "ResBlock"})),
    "encoder_out_shortcut": honoured(False),
    "decoder_in_shortcut": honoured(False),
    "decoder_conv_act_fn": honoured("silu"),
    "scaling_factor": (*honoured(0.9), *unusable(None)),
}
