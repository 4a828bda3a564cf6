"""Put into words what the text encoder knows about scenes: pictures with one horizon, which are no textures.

A linear probe of its states learns from the captions which sentences describe scenes. What the probe says about many
more sentences, and what the captions' own categories say, is then learned by a linear classifier of words alone.
"""

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from training.corpus import (
    PROMPT_FRAMES,
    read_names,
    read_neighbours,
    read_synonyms,
    read_thesaurus,
    read_words,
    split_words,
    vary,
)
from training.dataset import Picture, read_folders
from training.parts import load_text_encoder, load_tokenizer
from training.text_encoder import embed_end

SCENES = frozenset(["landscape", "sky"])
# Their photographs are scenes, and so are "calm sea" and "fields from above"; their tiles are "ripples" and "furrows".
EITHER = frozenset(["farmland", "underwater", "water"])
# Names of sand are "beach" and "desert", which are scenes in captions.
_UNSURE = EITHER | {"sand"}
_FRAMES = ("{}", "{colour} {}", "{quality} {}", "{} and {thing}", "{} with {thing}", "{thing} under {}")
_TIMES = 6  # each word, and each caption in its versions
# What a word says, whatever probe and captions make of it. "seamless clouds" are asked for as a texture. A beach is a view,
# though it names sand in captions, but "pebbles on a beach" are not; a waterfall is one over any stones. "plain" is a quality
# more often than a land.
_SAID = {
    -15.0: "pattern seamless texture textures tileable tiling",
    6.0: "fjord fjords glacier glaciers iceberg icebergs lagoon landscape lighthouse savanna savannah scenery seascape"
    " skyline tundra village volcano volcanoes waterfall waterfalls",
    5.0: "meadow meadows",
    3.0: "bay beach beaches coastline cove dunes harbor harbour islands jungle mountainside oasis panorama prairie"
    " rainforest shoreline vineyards",
    2.5: "dune",
    1.0: "plain",
    -1.5: "cliff",
}
_LEAST = 0.8  # of a word's log odds; weaker words are left out
_UNIT = 0.5  # to which log odds are rounded

Score = Callable[[list[str]], Tensor]


@dataclass(frozen=True, slots=True)
class Linear:
    """Log odds = inputs @ weights + bias."""

    weights: Tensor
    bias: float

    def score(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weights + self.bias


def is_scene(picture: Picture) -> bool:
    """By its category, and where that has both, by whether it can be tiled."""
    return picture.category in SCENES or (picture.category in EITHER and not picture.tileable)


def find_scene_words(
    text: CLIPTextModel, tokenizer: CLIPTokenizer, pictures: list[Picture], seed: int = 0
) -> dict[str, object] | None:
    """`scene_words` of `chorale.json`; None if the captions do not have both kinds."""
    captions = {picture.caption.lower(): is_scene(picture) for picture in pictures if not picture.held_out}
    if len(set(captions.values())) < 2:
        return None
    rng = random.Random(seed)
    known = _vary_captions(captions, rng)
    probe = _fit_probe(text, tokenizer, known)
    guessed = _fill_frames(rng)
    known += _list_labeled() * _TIMES
    sentences = [*(sentence for sentence, _ in known), *guessed]
    targets = torch.cat([_label(known), probe(guessed).sigmoid()])
    weights = torch.cat([_balance(_label(known)), torch.ones(len(guessed))])
    return _write(*_fit_words(sentences, targets, weights))


def _vary_captions(captions: dict[str, bool], rng: random.Random) -> list[tuple[str, bool]]:
    versions = [(vary(caption, rng), scene) for caption, scene in captions.items() for _ in range(_TIMES)]
    return [*captions.items(), *versions]


def _list_labeled() -> list[tuple[str, bool]]:
    """The lists' words for the categories, but for those that have both kinds."""
    lists = (read_names(), read_neighbours())
    words = [(word, category) for each in lists for category, several in each.items() for word in several]
    words += [(word, category) for word, _, category in read_synonyms()]
    return [(word, category in SCENES) for word, category in words if category not in _UNSURE]


def _label(known: list[tuple[str, bool]]) -> Tensor:
    return torch.tensor([float(scene) for _, scene in known])


def _fit_probe(text: CLIPTextModel, tokenizer: CLIPTokenizer, known: list[tuple[str, bool]]) -> Score:
    """Of the last states, standardised."""
    states = _embed(text, tokenizer, [sentence for sentence, _ in known])
    labels, mean, spread = _label(known), states.mean(0), states.std(0) + 1e-6
    linear = _fit((states - mean) / spread, labels, _balance(labels), decay=1e-2)
    return lambda sentences: linear.score((_embed(text, tokenizer, sentences) - mean) / spread)


def _balance(labels: Tensor) -> Tensor:
    """Weights, in the mean 1: of what people ask for, unlike of the captions, scenes may be half."""
    return 0.5 / torch.where(labels > 0.5, labels.mean(), 1 - labels.mean())


def _embed(text: CLIPTextModel, tokenizer: CLIPTokenizer, sentences: list[str]) -> Tensor:
    parts = [sentences[start : start + 512] for start in range(0, len(sentences), 512)]
    return torch.cat([embed_end(text, tokenizer, part, text.device).cpu() for part in parts])


def _fit(inputs: Tensor, targets: Tensor, weights: Tensor, decay: float) -> Linear:
    """Logistic regression; `weights` are the rows'."""
    chosen = torch.zeros(inputs.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([chosen, bias], max_iter=100, line_search_fn="strong_wolfe")

    def measure() -> float:
        optimizer.zero_grad()
        error = functional.binary_cross_entropy_with_logits(inputs @ chosen + bias, targets, weights)
        loss = error + decay * chosen.square().sum()
        torch.autograd.backward(loss)
        return loss.item()

    optimizer.step(measure)  # pyright: ignore[reportUnknownMemberType]
    return Linear(chosen.detach(), bias.item())


def _fill_frames(rng: random.Random) -> list[str]:
    """Every thing that the word lists know, beside others."""
    things = sorted(_list_things())
    colours, qualities = read_words("colours"), read_words("qualities")
    sentences: list[str] = []
    for thing in things * _TIMES:
        choices = {
            "colour": rng.choice(colours),
            "quality": rng.choice(qualities),
            "thing": rng.choice(things),
        }
        sentences.append(rng.choice(_FRAMES).format(thing, **choices))
    return sentences


def _list_things() -> set[str]:
    thesaurus = [word for first, others in read_thesaurus().items() for word in (first, *others)]
    neighbours = [word for several in read_neighbours().values() for word in several]
    synonyms = [word for word, _, _ in read_synonyms()]
    return {*_list_names(), *read_words("surfaces"), *thesaurus, *neighbours, *synonyms}


def _list_names() -> set[str]:
    return {word for several in read_names().values() for name in several for word in split_words(name)}


def _list_mute() -> set[str]:
    """Colours, qualities, and what is put around a thing: what they are said of decides."""
    frames = {word for frame in (*PROMPT_FRAMES, *_FRAMES) for word in split_words(frame)}
    return (frames | {*read_words("colours"), *read_words("qualities")}) - _list_names()


def _fit_words(sentences: list[str], targets: Tensor, weights: Tensor) -> tuple[dict[str, float], float]:
    """Log odds of the words that say most, fitted again without the others, and of no word."""
    mute = _list_mute()
    split = [{word for word in split_words(each) if len(word) > 2} - mute for each in sentences]
    odds, _ = _weigh(split, sorted(set[str]().union(*split)), targets, weights)
    odds, bias = _weigh(split, [word for word in odds if abs(odds[word]) > _LEAST], targets, weights)
    kept = {word: weight for word, weight in odds.items() if weight < 0 or word not in _list_materials()}
    return kept | {word: weight for weight, words in _SAID.items() for word in words.split()}, bias


def _list_materials() -> set[str]:
    """What textures are called by first: landscapes of lava do not make "lava" a scene."""
    return {names[0] for category, names in read_names().items() if category not in SCENES | _UNSURE}


def _weigh(
    split: list[set[str]], words: list[str], targets: Tensor, weights: Tensor
) -> tuple[dict[str, float], float]:
    linear = _fit(_count(split, words), targets, weights, decay=2e-5)
    odds: list[float] = linear.weights.numpy().tolist()
    return dict(zip(words, odds, strict=True)), linear.bias


def _count(split: list[set[str]], words: list[str]) -> Tensor:
    """1 where a sentence has a word, (sentences, words)."""
    columns = {word: column for column, word in enumerate(words)}
    counts = torch.zeros(len(split), len(words))
    for row, each in enumerate(split):
        counts[row, [columns[word] for word in each if word in columns]] = 1
    return counts


def _write(odds: dict[str, float], bias: float) -> dict[str, object]:
    """Words by their weight, the heaviest first."""
    rounded = {word: round(weight / _UNIT) * _UNIT for word, weight in odds.items()}
    weights = sorted(set(rounded.values()), reverse=True)
    return {
        "bias": round(min(bias, 0.0), 2),
        "weights": {
            f"{weight:g}": " ".join(sorted(word for word in rounded if rounded[word] == weight))
            for weight in weights
        },
    }


def report(found: dict[str, object], pictures: list[Picture]) -> str:
    """How many captions of held-out pictures are judged rightly, of those that no other picture has."""
    seen = {picture.caption.lower() for picture in pictures if not picture.held_out}
    captions = {picture.caption.lower(): is_scene(picture) for picture in pictures if picture.held_out}
    rights = [(scene, _judge(each, found) == scene) for each, scene in captions.items() if each not in seen]
    scenes, textures = ([right for scene, right in rights if scene == kind] for kind in (True, False))
    return f"{sum(scenes)} of {len(scenes)} scenes, {sum(textures)} of {len(textures)} textures"


def _judge(caption: str, found: dict[str, object]) -> bool:
    said, weights = set(split_words(caption)), cast(dict[str, str], found["weights"])
    odds = [float(weight) * len(said.intersection(words.split())) for weight, words in weights.items()]
    return cast(float, found["bias"]) + sum(odds) > 0


def main() -> None:
    """Command line: `python -m training.scenes SHARD [SHARD ...] --model MODEL` writes into `MODEL/chorale.json`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument("--model", type=Path, required=True, help="folder with text_encoder/ and tokenizer/")
    chosen = parser.parse_args()
    path: Path = chosen.model / "chorale.json"
    text = load_text_encoder(chosen.model / "text_encoder").eval()
    pictures = read_folders(chosen.shards)
    found = find_scene_words(text, load_tokenizer(chosen.model / "tokenizer"), pictures)
    if found is None:
        raise SystemExit("scenes: the captions are not of both kinds, scenes and textures")
    print(f"held-out captions judged rightly: {report(found, pictures)}")
    content = json.loads(path.read_text(encoding="utf-8")) | {"scene_words": found}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
