"""Teach the text encoder to hear a word that no caption has as the name that stands in for it.

It learns from itself as it was: "scree under snow" shall read as "rubble under snow" did, all else as before.
"""

import argparse
import random
import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer

from training.corpus import PROMPT_FRAMES, TEMPLATES, build_sentences, fill, read_stand_ins
from training.dataset import read_folders
from training.latents import load_encoders
from training.parts import require_part
from training.progress import Budget, choose_device, half_precision
from training.stand_ins import list_known
from training.teacher import find_teacher, list_words
from training.text_encoder import regress, tokenize

PEAK_RATE = 5e-4
_GAP = "STAND-IN"
_FRAMES = tuple(frame.replace("{}", _GAP) for frame in PROMPT_FRAMES)
_TEMPLATES = tuple(each.replace("{surface}", _GAP, 1) for each in TEMPLATES if "{surface}" in each)


@dataclass(frozen=True, slots=True)
class Lesson:
    """Sentences as they are written, and as they shall be heard.

    Attributes:
        written: tokens, int64 (N, 32); so are those `heard`.
        places: (N, 32), for each token written the one heard whose state it shall have; -1 for none.
    """

    written: Tensor
    heard: Tensor
    places: Tensor


def build_pairs(
    stand_ins: dict[str, str], plain: list[str], tokenizer: CLIPTokenizer, count: int, rng: random.Random
) -> list[tuple[str, str]]:
    """(written, heard): half of the written sentences are plain, in the other half a strange word stands.

    Frequent words, which are few pieces, are drawn more often.
    """
    words = list(stand_ins)
    weights = [1 / len(tokenizer.tokenize(word)) ** 2 for word in words]
    written = rng.choices(plain, k=count // 2)
    for word in rng.choices(words, weights, k=count - len(written)):
        sentence = fill(rng.choice(rng.choice((_FRAMES, _TEMPLATES))), words, rng)
        written.append(sentence.replace(_GAP, word))
    return [(sentence, hear(sentence, stand_ins)) for sentence in written]


def hear(sentence: str, stand_ins: dict[str, str]) -> str:
    """Every strange word by its stand-in."""
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
    """Where a sentence and the heard one differ, the last piece of the one stands for the last of the other."""
    written, heard = (tokenize(list(side), tokenizer) for side in zip(*pairs, strict=True))
    end = tokenizer.eos_token_id
    places = [_align(a, b, end) for a, b in zip(written.tolist(), heard.tolist(), strict=True)]
    return Lesson(written, heard, torch.tensor(places))


def _align(written: list[int], heard: list[int], end: int) -> list[int]:
    if written == heard:
        return list(range(len(written)))
    lengths = written.index(end), heard.index(end)
    before = next(place for place in range(len(written)) if written[place] != heard[place])
    most, after = min(lengths) - before - 1, 0
    while after < most and written[lengths[0] - 1 - after] == heard[lengths[1] - 1 - after]:
        after += 1
    last, shift = lengths[0] - 1 - after, lengths[1] - lengths[0]
    moved = [min(place + shift, len(heard) - 1) for place in range(last, len(written))]
    return [*range(before), *[-1] * (last - before), *moved]


def train(
    lesson: Lesson,
    model: CLIPTextModel,
    known: CLIPTextModel,
    budget: Budget,
    batch: int,
    device: torch.device,
) -> None:
    """Regress the states of the model `known`, of which this is a copy or a pupil."""
    known.eval().requires_grad_(False)
    model.requires_grad_(True)
    written, heard, places = (each.to(device) for each in (lesson.written, lesson.heard, lesson.places))

    def measure() -> Tensor:
        rows = torch.randint(len(written), (batch,), device=device)
        return _measure(model, known, written[rows], heard[rows], places[rows])

    regress(model, measure, budget, PEAK_RATE)


def _measure(
    model: CLIPTextModel, known: CLIPTextModel, written: Tensor, heard: Tensor, places: Tensor
) -> Tensor:
    with half_precision(written.device):
        states = model(written).last_hidden_state
        with torch.no_grad():
            wanted = known(heard).last_hidden_state
    rows = torch.arange(len(places), device=places.device)[:, None]
    error = (states.float() - wanted.float()[rows, places.clamp(min=0)]).square().mean(-1)
    return error[places >= 0].mean()


def main() -> None:
    """Command line: `python -m training.hearing SHARD [SHARD ...] --parts PARTS --out OUT --seconds 60`."""
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
    torch.manual_seed(chosen.seed)
    _, model, tokenizer = load_encoders(chosen.parts, device)
    captions = sorted({p.caption.lower() for p in read_folders(chosen.shards) if not p.held_out})
    vocabulary = list_words(AutoTokenizer.from_pretrained(chosen.teacher or find_teacher()))
    stand_ins = with_plurals(read_stand_ins(), list_known(chosen.shards))
    plain = build_sentences(captions, vocabulary, chosen.sentences, rng)
    pairs = build_pairs(stand_ins, plain, tokenizer, chosen.sentences, rng)
    lesson, known = build_lesson(pairs, tokenizer), deepcopy(model)
    if chosen.begin_with:
        model = CLIPTextModel.from_pretrained(require_part(chosen.begin_with), dtype=torch.float32).to(device)
    train(lesson, model, known, Budget(chosen.seconds), chosen.batch, device)
    model.half().save_pretrained(chosen.out / "text_encoder")


if __name__ == "__main__":
    main()
