"""LoRAs of a pipeline: loaded when a picture asks for them, gone when one asks for none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from safetensors import safe_open

from worker.adapters.add_ons import Lora, find_weights, stamp
from worker.adapters.errors import ModelFolderError
from worker.adapters.precision import DENOISERS

_KEPT = 8  # in memory, those of the last pictures
_TEXT = ("text_encoder", "lora_te")  # how tensors for text encoders are called


class LoraPipeline(Protocol):
    """A diffusers pipeline whose text encoders and denoiser take LoRAs."""

    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict: str, adapter_name: str, *, weight_name: str
    ) -> None: ...

    def set_adapters(self, adapter_names: list[str], adapter_weights: list[float]) -> None: ...

    def get_list_adapters(self) -> dict[str, list[str]]: ...

    def delete_adapters(self, adapter_names: list[str]) -> None: ...

    def unload_lora_weights(self) -> None: ...


class Loras:
    """What a pipeline wears.

    The model's own weights are never touched: a LoRA's are computed beside them. So a picture
    without any has the same bytes whatever was worn before; then the layers that hold them are
    taken out too, to cost nothing.
    """

    def __init__(self, pipe: LoraPipeline) -> None:
        self._pipe = pipe
        self._names: dict[tuple[Path, int], str] = {}  # least recently used first
        self._count = 0

    def wear(self, loras: Sequence[Lora]) -> None:
        """Exactly these.

        Raises:
            ModelFolderError: one is not for this model, or unreadable.
        """
        if not loras:
            self._take_all_off()
            return
        names = [self._load(lora) for lora in loras]
        self._forget(names)
        self._pipe.set_adapters(names, [lora.weight for lora in loras])

    def _load(self, lora: Lora) -> str:
        file = find_weights(lora.path)
        key = stamp(file)
        name = self._names.pop(key, None) or self._read(file)
        self._names[key] = name
        return name

    def _read(self, file: Path) -> str:
        self._count += 1
        name = f"lora-{self._count}"
        try:
            self._pipe.load_lora_weights(str(file.parent), name, weight_name=file.name)
            self._require_heard(name, file)
        except Exception as error:  # whatever a file of another model may raise in diffusers and PEFT
            self._take_all_off()
            raise ModelFolderError(f"{file.name} is no LoRA for this model: {error}") from error
        return name

    def _require_heard(self, name: str, file: Path) -> None:
        """diffusers only logs that a file has nothing for the denoiser."""
        heard_by = {part for part, names in self._pipe.get_list_adapters().items() if name in names}
        with safe_open(file, "pt") as tensors:
            is_for_text = all(key.startswith(_TEXT) for key in tensors.keys())  # noqa: SIM118
        if not heard_by & set(DENOISERS) and not (heard_by and is_for_text):
            raise ValueError("nothing in it is for the denoiser")

    def _forget(self, needed: Sequence[str]) -> None:
        spare = [key for key, name in self._names.items() if name not in needed]
        for key in spare[: max(len(self._names) - _KEPT, 0)]:
            self._pipe.delete_adapters([self._names.pop(key)])

    def _take_all_off(self) -> None:
        self._pipe.unload_lora_weights()
        self._names.clear()
