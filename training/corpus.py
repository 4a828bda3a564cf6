"""Sentences for the text encoder: the captions, templates over word lists, and a general vocabulary."""

import random
import re
from functools import cache
from pathlib import Path

WORDS = Path(__file__).parent / "words"
TEMPLATES = (
    "{colour} {surface}",
    "{quality} {surface}",
    "{quality} {colour} {surface}",
    "{quality} {quality} {surface}",
    "{surface} with {surface}",
    "{quality} {surface} and {colour} {surface}",
    "{colour} {surface} on {quality} {surface}",
    "{surface} under {quality} {surface}",
    "seamless {surface} texture",
    "close-up of {quality} {surface}",
    "{quality} {surface}, {quality} {surface}, {colour} {surface}",
    "{quality} landscape with {surface}",
    "{word} {surface}",
    "{quality} {word}",
    "{word} and {word}",
)
# Most tiles and words of a caption stand alone; these are what people put around them.
FRAMES = (
    "{}",
    "{}",
    "{}",
    "{} texture",
    "seamless {}",
    "a photo of {}",
    "{}, highly detailed",
    "a picture of {}",
)

# What people put around a thing and mean no thing by.
PROMPT_FRAMES = (
    *FRAMES,
    "a photograph of {}",
    "an image of {}",
    "{} material",
    "{} surface",
    "{} pattern",
    "{} background",
    "{} wallpaper",
    "{} from the side",
)


@cache
def read_words(name: str) -> tuple[str, ...]:
    """The words of one list in `words/`."""
    return tuple((WORDS / f"{name}.txt").read_text(encoding="utf-8").split())


def read_synonyms() -> list[tuple[str, str, str]]:
    """(word that stands in no caption, its twin that does, their category)."""
    lines = (WORDS / "synonyms.txt").read_text(encoding="utf-8").splitlines()
    return [(word, twin, category) for word, twin, category in (line.split() for line in lines)]


def read_prompts() -> list[str]:
    """Prompts of the model card's sheet; underscores stand for spaces in the list."""
    return [word.replace("_", " ") for word in read_words("prompts")]


@cache
def read_thesaurus() -> dict[str, list[str]]:
    """Words of the captions, and other names for each; none of them is measured as a synonym."""
    lines = (WORDS / "thesaurus.txt").read_text(encoding="utf-8").splitlines()
    return {word: others for word, *others in (line.split() for line in lines)}


@cache
def read_names() -> dict[str, list[str]]:
    """Categories, and what people call each: the best known name first, none that is measured."""
    lines = (WORDS / "names.txt").read_text(encoding="utf-8").splitlines()
    return {
        category: [name.replace("_", " ") for name in names]
        for category, *names in (line.split() for line in lines)
    }


@cache
def read_neighbours() -> dict[str, list[str]]:
    """Categories, and words that lie near their names, as `training.neighbours` found them."""
    lines = (WORDS / "neighbours.txt").read_text(encoding="utf-8").splitlines()
    return {category: words for category, *words in (line.split() for line in lines)}


@cache
def read_stand_ins() -> dict[str, str]:
    """Words that no caption has, and the name that stands in for each, as `training.stand_ins` found them."""
    lines = (WORDS / "stand_ins.txt").read_text(encoding="utf-8").splitlines()
    return {word: name.replace("_", " ") for word, name in (line.split() for line in lines)}


def split_words(sentence: str) -> list[str]:
    """Lower-case words, hyphens kept inside: 'Close-up of sand' -> close, up, of, sand."""
    return re.findall(r"[a-z]+", sentence.lower())


def build_sentences(captions: list[str], vocabulary: list[str], count: int, rng: random.Random) -> list[str]:
    """About `count` sentences: every word alone, every caption in many versions, and templates for the rest."""
    sentences = [
        *captions,
        *vocabulary,
        *read_words("surfaces"),
        *read_words("qualities"),
        *read_words("colours"),
    ]
    sentences += [vary(caption, rng) for caption in captions for _ in range(count // (8 * len(captions)) + 1)]
    while len(sentences) < count:
        sentences.append(fill(rng.choice(TEMPLATES), vocabulary, rng))
    return sentences[:count]


def fill(template: str, vocabulary: list[str], rng: random.Random) -> str:
    """The template with words from the lists; `{word}` is any."""
    lists = {"surface": "surfaces", "quality": "qualities", "colour": "colours"}

    def choose(match: re.Match[str]) -> str:
        kind = match.group(1)
        return rng.choice(vocabulary if kind == "word" else read_words(lists[kind]))

    return re.sub(r"\{(\w+)\}", choose, template)


def vary(caption: str, rng: random.Random, held: frozenset[str] = frozenset()) -> str:
    """The caption with a few words missing, a few by other names, and in one of the usual frames.

    Its last word is never missing, those `held` are neither missing nor changed.
    """
    *words, last = caption.split()
    kept = [word for word in words if word in held or rng.random() > 0.12]
    renamed = [word if word in held else rename(word, rng) for word in [*kept, last]]
    return rng.choice(FRAMES).format(" ".join(renamed))


def rename(word: str, rng: random.Random) -> str:
    """Now and then another name of the same thing: prompts are not written in the captions' few words."""
    others = read_thesaurus().get(word)
    return rng.choice(others) if others and rng.random() < 0.25 else word
