"""A LoRA file, whoever wrote it: its layers, by the names that the file gives them."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

from worker.adapters.add_ons import WeightsFile

Role = Literal["down", "up", "mid", "bias", "alpha", "magnitude"]

# peft writes lora_A.weight, or lora_A.default.weight from inside a training run; kohya lora_down.weight; older
# diffusers lora.down.weight, to_q_lora.down.weight and lora_linear_layer.down.weight; xlabs qkv_lora1.down.weight.
_MATRIX = re.compile(
    r"(?P<layer>.+?)(?:[._]lora|\.lora_linear_layer|(?<=_lora[12]))[._](?P<role>A|B|down|up|mid)(?:\.[^.]+)?\.(?P<kind>weight|bias)"
)
_ROLES: dict[tuple[str, str], Role] = {
    ("A", "weight"): "down", ("down", "weight"): "down", ("B", "weight"): "up", ("up", "weight"): "up",
    ("mid", "weight"): "mid", ("B", "bias"): "bias", ("up", "bias"): "bias",
}  # fmt: skip
_MAGNITUDE = re.compile(r"(?P<layer>.+?)\.(?:dora_scale|lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?)")
_ALPHA = re.compile(r"(?P<layer>.+)\.alpha")
SUPPORTED = "lora_A and lora_B, or lora_down and lora_up, with lora_mid, alpha, dora_scale, lora_magnitude_vector or lora_B.bias"


@dataclass(frozen=True, slots=True)
class FileLayer:
    """W + alpha / rank * up @ down (Hu et al. 2021, section 4.1).

    Args:
        keys: where its tensors lie in the file.
    """

    keys: Mapping[Role, str]
    tensors: Mapping[Role, Tensor]

    @property
    def rank(self) -> int:
        return self.tensors["up"].shape[1]

    @property
    def alpha(self) -> float | None:
        return float(self.tensors["alpha"]) if "alpha" in self.tensors else None

    @property
    def adds_nothing(self) -> bool:
        """Trainers write layers that they did not train."""
        has_more = "magnitude" in self.tensors or "bias" in self.tensors
        return not has_more and not self.tensors["up"].any()

    def flatten_mid(self) -> Tensor:
        """down, into which LyCORIS' middle convolution is multiplied: (rank, in) or (rank, in, h, w)."""
        down, mid = self.tensors["down"], self.tensors.get("mid")
        if mid is None:
            return down
        return torch.einsum("abhw,bi->aihw", mid.float(), down.float().flatten(1))


def split_layers(tensors: Mapping[str, Tensor]) -> tuple[dict[str, FileLayer], list[str]]:
    """(whole layers by name, keys that belong to none). Tensors of zeros that only add something are left out."""
    keys: dict[str, dict[Role, str]] = {}
    rest: list[str] = []
    for key, tensor in tensors.items():
        name, role = _parse(key)
        if role is None:
            rest += [] if _is_idle(key, tensor) else [key]
        elif role in keys.setdefault(name, {}):
            rest.append(key)
        else:
            keys[name][role] = key
    whole = {name: found for name, found in keys.items() if _is_whole(found, tensors)}
    rest += [key for name, found in keys.items() if name not in whole for key in found.values()]
    layers = {name: _gather(found, tensors) for name, found in whole.items()}
    return layers, rest


def _parse(key: str) -> tuple[str, Role | None]:
    if match := _MATRIX.fullmatch(key):
        return match["layer"], _ROLES.get((match["role"], match["kind"]))
    if match := _MAGNITUDE.fullmatch(key):
        return match["layer"], "magnitude"
    if match := _ALPHA.fullmatch(key):
        return match["layer"].removesuffix("_lora").removesuffix(".lora"), "alpha"
    return key, None


def _is_idle(key: str, tensor: Tensor) -> bool:
    """Trainers write differences of biases and norms also where they did not train them."""
    return key.endswith((".diff", ".diff_b")) and not tensor.any()


def _is_whole(found: Mapping[Role, str], tensors: Mapping[str, Tensor]) -> bool:
    if not {"down", "up"} <= set(found):
        return False
    shapes = {role: tensors[key].shape for role, key in found.items()}
    if min(len(shapes["down"]), len(shapes["up"])) < 2 or tensors[found["down"]].numel() == 0:
        return False
    inner = [shapes["down"][0], shapes["up"][1]]
    if "mid" in shapes:
        inner = [*shapes["mid"][:2], *inner] if len(shapes["mid"]) == 4 else [0, 1]
    return len(set(inner)) == 1 and ("alpha" not in found or tensors[found["alpha"]].numel() == 1)


def _gather(found: Mapping[Role, str], tensors: Mapping[str, Tensor]) -> FileLayer:
    return FileLayer(dict(_sort(found)), {role: tensors[key] for role, key in _sort(found)})


def _sort(found: Mapping[Role, str]) -> Iterator[tuple[Role, str]]:
    return ((role, found[role]) for role in get_args(Role) if role in found)


PEFT_CONFIG, _PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_HEADER = "lora_adapter_metadata"  # diffusers' name for all parts' configurations in one, as {"unet.r": 4}
# What these state shows in the tensors too, or was of use in training only.
_SHOWN = {
    "r", "rank_pattern", "target_modules", "exclude_modules", "lora_bias", "use_dora", "modules_to_save", "bias",
    "layers_to_transform", "layers_pattern", "lora_dropout", "task_type", "auto_mapping", "peft_version",
    "base_model_name_or_path", "revision", "inference_mode", "megatron_core", "eva_config", "qalora_group_size",
    "ensure_weight_tying", "trainable_token_indices",
}  # fmt: skip
_HONOURED = {"peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "init_lora_weights"}
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # others change the model's own weights too


class LoraScales:
    """Scale of each layer, where its file has no alpha of its own."""

    def __init__(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        self._configs = configs

    def find(self, part: str, name: str, rank: int) -> float:
        """A layer's scale as in peft: alpha / rank, alpha / sqrt(rank) (Kalajdzievski 2023), 1 without an alpha."""
        config = self._configs.get(part, self._configs.get(""))
        usual: float | None = None if config is None else config.get("lora_alpha")
        if config is None or usual is None:
            return 1.0
        pattern: Mapping[str, float] = config.get("alpha_pattern") or {}
        alpha = pattern.get(get_pattern_key(list(pattern), name), usual)
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def read_scales(file: WeightsFile, folder: Path | None) -> LoraScales:
    """What a file's header, or the configuration beside it, states as alpha and rank scaling.

    Args:
        folder: whose `adapter_config.json` belongs to the file.

    Raises:
        ValueError: it asks for something that is not supported.
    """
    with file.open() as opened:
        header = (opened.metadata() or {}).get(_HEADER)
    if header is not None:
        return LoraScales({part: _check(config) for part, config in _group(json.loads(header)).items()})
    if folder is not None and (folder / PEFT_CONFIG).is_file():
        return LoraScales({"": _check(json.loads((folder / PEFT_CONFIG).read_text()))})
    if file.path.name == _PEFT_WEIGHTS and (file.path.parent / PEFT_CONFIG).is_file():
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
    usual = cast(Mapping[str, Any], LoraConfig().to_dict())
    if config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"peft_type is {config['peft_type']!r}; supported: 'LORA'")
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise ValueError(
            f"init_lora_weights is {config['init_lora_weights']!r}, which changes the model's own weights too; "
            "supported: files that peft has converted to plain LoRAs"
        )
    for field, value in config.items():
        if field not in _SHOWN | _HONOURED and value and value != usual.get(field):
            raise ValueError(f"its configuration has {field} {value!r}; supported: {usual.get(field)!r}")
    return config
