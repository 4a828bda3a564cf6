"""The field's standard words stand alone: the choir stays in the name, a README line and the page's motto."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (
    "api_schemas",
    "provenance",
    "service",
    "chorale",
    "deploy",
    "worker",
    "training",
    "benchmarks",
    "tests",
)
FILES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "docker-compose.yml", "Dockerfile")
_SUFFIXES = frozenset({".css", ".html", ".js", ".md", ".py", ".svg", ".toml", ".yml"})
_FOREIGN = frozenset({"vendor", "__pycache__"})

# Whole words in any case, also as parts of names such as `sungTiles` or `_hear_all`.
_FORBIDDEN = re.compile(
    r"""
    s[aiu]ng | sings | singing | singers? | songs? | solos? | chorus | choral | choirs? | voic(e[ds]?|ing)
    | hear(s|ing)? | (un)?heard | listen(s|ed|ing|ers?)? | speak(s|ing|ers?)? | spoken? | breath(s|e[ds]?|ing)?
    | wear(s|ing)? | wor[en] | walk(s|ed|ing|ers?)? | perform(s|ed|ing|ers?|ances?)?
    | rehears(e[ds]?|als?|ing) | concerts? | harmon(y|ies) | rooms? | houses? | corridors? | cage[ds]? | anew
    | think(s|ing)? | believ(e[ds]?|ing)
    """,
    re.VERBOSE,
)
# Honest uses, each with its neighbours; they are cut out before words are looked for.
_ALLOWED_PHRASES = (
    r"\bperform_job\b",  # RQ
    r"\bSong et al\.",  # an author
    r"\b(os|ast)\.walk\b",  # the standard library
    r"\b(add|remove)EventListener\b",  # the DOM
    r"\.listen\(",  # sockets
)
# The two places of the brand, each once in its file.
BRAND = {
    "README.md": "A choir, not a solo:",
    "service/viewer/index.html": '<p class="motto">Very large pictures, in many voices</p>',
}
_ALLOWED = re.compile("|".join(_ALLOWED_PHRASES))
# Camel case, snake case and dashes: each part of a name is a word.
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def _find_words(text: str) -> list[str]:
    parts = (part.lower() for part in _PART.findall(_ALLOWED.sub(" ", text)))
    return [part for part in parts if _FORBIDDEN.fullmatch(part)]


def _list_files(folder: str) -> Iterator[Path]:
    for path in sorted((ROOT / folder).rglob("*")):
        if (
            path.suffix in _SUFFIXES
            and path != Path(__file__)
            and not _FOREIGN.intersection(path.relative_to(ROOT).parts)
        ):
            yield path


@pytest.mark.parametrize("place", [*FOLDERS, *FILES])
def test_names_and_texts_use_the_words_of_the_field(place: str) -> None:
    path = ROOT / place
    files = list(_list_files(place)) if path.is_dir() else [path]
    assert files
    found: list[str] = []
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        text = file.read_text()
        if name in BRAND:
            assert text.count(BRAND[name]) == 1, f"{name}: {BRAND[name]}"
            text = text.replace(BRAND[name], "")
        found += [f"{name}: {word}" for word in _find_words(Path(name).stem)]
        found += [
            f"{name}:{number}: {word}"
            for number, line in enumerate(text.splitlines(), 1)
            for word in _find_words(line)
        ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    ["It Sang.", "def _hear_all()", "class SungTile", "data-voices", "SING", "os.walker", "two HTTPSingers"],
)
def test_words_are_found_in_any_spelling(text: str) -> None:
    assert _find_words(text)


@pytest.mark.parametrize(
    "text", ["using singular hearts", "os.walk(path)", "addEventListener", "Chorale", "breadth"]
)
def test_words_that_only_look_alike_are_left_alone(text: str) -> None:
    assert not _find_words(text)
