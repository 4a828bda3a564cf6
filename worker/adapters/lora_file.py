"""A LoRA file, whoever wrote it: its layers, by the names that the file gives them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

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
