"""WordNet's nouns (Miller 1995) that name things: words, and what they mean."""

import re
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")  # of the Debian package `wordnet-base`
# Its lexicographers' files: artifacts, objects, locations, phenomena, plants, substances.
_THINGS = frozenset([6, 15, 17, 19, 20, 27])
_LEARNED = re.compile(r"\b(genus|family|order|species|class)\b")  # who speaks so asks for no picture
_SENSES = 3  # of a word, the most frequent


def read_things(folder: Path = WORDNET) -> dict[str, list[str]]:
    """Single words, lower case, and the definitions of those of their first senses that are things."""
    definitions = dict(_read_definitions(folder / "data.noun"))
    things: dict[str, list[str]] = {}
    for word, _, count, *fields in _read_fields(folder / "index.noun"):
        senses = fields[-int(count) :][:_SENSES]
        if word.isalpha() and (found := [definitions[each] for each in senses if each in definitions]):
            things[word] = found
    return things


def _read_definitions(path: Path) -> list[tuple[str, str]]:
    found = []
    for offset, file, *fields in _read_fields(path):
        gloss = " ".join(fields).partition(" | ")[2]
        if int(file) in _THINGS and not _LEARNED.search(gloss):
            found.append((offset, gloss.partition('"')[0].strip("; ")))
    return found


def _read_fields(path: Path) -> list[list[str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if not line.startswith(" ")]  # those are the licence
