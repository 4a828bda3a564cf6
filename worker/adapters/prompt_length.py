"""Text encoders read so many tokens and no more; pipelines cut what is longer without a word."""

import inspect
from collections.abc import Iterator

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import PreTrainedTokenizerBase

from worker.adapters.model import Conditions

_TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")  # the last one reads the most


def find_cut_prompts(pipe: DiffusionPipeline, conditions: Conditions) -> Iterator[str]:
    """What will not be read, in words for people; a chat template's own tokens are not counted."""
    tokenizers = [pipe.components.get(name) for name in _TOKENIZERS]
    for tokenizer in [each for each in tokenizers if isinstance(each, PreTrainedTokenizerBase)][-1:]:
        limit = _find_limit(pipe, tokenizer)
        for field, text in (
            ("prompt", conditions.prompt),
            ("negative_prompt", conditions.negative_prompt),
        ):
            count = len(tokenizer(text, truncation=False, verbose=False).input_ids)
            if count > limit:
                yield f"{field} has {count} tokens; the model reads the first {limit} and not the rest"


def _find_limit(pipe: DiffusionPipeline, tokenizer: PreTrainedTokenizerBase) -> int:
    """As the pipeline's own `encode_prompt` has it; else it cuts where the tokenizer says."""
    encode_prompt = getattr(pipe, "encode_prompt", None)
    parameters = inspect.signature(encode_prompt).parameters if encode_prompt else {}
    chosen = parameters.get("max_sequence_length")
    return chosen.default if chosen and isinstance(chosen.default, int) else tokenizer.model_max_length
