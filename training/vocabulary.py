"""Extend the vocabulary of the text encoder: a word that no caption has gets the states of its stand-in.

The encoder is distilled from itself as it was: "scree under snow" shall have the states that "rubble under snow"
had, all else those that it had before.
"""

import argparse
import random
import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from training.corpus import PROMPT_FRAMES, TEMPLATES, build_sentences, fill, read_stand_ins
from training.dataset import read_folders
from training.parts import load_encoders, load_text_encoder, place, save_half
from training.progress import Budget, choose_device, half_precision, set_seed
from training.stand_ins import list_known
from training.teacher import find_teacher, load_words
from training.text_encoder import regress, tokenize
from training.tokens import find_end, split_pieces

PEAK_RATE = 5e-4
_GAP = "STAND-IN"
_FRAMES = tuple(frame.replace("{}", _GAP) for frame in PROMPT_FRAMES)
_TEMPLATES = tuple(each.replace("{surface}", _GAP, 1) for each in TEMPLATES if "{surface}" in each)


@dataclass(frozen=True, slots=True)
class Lesson:
    """Sentences as they are written, and with stand-ins in place of the words that no caption has.

    Attributes:
        written: tokens, int64 (N, 32); so are the `substituted` ones.
        places: (N, 32), for each token written the substituted one whose state it shall have; -1 for none.
    """

    written: Tensor
    substituted: Tensor
    places: Tensor


def build_pairs(
    stand_ins: dict[str, str], plain: list[str], tokenizer: CLIPTokenizer, count: int, rng: random.Random
) -> list[tuple[str, str]]:
    """(written, substituted): half of the written sentences are plain, in the other half a new word stands.

    Frequent words, which are few pieces, are drawn more often.
    """
    words = list(stand_ins)
    weights = [1 / len(split_pieces(word, tokenizer)) ** 2 for word in words]
    written = rng.choices(plain, k=count // 2)
    for word in rng.choices(words, weights, k=count - len(written)):
        sentence = fill(rng.choice(rng.choice((_FRAMES, _TEMPLATES))), words, rng)
        written.append(sentence.replace(_GAP, word))
    return [(sentence, substitute(sentence, stand_ins)) for sentence in written]


def substitute(sentence: str, stand_ins: dict[str, str]) -> str:
    """Every new word by its stand-in."""
    return re.sub("[a-z]+", lambda word: stand_ins.get(word.group(), word.group()), sentence)


def with_plurals(stand_ins: dict[str, str], known: set[str]) -> dict[str, str]:
    """The same for more than one of a thing, but for words that captions have."""
    plurals = {_pluralize(word): name for word, name in stand_ins.items()}
    return {word: name for word, name in plurals.items() if word not in known} | stand_ins


def _pluralize(word: str) -> str:
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"


def build_lesson(pairs: list[tuple[str, str]], tokenizer: CLIPTokenizer) -> Lesson:
    """Where a sentence and the substituted one differ, the last piece of the one stands for the last of the other."""
    written, substituted = (tokenize(list(side), tokenizer) for side in zip(*pairs, strict=True))
    end = find_end(tokenizer)
    rows: list[list[int]] = written.numpy().tolist()
    others: list[list[int]] = substituted.numpy().tolist()
    places = [_align(row, other, end) for row, other in zip(rows, others, strict=True)]
    return Lesson(written, substituted, torch.tensor(places))


def _align(written: list[int], substituted: list[int], end: int) -> list[int]:
    if written == substituted:
        return list(range(len(written)))
    lengths = written.index(end), substituted.index(end)
    before = next(place for place in range(len(written)) if written[place] != substituted[place])
    most, after = min(lengths) - before - 1, 0
    while after < most and written[lengths[0] - 1 - after] == substituted[lengths[1] - 1 - after]:
        after += 1
    last, shift = lengths[0] - 1 - after, lengths[1] - lengths[0]
    moved = [min(place + shift, len(substituted) - 1) for place in range(last, len(written))]
    return [*range(before), *[-1] * (last - before), *moved]


def train(
    lesson: Lesson,
    model: CLIPTextModel,
    known: CLIPTextModel,
    budget: Budget,
    batch: int,
    device: torch.device,
) -> None:
    """Regress the states of the model `known`, of which this is a copy, or one that was trained so before."""
    known.eval().requires_grad_(False)
    model.requires_grad_(True)
    written, substituted, places = (
        each.to(device) for each in (lesson.written, lesson.substituted, lesson.places)
    )

    def measure() -> Tensor:
        rows = torch.randint(len(written), (batch,), device=device)
        return _measure(model, known, written[rows], substituted[rows], places[rows])

    regress(model, measure, budget, PEAK_RATE)


def _measure(
    model: CLIPTextModel, known: CLIPTextModel, written: Tensor, substituted: Tensor, places: Tensor
) -> Tensor:
    with half_precision(written.device):
        states = model(written).last_hidden_state
        with torch.no_grad():
            wanted = known(substituted).last_hidden_state
    rows = torch.arange(len(places), device=places.device)[:, None]
    error = (states.float() - wanted.float()[rows, places.clamp(min=0)]).square().mean(-1)
    return error[places >= 0].mean()


def main() -> None:
    """Command line: `python -m training.vocabulary SHARD [SHARD ...] --parts PARTS --out OUT --seconds 60`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument("--parts", type=Path, required=True, help="folder with the encoders as they are")
    parser.add_argument("--out", type=Path, required=True, help="folder for the new text_encoder/")
    parser.add_argument(
        "--teacher", type=Path, help="folder with the tokenizer of all-MiniLM-L6-v2; default: the package's"
    )
    parser.add_argument("--begin-with", type=Path, help="text_encoder folder of an earlier run")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--sentences", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=5)
    chosen = parser.parse_args()
    device, rng = choose_device(), random.Random(chosen.seed)
    set_seed(chosen.seed)
    _, model, tokenizer = load_encoders(chosen.parts, device)
    captions = sorted({p.caption.lower() for p in read_folders(chosen.shards) if not p.held_out})
    vocabulary = load_words(chosen.teacher or find_teacher())
    stand_ins = with_plurals(read_stand_ins(), list_known(chosen.shards))
    plain = build_sentences(captions, vocabulary, chosen.sentences, rng)
    pairs = build_pairs(stand_ins, plain, tokenizer, chosen.sentences, rng)
    lesson, known = build_lesson(pairs, tokenizer), deepcopy(model)
    if chosen.begin_with:
        model = place(load_text_encoder(chosen.begin_with), device)
    train(lesson, model, known, Budget(chosen.seconds), chosen.batch, device)
    save_half(model, chosen.out / "text_encoder")


if __name__ == "__main__":
    main()
