"""What peft's configuration says of a LoRA: in the file's header, or in a file beside it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import safe_open

PEFT_CONFIG, _PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_HEADER = "lora_adapter_metadata"  # diffusers' name for all parts' configurations in one, as {"unet.r": 4}
# Tensors themselves show what these say, or it was of use in training only.
_SHOWN = {
    "r", "rank_pattern", "target_modules", "exclude_modules", "lora_bias", "use_dora", "modules_to_save", "bias",
    "layers_to_transform", "layers_pattern", "lora_dropout", "task_type", "auto_mapping", "peft_version",
    "base_model_name_or_path", "revision", "inference_mode", "megatron_core", "eva_config", "qalora_group_size",
    "ensure_weight_tying", "trainable_token_indices",
}  # fmt: skip
_HEEDED = {"peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "init_lora_weights"}
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # others change the model's own weights too


class LoraScales:
    """How strong each layer is, where its file has no alpha of its own."""

    def __init__(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        self._configs = configs

    def find(self, part: str, name: str, rank: int) -> float:
        """As peft counts: alpha / rank, or alpha / sqrt(rank) (Kalajdzievski 2023); 1 without a word."""
        config = self._configs.get(part, self._configs.get(""))
        usual: float | None = None if config is None else config.get("lora_alpha")
        if config is None or usual is None:
            return 1.0
        pattern: Mapping[str, float] = config.get("alpha_pattern") or {}
        alpha = pattern.get(get_pattern_key(list(pattern), name), usual)
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def read_scales(file: Path, folder: Path | None) -> LoraScales:
    """
    Args:
        folder: whose `adapter_config.json` belongs to the file.

    Raises:
        ValueError: it asks for something that is not heeded here.
    """
    with safe_open(file, "pt") as opened:
        header: str | None = (opened.metadata() or {}).get(_HEADER)
    if header is not None:
        return LoraScales({part: _check(config) for part, config in _group(json.loads(header)).items()})
    if folder is not None and (folder / PEFT_CONFIG).is_file():
        return LoraScales({"": _check(json.loads((folder / PEFT_CONFIG).read_text()))})
    if file.name == _PEFT_WEIGHTS and (file.parent / PEFT_CONFIG).is_file():
        raise ValueError(
            f"{PEFT_CONFIG} beside it says how strong it is; supported: both, listed as a folder"
        )
    return LoraScales({})


def _group(fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    configs: dict[str, dict[str, Any]] = {}
    for key, value in fields.items():
        part, _, field = key.partition(".")
        configs.setdefault(part, {})[field] = value
    return configs


def _check(config: Mapping[str, Any]) -> Mapping[str, Any]:
    usual = LoraConfig().to_dict()
    if config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"peft_type is {config['peft_type']!r}; supported: 'LORA'")
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise ValueError(
            f"init_lora_weights is {config['init_lora_weights']!r}, which changes the model's own weights too; "
            "supported: files that peft has converted to plain LoRAs"
        )
    for field, value in config.items():
        if field not in _SHOWN | _HEEDED and value and value != usual.get(field):
            raise ValueError(f"its configuration has {field} {value!r}; supported: {usual.get(field)!r}")
    return config
