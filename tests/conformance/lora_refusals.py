"""LoRA files of which something would have no effect, and what is said of them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from tests.conformance.lora_cases import ATTENTION, KOHYA
from tests.conformance.lora_files import Layer, Tensors, kohya, peft

Spoil = Callable[[Tensors], Tensors]


PLAIN = kohya(KOHYA)


@dataclass(frozen=True)
class Refusal:
    """A file that is right but for one thing.

    Args:
        spoil: the tensors of `layers`, as `layout` writes them.
        says: what the error holds.
    """

    name: str
    spoil: Spoil
    says: str
    layout: Callable[[Layer], Tensors] = PLAIN
    kind: str = "plain"
    config: Mapping[str, object] = field(default_factory=dict)
    header: Mapping[str, str] = field(default_factory=dict)


SPOILED_LAYERS = (
    "unet.conv_in",
    "unet.time_embedding.linear_1",
    "unet.down_blocks.0.resnets.0.conv1",
    f"unet.{ATTENTION}.attn1.to_q",
    f"unet.{ATTENTION}.attn2.to_out.0",
    "text_encoder.encoder.layers.1.mlp.fc1",
)
FIRST = "lora_unet_conv_in"
NEXT = "lora_unet_time_embedding_linear_1"


def add(**tensors: Sequence[int]) -> Spoil:
    return lambda given: (
        given | {key.replace("__", "."): torch.full(list(shape), 0.1) for key, shape in tensors.items()}
    )


def rename(old: str, new: str) -> Spoil:
    return lambda given: {key.replace(old, new): tensor for key, tensor in given.items()}


def reshape(key: str, *shape: int) -> Spoil:
    return lambda given: given | {key: torch.full(shape, 0.1)}


def drop(key: str) -> Spoil:
    return lambda given: {each: tensor for each, tensor in given.items() if each != key}


def only(**tensors: Sequence[int]) -> Spoil:
    return lambda given: add(**tensors)({})


def half(given: Tensors) -> Tensors:
    """Layers of a network with twice as many: every other name is unknown."""
    names = sorted({key.partition(".")[0] for key in given})
    foreign = set(names[::2])
    return {
        f"lora_unet_foreign_{key}" if key.partition(".")[0] in foreign else key: each
        for key, each in given.items()
    }


def swap_axis(given: Tensors) -> Tensors:
    """As LyCORIS measures without wd_on_output."""
    key = f"{NEXT}.dora_scale"
    return given | {key: torch.ones(1, given[f"{NEXT}.lora_down.weight"].shape[1])}


def twice(given: Tensors) -> Tensors:
    return given | {key: tensor.clone() for key, tensor in rename("lora_unet_", "lycoris_")(given).items()}


BARE = peft("base_model.model.", part=False)
REFUSALS = (
    Refusal("half of the keys unknown", half, r"9 of 18 keys .* the first is 'lora_unet_foreign_lora_"),
    Refusal("LoHa", add(**{f"{FIRST}__hada_w1_a": [8, 2]}), r"1 of 19 keys .*conv_in\.hada_w1_a'; supported: lora_A"),
    Refusal("LoHa alone", only(**{f"{FIRST}__hada_w1_a": [8, 2], f"{FIRST}__hada_w1_b": [2, 4]}), r"2 of 2 keys"),
    Refusal("LoKr", only(**{f"{FIRST}__lokr_w1": [2, 2], f"{FIRST}__alpha": []}), r"2 of 2 keys"),
    Refusal("IA3", add(**{f"{FIRST}__weight": [8], f"{FIRST}__on_input": []}), r"2 of 20 keys .*conv_in\."),
    Refusal("OFT", add(**{f"{FIRST}__oft_blocks": [2, 4, 4]}), r"1 of 19 keys .*oft_blocks'"),
    Refusal("whole difference", add(**{f"{FIRST}__diff": [8, 4, 3, 3]}), r"1 of 19 keys .*conv_in\.diff'"),
    Refusal("difference of a bias", add(**{f"{FIRST}__diff_b": [8]}), r"1 of 19 keys .*conv_in\.diff_b'"),
    Refusal("norm", add(unet__conv_norm_out__weight=[8]), r"1 of 19 keys .*'unet\.conv_norm_out\.weight'"),
    Refusal("textual inversion", only(emb_params=[2, 32]), r"1 of 1 keys .* the first is 'emb_params'"),
    Refusal("embedding trained beside", add(bundle_emb__moss__string_to_param=[2, 32]), r"1 of 19 keys .*'bundle_emb"),
    Refusal("new words' rows", add(text_encoder__embeddings__token_embedding__weight=[54, 32]), r"1 of 19 keys"),
    Refusal("empty", lambda given: {}, r"it holds no tensors; supported: "),
    Refusal("without up", drop(f"{FIRST}.lora_up.weight"), r"2 of 17 keys .*conv_in\.alpha'"),
    Refusal("without down", drop(f"{FIRST}.lora_down.weight"), r"2 of 17 keys .*conv_in\.alpha'"),
    Refusal("alpha alone", add(lora_unet_conv_out__alpha=[]), r"1 of 19 keys .*conv_out\.alpha'"),
    Refusal("ranks that differ", reshape(f"{FIRST}.lora_up.weight", 8, 5, 1, 1), r"3 of 18 keys .*conv_in"),
    Refusal("more inputs", reshape(f"{FIRST}.lora_down.weight", 2, 9, 3, 3), r"3 of 18 keys .*conv_in"),
    Refusal("more outputs", reshape(f"{FIRST}.lora_up.weight", 16, 2, 1, 1), r"3 of 18 keys .*conv_in"),
    Refusal("without pixels", reshape(f"{FIRST}.lora_down.weight", 2, 36), r"3 of 18 keys .*conv_in"),
    Refusal("one layer twice", twice, r"15 of 33 keys .*'lycoris_"),
    Refusal("another family's", rename("lora_unet_", "lora_transformer_"), r"15 of 18 keys .*'lora_transformer_conv_in"),
    Refusal("a second text encoder's", rename("lora_te1_", "lora_te2_"), r"3 of 18 keys .*'lora_te2_"),
    Refusal("T5's", rename("lora_te1_", "lora_te3_"), r"3 of 18 keys .*'lora_te3_"),
    Refusal("ControlNet", add(lora_controlnet=[0]), r"1 of 19 keys .*'lora_controlnet'"),
    Refusal("DoRA of inputs", swap_axis, r"1 of 24 keys .*time_embedding_linear_1\.dora_scale'", kind="dora"),
    Refusal("DoRA without a layer", add(lora_unet_conv_out__dora_scale=[4, 1, 1, 1]), r"1 of 19 keys .*conv_out\.dora"),
    Refusal("bias of down", add(unet__conv_in__lora_A__bias=[2]), r"1 of 19 keys .*'unet\.conv_in\.lora_A\.bias'"),
    Refusal("PiSSA", dict, r"init_lora_weights is 'pissa_niter_16'", BARE, config={"init_lora_weights": "pissa_niter_16"}),
    Refusal("peft's LoHa", dict, r"peft_type is 'LOHA'; supported: 'LORA'", BARE, config={"peft_type": "LOHA"}),
    Refusal("copied layers", dict, r"layer_replication \[\[0, 4\]\]", BARE, config={"layer_replication": [[0, 4]]}),
    Refusal("unknown word", dict, r"configuration has louder 3", BARE, config={"louder": 3}),
    Refusal("unknown word in the header", dict, r"has louder 3", BARE, header={"lora_adapter_metadata": json.dumps({"unet.louder": 3})}),
    Refusal("no JSON in the header", dict, r"is no LoRA for this model: Expecting", BARE, header={"lora_adapter_metadata": "{"}),
)  # fmt: skip
