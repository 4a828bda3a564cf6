"""Fields of diffusion transformers."""

from tests.conformance.fields import Fields, honoured, inert, refused, unusable
from tests.conformance.folders import Together

_NO_SIZE = "of the picture that is made when nobody says a size"
_TRAINING = "rests outside of training"
_UNREAD = "no layer of this class reads it"

SD_3: Fields = {
    "sample_size": (*inert(_NO_SIZE, 32, 8), *unusable(None)),
    "patch_size": honoured(Together(1, {"pos_embed_max_size": 32}), 4),
    "in_channels": unusable(8),
    "num_layers": honoured(1),
    "attention_head_dim": unusable(16),
    "num_attention_heads": unusable(8),
    "joint_attention_dim": unusable(64),
    "caption_projection_dim": unusable(16),
    "pooled_projection_dim": unusable(16),
    "out_channels": unusable(8),
    "pos_embed_max_size": (*honoured(32, 24), *refused(8)),  # 8: tiles end at 32 px, chorale.json says 64
    "dual_attention_layers": honoured([], [0, 1]),
    "qk_norm": (*honoured(None), *unusable("nonsense")),
}
FLUX: Fields = {
    "patch_size": unusable(2),
    "in_channels": refused(32),
    "out_channels": (*inert("what null says", 16), *unusable(4)),
    "num_layers": honoured(2),
    "num_single_layers": honoured(2),
    "attention_head_dim": unusable(32),
    "num_attention_heads": honoured(4),
    "joint_attention_dim": unusable(16),
    "pooled_projection_dim": unusable(16),
    "guidance_embeds": honoured(False),
    "axes_dims_rope": (*honoured([8, 4, 4]), *unusable([4, 4, 4])),
}
FLUX_SCHNELL: Fields = {"guidance_embeds": honoured(True)}
FLUX_2: Fields = {
    "patch_size": unusable(2),
    "in_channels": refused(32),
    "out_channels": (*inert("what null says", 16), *unusable(4)),
    "num_layers": honoured(2),
    "num_single_layers": honoured(2),
    "attention_head_dim": unusable(32),
    "num_attention_heads": honoured(4),
    "joint_attention_dim": unusable(32),
    "timestep_guidance_channels": honoured(64),
    "mlp_ratio": honoured(2.0),
    "axes_dims_rope": honoured([8, 4, 4]),
    "rope_theta": honoured(2),
    "eps": honoured(0.5),
    "guidance_embeds": honoured(False),
}
FLUX_2_KLEIN: Fields = {
    "in_channels": unusable(32),
    "guidance_embeds": inert("its pipeline tells of no guidance", True),
}
PIXART: Fields = {
    "num_attention_heads": unusable(2),
    "attention_head_dim": unusable(16),
    "in_channels": refused(8),
    "out_channels": (*honoured(4), *unusable(16, 3)),
    "num_layers": honoured(1),
    "dropout": inert(_TRAINING, 0.5),
    "norm_num_groups": inert(_UNREAD, 4),
    "cross_attention_dim": unusable(16),
    "attention_bias": honoured(False),
    "sample_size": (*honoured(32), *unusable(None)),
    "patch_size": honoured(1, 4),
    "activation_fn": honoured("geglu"),
    "num_embeds_ada_norm": (*inert(_UNREAD, 10), *unusable(None)),
    "upcast_attention": inert("says how to compute in float16 only", True),
    "norm_type": unusable("layer_norm"),
    "norm_elementwise_affine": inert("new norms begin as the old", True),
    "norm_eps": honoured(0.5),
    "interpolation_scale": honoured(2, 0.5),
    "use_additional_conditions": (
        *inert("what sample_size says", None),
        *unusable(True, Together(None, {"sample_size": 128})),
    ),
    "caption_channels": unusable(16),
    "attention_type": inert("of another block", "gated"),
}
SANA: Fields = {
    "in_channels": unusable(16),
    "out_channels": (*honoured(16), *unusable(4)),
    "num_attention_heads": unusable(2),
    "attention_head_dim": unusable(16),
    "num_layers": honoured(1),
    "num_cross_attention_heads": honoured(2),
    "cross_attention_head_dim": honoured(16),
    "cross_attention_dim": unusable(16),
    "caption_channels": unusable(16),
    "mlp_ratio": honoured(1.5),
    "dropout": inert(_TRAINING, 0.5),
    "attention_bias": honoured(True),
    "sample_size": (*inert(_NO_SIZE, 16), *unusable(None)),
    "patch_size": honoured(2),
    "norm_elementwise_affine": inert("new norms begin as the old", True),
    "norm_eps": honoured(0.5),
    "interpolation_scale": honoured(1, 2),
    "guidance_embeds": unusable(True),
    "guidance_embeds_scale": inert("nothing without guidance_embeds", 0.5),
    "qk_norm": honoured("rms_norm_across_heads"),
    "timestep_scale": honoured(0.5),
}
QWEN_IMAGE: Fields = {
    "patch_size": unusable(1, 4),
    "in_channels": unusable(32),
    "out_channels": unusable(16, 1),
    "num_layers": honoured(1),
    "attention_head_dim": unusable(32),
    "num_attention_heads": honoured(4),
    "joint_attention_dim": unusable(16),
    "guidance_embeds": unusable(True),
    "axes_dims_rope": honoured([8, 4, 4]),
    "zero_cond_t": inert("of a second picture's tokens", True),
    "use_additional_t_cond": unusable(True),
    "use_layer3d_rope": honoured(True),
}
Z_IMAGE: Fields = {
    "all_patch_size": unusable([1]),
    "all_f_patch_size": (
        *unusable([2]),
        *inert("of patches that the pipeline does not ask for", Together([1, 1], {"all_patch_size": [2, 4]})),
    ),
    "in_channels": refused(8),
    "dim": unusable(64),
    "n_layers": honoured(2),
    "n_refiner_layers": honoured(2),
    "n_heads": unusable(4),
    "n_kv_heads": inert(_UNREAD, 1),
    "norm_eps": honoured(0.5),
    "qk_norm": honoured(False),
    "cap_feat_dim": unusable(16),
    "siglip_feat_dim": inert("of pictures in prompts", 16),
    "rope_theta": honoured(16.0),
    "t_scale": honoured(100.0),
    "axes_dims": honoured([8, 4, 4]),
    "axes_lens": (*inert("how far positions count", [1024, 64, 64]), *unusable([16, 32, 32])),
}
