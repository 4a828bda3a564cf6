"""From a folder of captioned pictures to crops and captions."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.augment import CropRange, balance, sample_crop
from training.corpus import read_names, read_neighbours, read_synonyms, read_thesaurus, rename, vary
from training.dataset import DatasetError, Picture, read_pictures
from training.latents import list_phrasings
from training.neighbours import find_neighbours
from training.prepare import prepare
from training.tint import COLOURS, add_tints, apply_tint


def test_prepared_shards_hold_every_picture_once(dataset: Path, tmp_path: Path) -> None:
    prepare(dataset, tmp_path / "out", quality=80, shards=2)
    names = [p.path.name for index in range(2) for p in read_pictures(tmp_path / "out" / f"shard-{index}")]
    assert sorted(names) == sorted(f"{index}.png" for index in range(12))


def test_the_split_survives_preparing(dataset: Path, tmp_path: Path) -> None:
    prepare(dataset, tmp_path / "out", quality=80, shards=1)
    before = {p.path.name: p.held_out for p in read_pictures(dataset)}
    assert {p.path.name: p.held_out for p in read_pictures(tmp_path / "out" / "shard-0")} == before


def test_a_folder_without_captions_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"holds no captions\.jsonl"):
        read_pictures(tmp_path)


def test_a_broken_line_is_named(dataset: Path) -> None:
    with (dataset / "captions.jsonl").open("a") as lines:
        lines.write('\n{"file": "images/0.png"')
    with pytest.raises(DatasetError, match="line 13"):
        read_pictures(dataset)


def test_a_missing_picture_is_named(dataset: Path) -> None:
    (dataset / "images" / "3.png").unlink()
    with pytest.raises(DatasetError, match=r"line 4 names images/3\.png"):
        read_pictures(dataset)


def test_broken_pictures_are_named(dataset: Path, tmp_path: Path) -> None:
    (dataset / "images" / "5.png").write_bytes(b"not a picture")
    with pytest.raises(DatasetError, match=r"1 of 12 pictures cannot be read: 5\.png"):
        prepare(dataset, tmp_path / "out", quality=80, shards=1)


def test_a_tint_gives_its_colour_and_keeps_light_and_dark() -> None:
    crop = torch.linspace(-0.5, 0.5, 64).expand(3, 64, 64)
    blue = apply_tint(crop, COLOURS["blue"])
    torch.testing.assert_close(blue.add(1).div(2).mean(dim=(1, 2)), torch.tensor(COLOURS["blue"]))
    assert (blue[:, :, 1:] > blue[:, :, :-1]).all()


def test_painted_pictures_are_named_by_their_colour(dataset: Path) -> None:
    pictures = add_tints(read_pictures(dataset), 2, random.Random(0))
    painted = [picture for picture in pictures if picture.tint is not None]
    assert len(painted) == 2 * sum(picture.category == "brick" for picture in pictures) / 3
    assert {len(picture.caption.split()) for picture in painted} == {2}
    assert all(COLOURS[picture.caption.split()[0]] == picture.tint for picture in painted)


def test_a_painted_caption_never_loses_its_colour(dataset: Path) -> None:
    rng = random.Random(0)
    painted = next(p for p in add_tints(read_pictures(dataset), 1, rng) if p.tint is not None)
    colour = painted.caption.split()[0]
    varied = [vary(f"{colour} stained brick wall", rng, frozenset([colour])) for _ in range(100)]
    assert all(colour in caption.split() for caption in varied)
    assert any("stained" not in caption for caption in varied)


def test_things_have_other_names_in_training_but_none_that_is_measured() -> None:
    lists = read_thesaurus(), read_names(), read_neighbours()
    names = [name for each in lists for words in each.values() for name in words]
    others = {word for name in names for word in name.split()}
    assert not others & {unseen for unseen, *_ in read_synonyms()}
    rng = random.Random(0)
    renamed = {rename("grass", rng) for _ in range(200)}
    assert renamed == {"grass", *read_thesaurus()["grass"]}


class Compass:
    """Words point where their category's names do; a word of no category points nowhere."""

    def vocabulary(self) -> list[str]:
        return ["meadowland", "turfs", "grass", "lego", "algebra"]

    def embed(self, sentences: list[str]) -> torch.Tensor:
        categories = list(read_names())
        places = {name: index for index, names in enumerate(read_names().values()) for name in names}
        places |= {word: categories.index("grass") for word in ("meadowland", "turfs")}
        places["lego"] = categories.index("brick")
        vectors = torch.zeros(len(sentences), len(categories))
        for row, sentence in enumerate(sentences):
            if sentence in places:
                vectors[row, places[sentence]] = 1.0
        return vectors


def test_neighbours_are_near_and_neither_names_nor_measured() -> None:
    found = find_neighbours(Compass())
    assert {category: words for category, words in found.items() if words} == {
        "grass": ["meadowland"],
        "brick": ["lego"],
    }


def test_a_picture_is_also_called_by_names_of_its_category_paint_included(dataset: Path) -> None:
    grass = read_pictures(dataset)[0]
    painted = next(p for p in add_tints(read_pictures(dataset), 1, random.Random(0)) if p.tint is not None)
    for picture, paint in ((grass, ""), (painted, f"{painted.caption.split()[0]} ")):
        *_, first, second, third, known = list_phrasings(picture, random.Random(0))
        names, near = read_names()[picture.category], read_neighbours()[picture.category]
        assert known == paint + names[0]
        assert {first, second, third} <= {paint + word for word in [*names, *near]}
    assert list_phrasings(replace(grass, category="sea_glass"), random.Random(0))[-1] == "sea glass"


def test_small_tileable_pictures_are_enlarged_and_not_repeated(dataset: Path) -> None:
    picture = read_pictures(dataset)[0]
    image = torch.arange(64, dtype=torch.uint8).mul(3).expand(3, 64, 64).contiguous()
    native = CropRange(low=1.0, high=1.0, native=1.0)
    crop = sample_crop(image, picture, 128, native, random.Random(0))
    steps = crop[0].mean(0).diff()
    assert (steps > -1e-3).all() or (steps < 1e-3).all()


def test_views_are_photographs_and_have_their_share() -> None:
    def name(category: str, source: str) -> Picture:
        return Picture(Path("any"), "a caption", category, source, tileable=False)

    pictures = [
        name("landscape", "endless-sky-high-dpi/hills.jpg"),
        name("sky", "0ad-data/skies/cumulus/top.dds"),
        name("landscape", "redeclipse-data/hills.png"),
        name("sand", "redeclipse-data/sand.png"),
    ]
    weights = balance(pictures, views=0.75)
    assert weights[2] == 0
    assert weights[0] + weights[1] == pytest.approx(0.75)
    assert weights[3] == pytest.approx(0.25)
    assert balance(pictures, views=1.0)[3] == 0
