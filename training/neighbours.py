"""Find words that lie near a category's names, so that a denoiser is trained on what is between the names, too."""

import argparse

import torch
from torch import Tensor

from training.corpus import WORDS, read_names, read_synonyms
from training.teacher import Teacher, find_teacher

MOST = 40  # of a category
NEAR, NEARER = 0.5, 0.03  # the cosine, and by how much the next category's is less
_NAMES = 3  # the nearest, whose mean counts


def find_neighbours(teacher: Teacher) -> dict[str, list[str]]:
    """Words of the teacher's vocabulary by category, the nearest first; no name, and none that is measured."""
    names = read_names()
    taken = {word for several in names.values() for name in several for word in name.split()}
    measured = [word for word, _, _ in read_synonyms()]
    words = [word for word in teacher.vocabulary() if word not in taken and not _is_form(word, measured)]
    vectors = teacher.embed(words)
    closeness = torch.stack([_measure(vectors, teacher.embed(several)) for several in names.values()], dim=1)
    best, owner = closeness.topk(2, dim=1)
    near = (best[:, 0] > NEAR) & (best[:, 0] - best[:, 1] > NEARER)
    order: list[int] = best[:, 0].argsort(descending=True).numpy().tolist()
    return {
        category: [words[row] for row in order if near[row] and owner[row, 0] == index][:MOST]
        for index, category in enumerate(names)
    }


def _measure(vectors: Tensor, names: Tensor) -> Tensor:
    """(N, width) and (M, width), of unit length, to (N,)."""
    return (vectors @ names.T).topk(_NAMES, dim=1).values.mean(1)


def _is_form(word: str, measured: list[str]) -> bool:
    return any(word.startswith(each[:5]) or each.startswith(word) for each in measured)


def main() -> None:
    """Command line: `python -m training.neighbours` writes `words/neighbours.txt`."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    found = find_neighbours(Teacher(find_teacher(), torch.device("cpu")))
    lines = [" ".join([category, *words]) for category, words in found.items()]
    (WORDS / "neighbours.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
