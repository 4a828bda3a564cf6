"""Fields of UNets."""

from tests.conformance.fields import Fields, honoured, inert, unusable
from tests.conformance.folders import Together

_NO_SIZE = "of the picture that is made when nobody says a size"
_ALONE = "nothing without addition_embed_type"
_SIMPLE = "of blocks that this UNet has not"

UNET: Fields = {
    "sample_size": inert(_NO_SIZE, 32, [16, 24], None),
    "in_channels": unusable(9),
    "out_channels": unusable(8),
    "center_input_sample": honoured(True),
    "flip_sin_to_cos": honoured(False),
    "freq_shift": honoured(1),
    "down_block_types": honoured(["CrossAttnDownBlock2D"] * 2, ["ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"]),
    "mid_block_type": honoured("UNetMidBlock2D", None, "UNetMidBlock2DSimpleCrossAttn"),
    "up_block_types": honoured(["CrossAttnUpBlock2D"] * 2),
    "only_cross_attention": honoured(True),
    "block_out_channels": honoured([8, 32]),
    "layers_per_block": honoured(2, [1, 2]),
    "downsample_padding": honoured(0),
    "mid_block_scale_factor": honoured(2.0),
    "dropout": inert("rests outside of training", 0.5),
    "act_fn": honoured("gelu"),
    "norm_num_groups": honoured(2),
    "norm_eps": honoured(0.5),
    "cross_attention_dim": unusable(16),
    "transformer_layers_per_block": honoured(2, [1, 2]),
    "reverse_transformer_layers_per_block": inert("the same as what it would replace", [1, 1]),
    "encoder_hid_dim": honoured(32),
    "encoder_hid_dim_type": (
        *honoured(Together("text_proj", {"encoder_hid_dim": 32})),
        *unusable("text_proj", Together("text_image_proj", {"encoder_hid_dim": 32}), Together("image_proj", {"encoder_hid_dim": 32})),
    ),
    "attention_head_dim": honoured(8),
    "num_attention_heads": unusable(2),
    "dual_cross_attention": unusable(True),
    "use_linear_projection": honoured(True),
    "class_embed_type": unusable("timestep", "identity"),
    "addition_embed_type": (
        *honoured(Together("text", {"addition_embed_type_num_heads": 4})),
        *unusable("text", "text_image", Together("text_time", {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80})),
    ),
    "addition_time_embed_dim": inert(_ALONE, 16),
    "addition_embed_type_num_heads": inert(_ALONE, 2),
    "projection_class_embeddings_input_dim": inert(_ALONE, 24),
    "num_class_embeds": unusable(4),
    "upcast_attention": inert("says how to compute in float16 only", True),
    "resnet_time_scale_shift": honoured("scale_shift"),
    "resnet_skip_time_act": (
        *inert(_SIMPLE, True),
        *honoured(Together(True, {"down_block_types": ["ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"]})),
    ),
    "resnet_out_scale_factor": inert(_SIMPLE, 2.0),
    "time_embedding_type": honoured("fourier"),
    "time_embedding_dim": honoured(64),
    "time_embedding_act_fn": honoured("gelu"),
    "timestep_post_act": honoured("gelu"),
    "time_cond_proj_dim": honoured(16),
    "conv_in_kernel": honoured(5),
    "conv_out_kernel": honoured(5),
    "attention_type": inert("without boxes, as GLIGEN draws them, the added layers rest", "gated"),
    "class_embeddings_concat": unusable(True),
    "mid_block_only_cross_attention": inert(_SIMPLE, True),
    "cross_attention_norm": inert(_SIMPLE, "layer_norm", "group_norm"),
}  # fmt: skip
OF_SDXL: Fields = {
    "sample_size": inert(_NO_SIZE, 32, [16, 24], None),
    "in_channels": unusable(9),
    "cross_attention_dim": unusable(16),
    "transformer_layers_per_block": honoured(1),
    "reverse_transformer_layers_per_block": honoured([1, 2]),
    "encoder_hid_dim": unusable(32),
    "class_embed_type": unusable("timestep"),
    "addition_embed_type": unusable(None, "text", "text_image"),
    "addition_time_embed_dim": unusable(16),
    "projection_class_embeddings_input_dim": unusable(24),
    "time_cond_proj_dim": honoured(16),
    "use_linear_projection": honoured(False),
}
