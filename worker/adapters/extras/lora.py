"""LoRAs of a pipeline: loaded and active where a picture has them, taken out where one has none."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from peft import (
    LoraConfig,
    inject_adapter_in_model,
    set_peft_model_state_dict,  # pyright: ignore[reportUnknownVariableType]  # some of its options have no types
)
from safetensors.torch import (
    load_file,  # pyright: ignore[reportUnknownVariableType]  # its path has no type
)
from torch import Tensor, nn

from worker.adapters.add_ons import Lora, WeightsFile, find_weights
from worker.adapters.errors import ModelFolderError
from worker.adapters.extras.lora_conversion import Converter
from worker.adapters.extras.lora_file import read_scales
from worker.adapters.extras.lora_layers import LoraLayer, find_targets, match_layers
from worker.engine.ensemble import Batch, Replica

_KEPT = 8  # in memory, those of the last pictures


class LoraPipeline(Converter, Protocol):
    """A diffusers pipeline whose text encoders and denoiser take LoRAs."""

    _lora_loadable_modules: list[str]

    def set_adapters(self, adapter_names: list[str], adapter_weights: list[float]) -> None: ...

    def delete_adapters(self, adapter_names: list[str]) -> None: ...

    def unload_lora_weights(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ChosenLora:
    """A LoRA of one picture, and the file that it was then."""

    lora: Lora
    file: WeightsFile


LoraSet = tuple[ChosenLora, ...]


class Loras:
    """The LoRAs of one pipeline: several in memory, one set of them active.

    The model's own weights are never touched: a LoRA's are computed beside them. So a picture
    without any has the same bytes whatever was loaded before; then the layers that hold them are
    taken out too, to cost nothing.
    """

    def __init__(self, pipe: LoraPipeline) -> None:
        self._pipe = pipe
        names = pipe._lora_loadable_modules  # pyright: ignore[reportPrivateUsage]  # nothing public says it
        parts = {name: getattr(pipe, name, None) for name in names}
        self._parts = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        self._targets = find_targets(self._parts)
        self._adapters: dict[WeightsFile, list[str]] = {}  # peft's names; least recently used first
        self._count = 0
        self._active: LoraSet | None = ()  # None while it changes

    def choose(self, loras: Sequence[Lora]) -> LoraSet:
        """Load them and make them active.

        Raises:
            ModelFolderError: one is not for this model, or unreadable; then none is loaded.
        """
        chosen = tuple(ChosenLora(lora, find_weights(lora.path)) for lora in loras)
        self.activate(chosen)
        return chosen

    def activate(self, chosen: LoraSet) -> None:
        """Apply exactly these, at no cost where they are active already; one of weight 0 is read, and then left out.

        Raises:
            ModelFolderError: one is not for this model, unreadable, or no longer what was chosen.
        """
        if chosen == self._active:
            return
        self._active = None
        try:
            loaded = [(each.lora.weight, self._load(each)) for each in chosen]
        except ModelFolderError:
            self._unload_all()
            raise
        weights = {name: weight for weight, names in loaded if weight for name in names}
        if weights:
            self._forget(weights)
            self._pipe.set_adapters(list(weights), list(weights.values()))
        else:
            self._unload_all()
        self._active = chosen

    def _load(self, chosen: ChosenLora) -> list[str]:
        names = self._adapters.pop(chosen.file, None) or self._read(chosen)
        self._adapters[chosen.file] = names
        return names

    def _read(self, chosen: ChosenLora) -> list[str]:
        chosen.file.require_unchanged()
        file, path = chosen.file.path, chosen.lora.path
        try:
            scales = read_scales(chosen.file, path if path.is_dir() else None)
            layers = match_layers(load_file(file), scales, self._targets, self._pipe)
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

    def _unload_all(self) -> None:
        self._pipe.unload_lora_weights()
        self._adapters.clear()


@dataclass(frozen=True, slots=True)
class LoraReplica:
    """A replica that predicts with its own LoRAs, whatever other pictures have made of the shared pipeline."""

    replica: Replica
    loras: Loras
    chosen: LoraSet

    @property
    def branches(self) -> int:
        return self.replica.branches

    def predict(self, batch: Batch) -> Tensor:
        self.loras.activate(self.chosen)
        return self.replica.predict(batch)

    def guide(self, predictions: Tensor) -> Tensor:
        return self.replica.guide(predictions)


def insert_layers(network: nn.Module, layers: Sequence[LoraLayer], adapter: str) -> None:
    """Add a file's layers to a network as one PEFT adapter, all with DoRA's magnitudes or all without.

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
        given = {
            f"lora_A.{adapter}.weight": layer.down,
            f"lora_B.{adapter}.weight": layer.up,
            f"lora_B.{adapter}.bias": layer.bias,
            f"lora_magnitude_vector.{adapter}.weight": layer.magnitude,
        }
        equal = (
            _is_equal(held.get_parameter(name), tensor)
            for name, tensor in given.items()
            if tensor is not None
        )
        if cast(Mapping[str, float], held.scaling)[adapter] != 1 or not all(equal):
            raise ValueError(f"{layer.target.part}.{layer.target.name} holds something else than the file")


def _is_equal(held: Tensor, given: Tensor) -> bool:
    return torch.equal(held, given.to(held.device, held.dtype))
