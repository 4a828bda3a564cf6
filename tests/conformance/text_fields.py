"""Fields of text encoders, and of their tokenizers."""

from tests.conformance.fields import Fields, honoured, inert, unusable
from tests.conformance.folders import MISSING

_TRAINING = "rests outside of training"
_BEGIN = "of how training begins"
_CLASSIFIER = "of classifiers"
_RECORD = "a record for people"
_ASKED = "the pipeline asks for what it needs"
_WRITING = "of writing, not of reading"
_PICTURES = "of pictures in prompts"
_MASKED = "where a prompt is padded it is masked"
_FASTER = "keeps what is not asked again"
_LOGITS = "of the next word, which nobody asks for"

_ALL: Fields = {
    "architectures": inert(_RECORD, ["Other"]),
    "chunk_size_feed_forward": inert("a way to save memory", 2),
    "id2label": inert(_CLASSIFIER, {"0": "a"}),
    "label2id": inert(_CLASSIFIER, {"a": 0}),
    "is_encoder_decoder": inert(_RECORD, True),
    "output_attentions": inert(_ASKED, True),
    "output_hidden_states": inert(_ASKED, True),
    "problem_type": inert(_CLASSIFIER, "regression"),
    "return_dict": inert("this pipeline counts outputs", False),
    "transformers_version": inert(_RECORD, "4.30.0"),
    "dtype": inert("a model folder's own says in what is computed", "float16", MISSING),
    "model_type": inert("the index names the class", "bert", MISSING),
}
CLIP: Fields = {
    **_ALL,
    "attention_dropout": inert(_TRAINING, 0.5),
    "bos_token_id": inert("the tokenizer's counts", 5),
    "eos_token_id": inert("of the pooled text, which this pipeline does not use", 2, 7),
    "hidden_act": honoured("gelu"),
    "hidden_size": unusable(16),
    "initializer_factor": inert(_BEGIN, 2.0),
    "initializer_range": inert(_BEGIN, 0.5),
    "intermediate_size": honoured(64),
    "layer_norm_eps": honoured(0.5),
    # Fewer than the tokenizer gives, and diffusers fails; here they limit the tokenizer.
    "max_position_embeddings": honoured(32),
    "num_attention_heads": honoured(2),
    "num_hidden_layers": honoured(1),
    "pad_token_id": inert("the tokenizer's counts", 3),
    "projection_dim": inert("of the pooled text, which this pipeline does not use", 16),
    "vocab_size": (*honoured(60), *unusable(20)),
}
POOLED_CLIP: Fields = {
    "eos_token_id": honoured(2, 7),
    "projection_dim": unusable(16),
    "return_dict": unusable(False),
    "num_hidden_layers": honoured(1),
}
T5: Fields = {
    "classifier_dropout": inert(_CLASSIFIER, 0.5),
    "d_ff": honoured(64),
    "d_kv": honoured(16),
    "d_model": unusable(16),
    "dense_act_fn": honoured("gelu"),
    "dropout_rate": inert(_TRAINING, 0.5),
    "eos_token_id": inert("the tokenizer's counts", 3),
    "feed_forward_proj": inert("dense_act_fn and is_gated_act count", "gated-gelu"),
    "initializer_factor": inert(_BEGIN, 2.0),
    "is_decoder": honoured(True),
    "is_gated_act": honoured(True),
    "layer_norm_epsilon": honoured(0.5),
    "num_decoder_layers": inert("there is no decoder", 2),
    "num_heads": honoured(2),
    "num_layers": honoured(2),
    "pad_token_id": inert("the tokenizer's counts", 3),
    "relative_attention_max_distance": unusable(8),
    "relative_attention_num_buckets": honoured(8),
    "scale_decoder_outputs": inert("there is no decoder", False),
    "tie_word_embeddings": inert(_LOGITS, False),
    "use_cache": inert(_FASTER, True),
    "vocab_size": (*honoured(70), *unusable(20)),
}
_TEXT_MODEL: Fields = {
    "attention_dropout": inert(_TRAINING, 0.5),
    "bos_token_id": inert("the tokenizer's counts", 3),
    "eos_token_id": inert("the tokenizer's counts", 3),
    "hidden_size": unusable(16),
    "initializer_range": inert(_BEGIN, 0.5),
    "intermediate_size": honoured(64),
    "max_position_embeddings": inert("positions are computed", 64),
    "num_key_value_heads": honoured(1),
    "pad_token_id": inert("the tokenizer's counts", 3),
    "rms_norm_eps": honoured(10.0),
    "rope_parameters": honoured({"rope_theta": 1.0, "rope_type": "default"}),
    "use_cache": inert(_FASTER, False),
    "vocab_size": (*honoured(300), *unusable(20)),
}
_QWEN: Fields = {
    **_TEXT_MODEL,
    "hidden_act": honoured("relu"),
    "layer_types": unusable(["full_attention", "sliding_attention"]),
    "max_window_layers": inert("layer_types counts", 1),
    "num_hidden_layers": unusable(1),
    "sliding_window": inert("layer_types counts", 4),
    "use_sliding_window": inert("layer_types counts", True),
}
QWEN_3: Fields = {
    **_QWEN,
    "attention_bias": inert("new biases begin as nothing", True),
    "head_dim": honoured(16),
    "num_attention_heads": honoured(2),
    "tie_word_embeddings": inert(_LOGITS, True),
}
GEMMA_2: Fields = {
    **_TEXT_MODEL,
    "attention_bias": inert("new biases begin as nothing", True),
    "attn_logit_softcapping": inert("bounds that no query of this size meets", None),
    "final_logit_softcapping": inert(_LOGITS, 1.0),
    "head_dim": honoured(16),
    "hidden_activation": honoured("relu"),
    "layer_types": inert("a window longer than the prompt", ["full_attention"]),
    "num_attention_heads": honoured(4),
    "num_hidden_layers": unusable(2),
    "num_key_value_heads": honoured(2),
    "query_pre_attn_scalar": honoured(1),
    "sliding_window": honoured(4),
    "tie_word_embeddings": inert(_LOGITS, False),
    "use_bidirectional_attention": inert("not read by this class", True),
    "vocab_size": honoured(40),
}
QWEN_2_5_VL: Fields = {
    "text_config.hidden_act": honoured("relu"),
    "text_config.layer_types": unusable(["full_attention", "sliding_attention"]),
    "text_config.num_attention_heads": unusable(2),
    "text_config.model_type": inert("the class knows its parts", "bert"),
    "text_config.rope_parameters": honoured(
        {"mrope_section": [1, 1, 2], "rope_theta": 1.0, "rope_type": "default"}
    ),
    "image_token_id": inert(_PICTURES, 5),
    "video_token_id": inert(_PICTURES, 6),
    "vision_start_token_id": inert(_PICTURES, 7),
    "vision_end_token_id": inert(_PICTURES, 8),
    "vision_config.depth": inert(_PICTURES, 2),
    "tie_word_embeddings": inert(_LOGITS, True),
}
MISTRAL_3: Fields = {
    "text_config.hidden_act": honoured("relu"),
    "text_config.rope_parameters": honoured({"rope_theta": 1.0, "rope_type": "default"}),
    "text_config.num_hidden_layers": (*unusable(29), *honoured(31)),
    "text_config.model_type": inert("the class knows its parts", "mistral"),
    "text_config.sliding_window": honoured(4),
    "image_token_index": inert(_PICTURES, 5),
    "multimodal_projector_bias": inert(_PICTURES, True),
    "projector_hidden_act": inert(_PICTURES, "relu"),
    "spatial_merge_size": inert(_PICTURES, 4),
    "vision_feature_layer": inert(_PICTURES, -2),
    "vision_config.num_hidden_layers": inert(_PICTURES, 2),
    "tie_word_embeddings": inert(_LOGITS, False),
}

_REBUILT = "this class builds it again from the words"
_CUT = {"direction": "Left", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
_FILL = {
    "strategy": {"Fixed": 12}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 4, "pad_type_id": 0,
    "pad_token": "c",
}  # fmt: skip
_TOKENIZER: Fields = {
    "backend": inert(_RECORD, "sentencepiece"),
    "tokenizer_class": inert("the index names the class", "BertTokenizer", MISSING),
    "tokenizer.json/version": unusable("2.0"),
    "tokenizer.json/normalizer": inert(_REBUILT, None),
    "tokenizer.json/pre_tokenizer": inert(_REBUILT, None),
    "tokenizer.json/post_processor": inert(_REBUILT, None),
    "tokenizer.json/decoder": inert(_WRITING, None),
    "clean_up_tokenization_spaces": inert(_WRITING, True),
}
CLIP_TOKENIZER: Fields = {
    **_TOKENIZER,
    "bos_token": honoured("a"),
    "eos_token": honoured("b"),
    "pad_token": (*honoured("c"), *unusable(None)),
    "unk_token": inert("every letter is known", "d"),
    "model_max_length": honoured(8),
    "tokenizer.json/truncation": honoured(_CUT),
    "tokenizer.json/padding": honoured(_FILL),
    "tokenizer.json/added_tokens": inert("special tokens are added by their names", []),
    "tokenizer.json/model": unusable({"type": "BPE", "vocab": {"a": 0}, "merges": []}),
    "padding_side": honoured("left"),
    "truncation_side": honoured("left"),
    "do_lower_case": inert("this class always does", False),
    "extra_special_tokens": honoured(["a"]),
    "add_prefix_space": inert("of another class", True),
    "split_special_tokens": inert("no prompt here holds one", True),
}
T5_TOKENIZER: Fields = {
    "bos_token": honoured("a"),
    "eos_token": honoured("b"),
    "pad_token": (*honoured("c"), *unusable(None)),
    "unk_token": inert("every letter is known", "d"),
    "model_max_length": inert("the pipeline has its own limit", 8),
    "extra_ids": inert("more words at the end", 3),
    "extra_special_tokens": honoured(["a"]),
    "padding_side": inert(_MASKED, "left"),
}
GEMMA_TOKENIZER: Fields = {
    "bos_token": inert(_MASKED, "a"),
    "eos_token": inert(_MASKED, "b"),
    "mask_token": inert("no prompt here holds one", "c"),
    "pad_token": (*inert(_MASKED, "c"), *unusable(None)),
    "unk_token": honoured("d"),
    "model_max_length": inert("the pipeline has its own limit", 8),
    "padding_side": inert("the pipeline sets it", "left"),
    "extra_special_tokens": inert("no prompt here holds one", ["q"]),
}
QWEN_TOKENIZER: Fields = {
    "add_prefix_space": honoured(True),
    "bos_token": inert("this class puts none before", "a"),
    "eos_token": inert("this class puts none behind", "b"),
    "pad_token": (*inert(_MASKED, "c"), *unusable(None)),
    "unk_token": inert("every byte is known", "d"),
    "model_max_length": inert("the pipeline has its own limit", 8),
    "padding_side": inert(_MASKED, "left"),
    "chat_template.jinja": honoured("{% for message in messages %}{{ message.content }}{% endfor %}"),
}
FLUX_2_TOKENIZER: Fields = {"padding_side": honoured("left"), "pad_token": honoured("c")}
