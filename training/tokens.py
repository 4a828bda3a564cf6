"""The tokenizer of the text encoder: CLIP's kind of byte-pair encoding over our own words."""

import json
from collections.abc import Iterator

from tokenizers import Tokenizer, models, trainers
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 32


def train_tokenizer(words: list[str], general: list[str], size: int) -> CLIPTokenizer:
    """Learn merges so that nearly every word of the surfaces, and frequent English words, are one token.

    Args:
        words: of the captions and word lists, each counts 40 times.
        general: English words, the most frequent first.
    """
    pattern = CLIPTokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE(unk_token=END, continuing_subword_prefix="", end_of_word_suffix="</w>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = pattern.normalizer, pattern.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[START, END], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(_weighted(words, general), trainer)
    vocabulary, merges = _read_bpe(tokenizer)
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # pyright: ignore[reportArgumentType]  # pairs, which the annotation leaves out
        model_max_length=MAX_TOKENS,
    )


def find_end(tokenizer: CLIPTokenizer) -> int:
    """The number of the end token, which is the padding too."""
    return tokenizer.get_vocab()[END]


def split_pieces(word: str, tokenizer: CLIPTokenizer) -> list[str]:
    """The pieces of a word that are tokens."""
    return tokenizer.tokenize(word)  # pyright: ignore[reportUnknownMemberType]


def _weighted(words: list[str], general: list[str]) -> Iterator[str]:
    for word in words:
        yield from [word] * 40
    for rank, word in enumerate(general):
        yield from [word] * max(1, 24 - rank // 250)
    yield from "abcdefghijklmnopqrstuvwxyz0123456789,.;:!?'\"()-/&%"


def _read_bpe(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]
