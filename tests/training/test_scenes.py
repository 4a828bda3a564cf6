"""Words for scenes, from captions and from what a text encoder makes of more words."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from training.corpus import read_words
from training.dataset import Picture
from training.scenes import find_scene_words, is_scene, report
from training.text_encoder import TextOptions, build_text_encoder
from training.tokens import train_tokenizer


def picture(caption: str, category: str, *, tileable: bool = False, split: str = "train") -> Picture:
    return Picture(Path("any"), caption, category, "any", tileable, split=split)


@pytest.mark.parametrize(
    ("category", "tileable", "scene"),
    [
        ("landscape", False, True),
        ("sky", True, True),
        ("water", False, True),
        ("water", True, False),
        ("farmland", True, False),
        ("sand", False, False),
    ],
)
def test_a_category_with_both_kinds_is_a_scene_where_it_cannot_be_tiled(
    category: str, tileable: bool, scene: bool
) -> None:
    assert is_scene(picture("any", category, tileable=tileable)) is scene


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer([*read_words("surfaces")], [], size=1000)


def test_what_stands_in_captions_of_one_kind_only_weighs_for_it(tokenizer: CLIPTokenizer) -> None:
    torch.manual_seed(0)
    text = build_text_encoder(tokenizer, TextOptions(width=64, layers=1)).eval()
    pictures = [
        *(picture(f"{each} over quonset", "landscape") for each in ("red", "wet", "grey", "big", "dry")),
        *(picture(f"{each} zorgle", "brick") for each in ("red", "wet", "grey", "big", "dry")),
        picture("red quonset and wide sky", "sky", split="heldout"),
        picture("zorgle bricks", "brick", split="heldout"),
        picture("red zorgle", "sky", split="heldout"),  # a caption that is known: not counted
    ]
    found = find_scene_words(text, tokenizer, pictures)
    assert found is not None
    weights = found["weights"]
    assert isinstance(weights, dict)
    heavy = {word: float(weight) for weight, words in weights.items() for word in words.split()}
    assert heavy["quonset"] > 0 > heavy["zorgle"]
    assert heavy["mountains"] > 0  # by the list of names
    assert not {"red", "wet", "photo"} & set(heavy)
    assert heavy["texture"] < -sum(sorted(heavy.values())[-2:])  # whatever it is of
    assert report(found, pictures) == "1 of 1 scenes, 1 of 1 textures"


def test_captions_of_one_kind_tell_nothing(tokenizer: CLIPTokenizer) -> None:
    text = build_text_encoder(tokenizer, TextOptions(width=64, layers=1)).eval()
    assert find_scene_words(text, tokenizer, [picture("red brick", "brick")]) is None
