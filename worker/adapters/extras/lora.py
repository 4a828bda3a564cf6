"""LoRAs of a pipeline: loaded when a picture asks for them, gone when one asks for none."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from worker.adapters.add_ons import Lora, find_weights, stamp
from worker.adapters.errors import ModelFolderError
from worker.adapters.extras.lora_conversion import Converter
from worker.adapters.extras.lora_file import read_scales
from worker.adapters.extras.lora_layers import LoraLayer, find_targets, lay_over

_KEPT = 8  # in memory, those of the last pictures


class LoraPipeline(Converter, Protocol):
    """A diffusers pipeline whose text encoders and denoiser take LoRAs."""

    _lora_loadable_modules: list[str]

    def set_adapters(self, adapter_names: list[str], adapter_weights: list[float]) -> None: ...

    def delete_adapters(self, adapter_names: list[str]) -> None: ...

    def unload_lora_weights(self) -> None: ...


class Loras:
    """Those of one pipeline.

    The model's own weights are never touched: a LoRA's are computed beside them. So a picture
    without any has the same bytes whatever was loaded before; then the layers that hold them are
    taken out too, to cost nothing.
    """

    def __init__(self, pipe: LoraPipeline) -> None:
        self._pipe = pipe
        parts = {part: getattr(pipe, part, None) for part in pipe._lora_loadable_modules}
        self._parts: dict[str, nn.Module] = {part: each for part, each in parts.items() if each is not None}
        self._targets = find_targets(self._parts)
        self._adapters: dict[tuple[Path, int], list[str]] = {}  # peft's names; least recently used first
        self._count = 0

    def apply(self, loras: Sequence[Lora]) -> None:
        """Exactly these. One of weight 0 is read, and then left out.

        Raises:
            ModelFolderError: one is not for this model, or unreadable; then none is loaded.
        """
        try:
            loaded = [(lora.weight, self._load(lora)) for lora in loras]
        except ModelFolderError:
            self._take_all_off()
            raise
        weights = {name: weight for weight, names in loaded if weight for name in names}
        if not weights:
            self._take_all_off()
            return
        self._forget(weights)
        self._pipe.set_adapters(list(weights), list(weights.values()))

    def _load(self, lora: Lora) -> list[str]:
        file = find_weights(lora.path)
        key = stamp(file)
        names = self._adapters.pop(key, None) or self._read(file, lora.path)
        self._adapters[key] = names
        return names

    def _read(self, file: Path, path: Path) -> list[str]:
        try:
            scales = read_scales(file, path if path.is_dir() else None)
            layers = lay_over(load_file(file), scales, self._targets, self._pipe)
            self._count += 1
            return list(self._insert(layers, f"lora-{self._count}"))
        except Exception as error:  # whatever a file of another model may raise in diffusers and PEFT
            raise ModelFolderError(f"{file.name} is no LoRA for this model: {error}") from error

    def _insert(self, layers: Sequence[LoraLayer], name: str) -> Iterator[str]:
        """PEFT takes DoRA's layers and plain ones as two adapters."""
        for kind in ("plain", "dora"):
            chosen = [layer for layer in layers if (layer.magnitude is not None) == (kind == "dora")]
            for part, network in self._parts.items():
                insert_layers(
                    network, [layer for layer in chosen if layer.target.part == part], f"{name}-{kind}"
                )
            if chosen:
                yield f"{name}-{kind}"

    def _forget(self, needed: dict[str, float]) -> None:
        spare = [key for key, names in self._adapters.items() if needed.keys().isdisjoint(names)]
        for key in spare[: max(len(self._adapters) - _KEPT, 0)]:
            self._pipe.delete_adapters(self._adapters.pop(key))

    def _take_all_off(self) -> None:
        self._pipe.unload_lora_weights()
        self._adapters.clear()


def insert_layers(network: nn.Module, layers: Sequence[LoraLayer], adapter: str) -> None:
    """Put them beside the network's own, all with DoRA's magnitudes or all without.

    Raises:
        ValueError: PEFT holds something else afterwards.
    """
    if not layers:
        return
    tensors = dict(_name_tensors(layers))
    ranks = {f"^{re.escape(layer.target.name)}": layer.down.shape[0] for layer in layers}
    config = LoraConfig(
        r=1,
        lora_alpha=1,
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
        target_modules=[layer.target.name for layer in layers],
        use_dora=layers[0].magnitude is not None,
        lora_bias=any(layer.bias is not None for layer in layers),
    )
    inject_adapter_in_model(config, network, adapter, low_cpu_mem_usage=True, state_dict=tensors)
    set_peft_model_state_dict(network, tensors, adapter, low_cpu_mem_usage=True)
    _require_equal(network, layers, adapter)


def _name_tensors(layers: Sequence[LoraLayer]) -> Iterator[tuple[str, Tensor]]:
    has_bias = any(layer.bias is not None for layer in layers)
    for layer in layers:
        name = layer.target.name
        yield f"{name}.lora_A.weight", layer.down
        yield f"{name}.lora_B.weight", layer.up
        if has_bias:
            yield (
                f"{name}.lora_B.bias",
                layer.up.new_zeros(len(layer.up)) if layer.bias is None else layer.bias,
            )
        if layer.magnitude is not None:
            yield f"{name}.lora_magnitude_vector", layer.magnitude


def _require_equal(network: nn.Module, layers: Sequence[LoraLayer], adapter: str) -> None:
    """What is in the file is what takes effect: PEFT only reports keys that it leaves out."""
    for layer in layers:
        held = network.get_submodule(layer.target.name)
        pairs = [(held.lora_A[adapter].weight, layer.down), (held.lora_B[adapter].weight, layer.up)]  # pyright: ignore
        if layer.magnitude is not None:
            pairs.append((held.lora_magnitude_vector[adapter].weight, layer.magnitude))  # pyright: ignore
        if layer.bias is not None:
            pairs.append((held.lora_B[adapter].bias, layer.bias))  # pyright: ignore
        if held.scaling[adapter] != 1 or not all(_is_equal(*pair) for pair in pairs):  # pyright: ignore
            raise ValueError(f"{layer.target.part}.{layer.target.name} holds something else than the file")


def _is_equal(held: Tensor, given: Tensor) -> bool:
    return torch.equal(held, given.to(held.device, held.dtype))
