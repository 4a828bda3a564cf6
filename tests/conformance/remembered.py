"""Text encoders that say again what they said of the same tokens: to encode them takes longer than a tiny picture."""

from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel


def remember_texts(parts: Mapping[str, object]) -> None:
    """Of a pipeline's parts, whose weights stay as they are from now on."""
    for part in parts.values():
        if isinstance(part, PreTrainedModel):
            _remember(part)


def _remember(encoder: PreTrainedModel) -> None:
    encode, known = encoder.forward, dict[str, object]()

    def answer(*inputs: object, **options: object) -> object:
        asked = repr([_list(each) for each in (*inputs, *options, *options.values())])
        if asked not in known:
            known[asked] = encode(*inputs, **options)
        return known[asked]

    encoder.forward = answer


def _list(value: object) -> object:
    return value.tolist() if isinstance(value, Tensor) else value
