"""Find, for every English word of a thing that no caption has, the name that stands in for it.

A category's names vote, each by how near it is to the word and its definition; a word without a clear vote has none.
"""

import argparse
import re
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from training.corpus import PROMPT_FRAMES, TEMPLATES, WORDS, read_names, read_words, split_words
from training.dataset import read_folders
from training.teacher import Teacher, find_teacher

LEAST = 0.25  # of all votes
_SHARPNESS = 20.0  # of the votes, in cosines
WORDNET = Path("/usr/share/wordnet")  # of the Debian package `wordnet-base`
# Its lexicographers' files: artifacts, objects, locations, phenomena, plants, substances.
_THINGS = frozenset([6, 15, 17, 19, 20, 27])
_LEARNED = re.compile(
    r"\b(genus|family|order|species|class)\b"
)  # scholars' words: such a definition asks for no picture
_SENSES = 3  # of a word, the most frequent


def find_stand_ins(teacher: Teacher, things: dict[str, list[str]]) -> dict[str, str]:
    """Words and the names that stand in for them.

    Args:
        things: words and their definitions.
    """
    names = [(name, index) for index, several in enumerate(read_names().values()) for name in several]
    owner = torch.tensor([index for _, index in names])
    closeness = _measure(teacher, things, [name for name, _ in names])
    shares = (closeness * _SHARPNESS).softmax(1) @ functional.one_hot(owner).float()
    best, category = shares.max(1)
    nearest: list[int] = closeness.masked_fill(owner != category[:, None], -1).argmax(1).numpy().tolist()
    clear: list[bool] = (best > LEAST).numpy().tolist()
    return {word: names[row][0] for word, row, sure in zip(things, nearest, clear, strict=True) if sure}


def _measure(teacher: Teacher, things: dict[str, list[str]], names: list[str]) -> Tensor:
    """Cosines, (words, names), the mean over a word's definitions."""
    sentences = [f"{word}: {each}" for word, several in things.items() for each in several]
    counts = [len(several) for several in things.values()]
    cosines = teacher.embed(sentences) @ teacher.embed(names).T
    return torch.stack([part.mean(0) for part in torch.split(cosines, counts)])


def list_known(folders: list[Path]) -> set[str]:
    """Words of the captions, and those that are no things to people who write prompts."""
    captions = [picture.caption for picture in read_folders(folders) if not picture.held_out]
    names = [name for several in read_names().values() for name in several]
    known = {
        word for sentence in (*captions, *names, *PROMPT_FRAMES, *TEMPLATES) for word in split_words(sentence)
    }
    return known.union(read_words("qualities"), read_words("colours"))


def read_things(folder: Path = WORDNET) -> dict[str, list[str]]:
    """WordNet's nouns (Miller 1995) that name things.

    Returns:
        Single words, lower case, and the definitions of those of their first senses that are things.
    """
    definitions = dict(_read_definitions(folder / "data.noun"))
    things: dict[str, list[str]] = {}
    for word, _, count, *fields in _read_fields(folder / "index.noun"):
        senses = fields[-int(count) :][:_SENSES]
        if word.isalpha() and (found := [definitions[each] for each in senses if each in definitions]):
            things[word] = found
    return things


def _read_definitions(path: Path) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for offset, file, *fields in _read_fields(path):
        gloss = " ".join(fields).partition(" | ")[2]
        if int(file) in _THINGS and not _LEARNED.search(gloss):
            found.append((offset, gloss.partition('"')[0].strip("; ")))
    return found


def _read_fields(path: Path) -> list[list[str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if not line.startswith(" ")]  # those are the licence


def main() -> None:
    """Command line: `python -m training.stand_ins SHARD [SHARD ...]` writes `words/stand_ins.txt`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("shards", type=Path, nargs="+")
    known = list_known(parser.parse_args().shards)
    things = {word: several for word, several in read_things().items() if word not in known}
    found = find_stand_ins(Teacher(find_teacher(), torch.device("cpu")), things)
    lines = [f"{word} {name.replace(' ', '_')}" for word, name in sorted(found.items())]
    (WORDS / "stand_ins.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
