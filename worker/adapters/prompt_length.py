"""How many tokens of a prompt a text encoder reads; pipelines truncate what is longer without a warning."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import PreTrainedTokenizerBase

from worker.adapters.errors import ModelFolderError
from worker.adapters.model import Conditions

_ROLES = ("", "_2", "_3")  # the last one reads the most
_CLIP = "clip_text_model"  # learned positions, so that it cannot read on
_MARK = "\x1a"  # stands for the prompt in a chat template


class Encoding(Protocol):
    """A text as tokens."""

    @property
    def input_ids(self) -> list[int]: ...


class Tokenizer(Protocol):
    """One of transformers', whose methods take and return more than is used here, mostly without types."""

    model_max_length: int

    def __call__(self, text: str, **options: object) -> Encoding: ...


@dataclass(frozen=True, slots=True)
class _Limit:
    """How many tokens of a tokenizer are read; `special` if those include its special tokens."""

    tokenizer: Tokenizer
    tokens: int
    special: bool = True

    def count(self, text: str) -> int:
        encoding = self.tokenizer(text, truncation=False, verbose=False, add_special_tokens=self.special)
        return len(encoding.input_ids)


def find_cut_prompts(pipe: DiffusionPipeline, conditions: Conditions) -> Iterator[str]:
    """Messages about prompts that will be truncated."""
    limit = _find_limit(pipe)
    if limit is None:
        return
    for number, prompt in enumerate(conditions.prompts):
        place = f"regions.{number - 1}." if number else ""
        for field, text in (("prompt", prompt.text), ("negative_prompt", prompt.negative)):
            if (count := limit.count(text)) > limit.tokens:
                reads = f"the model reads the first {limit.tokens} and not the rest"
                yield f"{place}{field} has {count} tokens; {reads}"


def limit_tokenizers(pipe: DiffusionPipeline) -> None:
    """Where a folder states no limit, or too high a one, the text encoder's positions are it.

    Raises:
        ModelFolderError: what it states is no number.
    """
    for role in _ROLES:
        tokenizer, most = _find_tokenizer(pipe, role), _find_positions(pipe, role)
        if tokenizer is not None and most is not None:
            stated = cast(object, tokenizer.model_max_length)  # as the folder has it
            if not isinstance(stated, int | float):
                raise ModelFolderError(
                    f"tokenizer{role}: model_max_length is {stated!r}; allowed: a number, or nothing"
                )
            tokenizer.model_max_length = int(min(stated, most))
            if getattr(pipe, "tokenizer_max_length", 0) > most:
                pipe.tokenizer_max_length = most


def _find_limit(pipe: DiffusionPipeline) -> _Limit | None:
    role = next((role for role in reversed(_ROLES) if _find_tokenizer(pipe, role)), None)
    tokenizer = None if role is None else _find_tokenizer(pipe, role)
    if role is None or tokenizer is None:
        return None
    if _find_positions(pipe, role) is not None:
        return _Limit(tokenizer, getattr(pipe, "tokenizer_max_length", tokenizer.model_max_length))
    limit, before = _find_max_sequence_length(pipe, tokenizer), _count_template(pipe, tokenizer)
    if type(pipe).__name__ == "SanaPipeline":  # its instructions are extra, and so are two special tokens
        return _Limit(tokenizer, limit - 2, special=False)
    return _Limit(tokenizer, limit - before, special=before == 0)


def _find_max_sequence_length(pipe: DiffusionPipeline, tokenizer: Tokenizer) -> int:
    """The limit that the adapters pass: the default of `encode_prompt`, or else what the pipeline passes to it."""
    kind = type(pipe).__name__
    if kind == "FluxPipeline" and not pipe.components["transformer"].config["guidance_embeds"]:
        return 256
    encodes: Callable[..., object] = getattr(
        pipe, "__call__" if kind == "QwenImagePipeline" else "encode_prompt"
    )
    chosen = inspect.signature(encodes).parameters.get("max_sequence_length")
    return chosen.default if chosen else tokenizer.model_max_length


def _count_template(pipe: DiffusionPipeline, tokenizer: Tokenizer) -> int:
    """Tokens that a template writes before the prompt, less those that are dropped again."""
    match type(pipe).__name__:
        case "QwenImagePipeline":
            text, dropped = pipe.prompt_template_encode.format(_MARK), pipe.prompt_template_encode_start_idx
        case "Flux2Pipeline":
            texts = (("system", pipe.system_message), ("user", _MARK))
            messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in texts]
            text, dropped = _fill_template(pipe, messages), 0
        case "Flux2KleinPipeline" | "ZImagePipeline":
            text, dropped = _fill_template(pipe, [{"role": "user", "content": _MARK}]), 0
        case _:
            return 0
    return len(tokenizer(text.partition(_MARK)[0], add_special_tokens=False).input_ids) - dropped


def _fill_template(pipe: DiffusionPipeline, messages: list[dict[str, Any]]) -> str:
    return pipe.components["tokenizer"].apply_chat_template(messages, tokenize=False)


def _find_tokenizer(pipe: DiffusionPipeline, role: str) -> Tokenizer | None:
    """A processor for text and pictures has one inside."""
    found = pipe.components.get(f"tokenizer{role}")
    inner = getattr(found, "tokenizer", found)
    return cast(Tokenizer, inner) if isinstance(inner, PreTrainedTokenizerBase) else None


def _find_positions(pipe: DiffusionPipeline, role: str) -> int | None:
    config = getattr(pipe.components.get(f"text_encoder{role}"), "config", None)
    if getattr(config, "model_type", None) != _CLIP:
        return None
    return getattr(config, "max_position_embeddings", None)
