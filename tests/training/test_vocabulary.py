"""How the text encoder learns words that no caption has."""

import random
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from training.corpus import PROMPT_FRAMES, TEMPLATES, read_names, read_stand_ins, split_words
from training.progress import Budget
from training.stand_ins import find_stand_ins, list_known, read_things
from training.text_encoder import TextOptions, build_text_encoder, embed_end
from training.tokens import train_tokenizer
from training.vocabulary import build_lesson, build_pairs, train, with_plurals

LICENCE = "  1 This software and database is being provided to you\n"


def test_wordnet_gives_what_things_are_and_leaves_the_rest(tmp_path: Path) -> None:
    (tmp_path / "index.noun").write_text(
        LICENCE + "scree n 1 1 @ 1 0 00000010\n"
        "grit n 3 1 @ 3 2 00000020 00000030 00000010\n"
        "oak_tree n 1 1 @ 1 0 00000010\n"
        "quercus n 1 1 @ 1 0 00000040\n"
    )
    (tmp_path / "data.noun").write_text(
        LICENCE
        + '00000010 17 n 02 scree 0 talus 0 001 @ 00000001 n 0000 | loose rocks at a cliff; "the scree slid"\n'
        "00000020 07 n 01 grit 0 001 @ 00000001 n 0000 | fortitude and determination\n"
        "00000030 27 n 01 grit 1 001 @ 00000001 n 0000 | a hard coarse-grained sandstone\n"
        "00000040 20 n 01 Quercus 0 001 @ 00000001 n 0000 | genus of oaks\n"
    )
    assert read_things(tmp_path) == {
        "scree": ["loose rocks at a cliff"],
        "grit": ["a hard coarse-grained sandstone", "loose rocks at a cliff"],
    }


class Compass:
    """A name points where its category does, a definition where the names in it do."""

    def embed(self, sentences: list[str]) -> torch.Tensor:
        vectors = torch.zeros(len(sentences), len(read_names()))
        for row, sentence in enumerate(sentences):
            for index, names in enumerate(read_names().values()):
                if any(name in sentence.replace(":", "").split(" ") for name in names):
                    vectors[row, index] = 1.0
        return torch.nn.functional.normalize(vectors, dim=1)


def test_a_clear_vote_finds_a_stand_in_of_the_category_and_an_unclear_one_none() -> None:
    things = {
        "scree": ["loose gravel"],
        "algebra": ["sums"],
        "both": ["a gravel snow sky wood grass water sand"],
    }
    assert find_stand_ins(Compass(), things) == {"scree": "gravel"}


def test_the_list_has_stand_ins_for_strange_words_only(dataset: Path) -> None:
    names = {name for several in read_names().values() for name in several}
    assert set(read_stand_ins().values()) <= names
    assert not {word for name in names for word in split_words(name)} & set(read_stand_ins())
    assert {"green", "grass", "brick", "shiny", "picture", "material"} <= list_known([dataset])
    around = {word for frame in (*PROMPT_FRAMES, *TEMPLATES) for word in split_words(frame)}
    assert not around & set(read_stand_ins())


def test_plurals_stand_like_their_word_but_for_known_ones() -> None:
    found = with_plurals({"berry": "leaves", "marsh": "mud", "tarn": "lake"}, known={"tarns"})
    assert found == {
        "berry": "leaves", "berries": "leaves", "marsh": "mud", "marshes": "mud", "tarn": "lake",
    }  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(["gravel", "sand", "snow", "under", "quick", "fine"], ["scree"], size=300)


@pytest.mark.parametrize(
    ("written", "substituted", "asked"),
    [
        ("fine gravel", "fine gravel", ["fine", "gravel"]),
        ("fine scree under snow", "fine gravel under snow", ["fine", "gravel", "under", "snow"]),
        ("quicksand", "sand", ["sand"]),
        ("snow", "fine gravel", ["gravel"]),
    ],
)
def test_the_last_piece_of_a_word_stands_for_the_last_of_its_stand_in(
    tokenizer: CLIPTokenizer, written: str, substituted: str, asked: list[str]
) -> None:
    lesson = build_lesson([(written, substituted)], tokenizer)
    count, places = len(tokenizer.tokenize(written)), lesson.places[0]
    tokens = lesson.substituted[0, places[places >= 0]].tolist()
    start, *words = tokenizer.convert_ids_to_tokens(tokens)
    assert start == tokenizer.bos_token
    assert words[: len(asked)] == [f"{word}</w>" for word in asked]
    assert set(words[len(asked) :]) == {tokenizer.eos_token}
    assert places[: count + 1].ge(0).sum() == len(asked) + 1  # inner pieces are not asked


class Steps(Budget):
    """As many steps on a slow machine as on a fast one."""

    def steps(self, first: int = 0) -> Iterator[int]:
        for step in range(first, 250):
            self.noted = self.seconds * step / 250
            yield step


def test_a_new_word_has_the_states_of_its_stand_in_and_the_rest_those_of_before(
    tokenizer: CLIPTokenizer,
) -> None:
    torch.manual_seed(0)
    model = build_text_encoder(tokenizer, TextOptions(width=64, layers=1)).eval()
    said = ["scree", "gravel", "scree under snow", "gravel under snow", "fine sand"]
    before = _embed(model, tokenizer, said)
    plain = ["fine sand", "snow", "gravel", "sand under snow"]
    pairs = build_pairs({"scree": "gravel"}, plain, tokenizer, 64, random.Random(0))
    assert sum("scree" in written for written, _ in pairs) == 32
    assert not any("scree" in substituted for _, substituted in pairs)
    lesson, known = build_lesson(pairs, tokenizer), deepcopy(model)
    train(lesson, model, known, Steps(seconds=1), 32, torch.device("cpu"))
    after = _embed(model.eval(), tokenizer, said)
    for word, name in ((0, 1), (2, 3)):
        assert _distance(after[word], before[name]) < 0.2 * _distance(before[word], before[name])
    for same in (1, 3, 4):
        assert _distance(after[same], before[same]) < 0.2 * _distance(before[0], before[1])


def _embed(model: CLIPTextModel, tokenizer: CLIPTokenizer, sentences: list[str]) -> torch.Tensor:
    return embed_end(model, tokenizer, sentences, torch.device("cpu"))


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).square().mean().item()
