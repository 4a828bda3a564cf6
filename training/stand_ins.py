"""Find, for every English word of a thing that no caption has, the name that stands in for it.

A category's names vote, each by how near it is to the word and its definition; a word without a clear vote has none.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from training.corpus import PROMPT_FRAMES, TEMPLATES, WORDS, read_names, read_words, split_words
from training.dataset import read_folders
from training.teacher import Teacher, find_teacher
from training.wordnet import read_things

LEAST = 0.25  # of all votes
_SHARPNESS = 20.0  # of the votes, in cosines


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
    nearest = closeness.masked_fill(owner != category[:, None], -1).argmax(1).tolist()
    clear = (best > LEAST).tolist()
    return {word: names[row][0] for word, row, sure in zip(things, nearest, clear, strict=True) if sure}


def _measure(teacher: Teacher, things: dict[str, list[str]], names: list[str]) -> Tensor:
    """Cosines, (words, names), the mean over a word's definitions."""
    sentences = [f"{word}: {each}" for word, several in things.items() for each in several]
    counts = torch.tensor([len(several) for several in things.values()])
    cosines = teacher.embed(sentences) @ teacher.embed(names).T
    return torch.stack([part.mean(0) for part in cosines.split(counts.tolist())])


def list_known(folders: list[Path]) -> set[str]:
    """Words that the denoiser has heard in captions, and those that are no things to people who write prompts."""
    captions = [picture.caption for picture in read_folders(folders) if not picture.held_out]
    names = [name for several in read_names().values() for name in several]
    spoken = {
        word for sentence in (*captions, *names, *PROMPT_FRAMES, *TEMPLATES) for word in split_words(sentence)
    }
    return spoken.union(read_words("qualities"), read_words("colours"))


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
