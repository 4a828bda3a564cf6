"""The whole training line on the CPU in seconds, on pictures that the test makes itself."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from training.augment import CropRange, sample_crop
from training.autoencoder import AutoencoderOptions, AutoencoderTraining, build_autoencoder
from training.bundle import write_digests
from training.corpus import read_synonyms, read_thesaurus, rename, vary
from training.critic import FeatureCritic
from training.dataset import DatasetError, read_pictures
from training.denoiser import DenoiserOptions, DenoiserTraining, build_denoiser, write_half
from training.diffusion import build_noising
from training.distill import Distillation, DistillOptions
from training.features import Features
from training.latent_scale import raise_faint_channels
from training.latents import Bank, Captions
from training.measures import Probe, fit_probe, measure_kid, measure_psnr
from training.prepare import prepare
from training.progress import Budget, begin_with, load_checkpoint, save_checkpoint
from training.ranks import average_gradients
from training.sampling import FEW_STEPS, Recipe, build_few_step_scheduler, sample
from training.sharpen import Sharpening, SharpenOptions
from training.tint import COLOURS, add_tints, apply_tint
from training.tokens import train_tokenizer

CATEGORIES = ("grass", "brick")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Twelve pictures of noise with captions."""
    folder = tmp_path / "dataset"
    (folder / "images").mkdir(parents=True)
    rows = [_make_picture(folder, index) for index in range(12)]
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def _make_picture(folder: Path, index: int) -> dict[str, object]:
    pixels = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    name = f"images/{index}.png"
    Image.fromarray(pixels).save(folder / name)
    category = CATEGORIES[index % 2]
    return {"file": name, "caption": f"green {category}", "category": category, "tileable": True}


@pytest.fixture
def tiny() -> DenoiserOptions:
    """A denoiser of a few thousand weights."""
    return DenoiserOptions(widths=(16, 16, 16), batch=2)


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


def test_a_denoiser_trains_goes_on_and_paints(tiny: DenoiserOptions, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    bank, captions = (
        Bank(torch.randn(4, 4, 16, 16), torch.tensor([0, 1, 0, 1])),
        Captions(torch.randn(17, 8, 16)),
    )
    training = DenoiserTraining(build_denoiser(4, 16, tiny.widths), tiny, cpu)
    for _ in range(2):
        latent, owners = bank.draw(2)
        assert training.step(latent, captions.draw(owners, empty_share=0.5)).isfinite()
    save_checkpoint(tmp_path / "denoiser.pt", training.state() | {"step": 2, "spent": 1.0})
    again = DenoiserTraining(build_denoiser(4, 16, tiny.widths), tiny, cpu)
    again.restore(load_checkpoint(tmp_path / "denoiser.pt", cpu))
    assert all(map(torch.equal, again.model.parameters(), training.model.parameters()))
    write_half(again.model, tmp_path / "unet")
    picture = sample(again.model, FEW_STEPS, captions.states[:2], captions.empty(1), side=16, seed=1)
    assert picture.shape == (2, 4, 16, 16)
    assert picture.isfinite().all()


def test_faint_channels_are_raised_and_the_picture_stays() -> None:
    torch.manual_seed(0)
    model = build_autoencoder(AutoencoderOptions(channels=4, width=8))
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        model.encoder.layers[-1].weight[0] *= 100  # loud already: stays as it is
        latent = model.encoder(image)
        before = model.decoder(latent)
        raise_faint_channels(model, latent, least=0.1)
        raised = model.encoder(image)
    assert latent.std(dim=(0, 2, 3))[1:].max() < 0.1
    assert raised.std(dim=(0, 2, 3)).min() >= 0.0999
    assert torch.equal(raised[:, 0], latent[:, 0])
    assert (model.decoder(raised) - before).abs().max() < 0.01 * before.std()


def test_a_decoder_trained_alone_leaves_the_latents() -> None:
    torch.manual_seed(0)
    options = AutoencoderOptions(channels=4, width=8, decoder_only=True)
    training = AutoencoderTraining(options, torch.device("cpu"), None)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    latent, picture = training.model.encoder(image), training.model.decoder(torch.zeros(1, 4, 8, 8))
    for _ in range(2):
        losses = training.step(image, 0.9, random.Random(0))
    assert set(losses) == {"absolute", "square", "tone"}
    assert torch.equal(training.model.encoder(image), latent)
    assert not torch.equal(training.model.decoder(torch.zeros(1, 4, 8, 8)), picture)


def test_distilling_moves_the_student_alone(tiny: DenoiserOptions) -> None:
    torch.manual_seed(0)
    distillation = Distillation(
        build_denoiser(4, 16, tiny.widths), DistillOptions(steps=2, teacher_steps=2), torch.device("cpu")
    )
    before = [weight.clone() for weight in distillation.teacher.parameters()]
    text, empty, real = torch.randn(2, 8, 16), torch.randn(2, 8, 16), torch.randn(2, 4, 16, 16)
    for _ in range(2):
        assert distillation.step(real, text, empty).isfinite()
    assert all(map(torch.equal, distillation.teacher.parameters(), before))
    assert not all(map(torch.equal, distillation.student.parameters(), before))


def test_distilling_goes_on_with_a_student(tiny: DenoiserOptions) -> None:
    teacher, student = (build_denoiser(4, 16, tiny.widths) for _ in range(2))
    distillation = Distillation(teacher, DistillOptions(), torch.device("cpu"), student)
    assert all(map(torch.equal, distillation.student.parameters(), student.parameters()))
    assert all(map(torch.equal, distillation.average.values, student.parameters()))


class Perfect(torch.nn.Module):
    """Knows the one clean latent that there is, with and without a prompt."""

    def __init__(self, clean: torch.Tensor) -> None:
        super().__init__()
        self.clean, self.noising = clean, build_noising(torch.device("cpu"))

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        alpha, sigma = self.noising.at(timestep)
        return (alpha * noisy - self.clean) / sigma


def test_the_students_one_step_lands_where_the_teachers_several_do(tiny: DenoiserOptions) -> None:
    torch.manual_seed(0)
    clean, options = torch.randn(1, 4, 8, 8), DistillOptions(steps=5, teacher_steps=3)
    distillation = Distillation(build_denoiser(4, 16, tiny.widths), options, torch.device("cpu"))
    distillation.ask_teacher = Perfect(clean)
    index = torch.arange(5)
    start = 999 - 200 * index
    noisy = distillation.noising.add(clean.expand(5, -1, -1, -1), torch.randn(5, 4, 8, 8), start)
    velocity = distillation._lead(noisy, index, torch.zeros(5, 8, 16), torch.zeros(5, 8, 16))
    # A teacher who is never wrong walks straight to the clean latent, so one step must say the same.
    torch.testing.assert_close(
        distillation.noising.clean(noisy, velocity, start), clean.expand(5, -1, -1, -1), rtol=0, atol=1e-3
    )


def test_the_tokenizer_keeps_own_words_whole_and_splits_strange_ones() -> None:
    tokenizer = train_tokenizer(["grass", "brick", "cobblestones"], ["the", "wall"], size=300)
    assert tokenizer.tokenize("Brick cobblestones") == ["brick</w>", "cobblestones</w>"]
    assert len(tokenizer.tokenize("zygote")) > 1


def test_digests_name_every_file_but_the_card(tmp_path: Path) -> None:
    for name in ("a.json", "MODEL_CARD.md"):
        (tmp_path / name).write_text(name)
    write_digests(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_text().split() == [hashlib.sha256(b"a.json").hexdigest(), "a.json"]


def test_noising_is_undone_by_the_true_velocity() -> None:
    noising = build_noising(torch.device("cpu"))
    latent, noise = torch.randn(5, 4, 8, 8), torch.randn(5, 4, 8, 8)
    timestep = torch.tensor([0, 250, 500, 750, 999])
    noisy = noising.add(latent, noise, timestep)
    restored = noising.clean(noisy, noising.velocity(latent, noise, timestep), timestep)
    assert torch.allclose(restored, latent, atol=1e-5)


def test_a_stage_ends_with_its_budget() -> None:
    assert list(Budget(seconds=0.0).steps()) == []
    assert list(Budget(seconds=10.0, spent=11.0).steps(first=5)) == []


def test_kid_is_small_for_equal_and_large_for_other_distributions() -> None:
    torch.manual_seed(0)
    one, same, other = torch.randn(200, 8), torch.randn(200, 8), torch.randn(200, 8) + 2
    assert abs(measure_kid(one, same)) < 0.5 < measure_kid(one, other)


def test_the_probe_learns_separable_categories() -> None:
    torch.manual_seed(0)
    categories = ["grass", "brick"] * 50
    features = (
        torch.tensor([[3.0 if name == "grass" else -3.0, 1.0] for name in categories])
        + torch.randn(100, 2) / 3
    )
    probe: Probe = fit_probe(features, categories, steps=100)
    assert probe.share_named(features, categories) > 0.95


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
    others = {word for words in read_thesaurus().values() for word in words}
    assert not others & {unseen for unseen, *_ in read_synonyms()}
    rng = random.Random(0)
    renamed = {rename("grass", rng) for _ in range(200)}
    assert renamed == {"grass", *read_thesaurus()["grass"]}


def test_small_tileable_pictures_are_enlarged_and_not_repeated(dataset: Path) -> None:
    picture = read_pictures(dataset)[0]
    image = torch.arange(64, dtype=torch.uint8).mul(3).expand(3, 64, 64).contiguous()
    native = CropRange(low=1.0, high=1.0, native=1.0)
    crop = sample_crop(image, picture, 128, native, random.Random(0))
    steps = crop[0].mean(0).diff()
    assert (steps > -1e-3).all() or (steps < 1e-3).all()


def test_sharpening_teaches_both_sides_and_leaves_the_rest() -> None:
    torch.manual_seed(0)
    recipe = Recipe(build_few_step_scheduler, steps=2, guidance_scale=1.0)
    vae = build_autoencoder(AutoencoderOptions(channels=4, width=8)).requires_grad_(False)
    critic = FeatureCritic(Features(), text_width=16, width=8)
    options = SharpenOptions(batch=2, side_px=64, learned_steps=2)
    sharpening = Sharpening(
        build_denoiser(4, 16, (16, 16, 16)), vae, critic, recipe, options, torch.device("cpu")
    )
    parts = (sharpening.denoiser, critic.heads, sharpening.known, vae, critic.features)
    before = [[weight.clone() for weight in part.parameters()] for part in parts]
    losses = sharpening.step(torch.rand(2, 3, 64, 64) * 2 - 1, torch.randn(2, 8, 16), torch.randn(1, 8, 16))
    assert all(loss.isfinite() for loss in losses.values())
    moved = [
        not all(map(torch.equal, part.parameters(), old)) for part, old in zip(parts, before, strict=True)
    ]
    assert moved == [True, True, False, False, False]


def test_sharpening_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def build() -> Sharpening:
        torch.manual_seed(0)
        return Sharpening(
            build_denoiser(4, 16, (16, 16, 16)),
            build_autoencoder(AutoencoderOptions(channels=4, width=8)).requires_grad_(False),
            FeatureCritic(Features(), text_width=16, width=8),
            Recipe(build_few_step_scheduler, steps=1, guidance_scale=1.0),
            SharpenOptions(batch=1, side_px=64, learned_steps=1),
            torch.device("cpu"),
        )

    first, again = build(), build()
    for _ in range(2):
        first.step(torch.rand(1, 3, 64, 64) * 2 - 1, torch.randn(1, 8, 16), torch.randn(1, 8, 16))
    save_checkpoint(tmp_path / "sharpen.pt", first.state())
    again.restore(load_checkpoint(tmp_path / "sharpen.pt", torch.device("cpu")))
    for part in ("denoiser", "critic"):
        assert all(map(torch.equal, getattr(first, part).parameters(), getattr(again, part).parameters()))


def test_an_autoencoder_trains_with_its_critic() -> None:
    torch.manual_seed(0)
    options = AutoencoderOptions(channels=4, width=8, batch=2, side_px=64, noise=0.1)
    training = AutoencoderTraining(options, torch.device("cpu"), start=None)
    before = [weight.clone() for weight in training.model.parameters()]
    losses = training.step(torch.rand(2, 3, 64, 64) * 2 - 1, fraction=0.9, rng=random.Random(2))
    assert {"absolute", "perceptual", "critic"} <= set(losses)
    assert all(loss.isfinite() for loss in losses.values())
    assert not all(map(torch.equal, training.model.parameters(), before))


def test_a_wider_latent_begins_with_what_the_narrow_one_knew() -> None:
    torch.manual_seed(0)
    narrow, wide = (build_autoencoder(AutoencoderOptions(channels=count, width=8)) for count in (4, 6))
    begin_with(wide, narrow)
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(wide.encoder(image)[:, :4], narrow.encoder(image))


def test_a_denoiser_of_wider_latents_begins_with_what_the_narrow_one_knew(tiny: DenoiserOptions) -> None:
    narrow, wide = (build_denoiser(count, 16, tiny.widths).eval() for count in (4, 6))
    begin_with(wide, narrow)
    latent, time, text = torch.randn(1, 4, 16, 16), torch.tensor([7]), torch.randn(1, 8, 16)
    widened = torch.cat([latent, torch.zeros(1, 2, 16, 16)], dim=1)
    torch.testing.assert_close(wide(widened, time, text).sample[:, :4], narrow(latent, time, text).sample)


def test_ranks_hear_the_mean_gradient(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train_as_rank, (2, tmp_path), nprocs=2)
    gradients = [torch.load(tmp_path / f"{rank}.pt").flatten().tolist() for rank in range(2)]
    assert gradients == [[0.5, 0.5]] * 2


def _train_as_rank(rank: int, ranks: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks
    )
    layer = torch.nn.Linear(2, 1, bias=False)
    layer(torch.full((1, 2), float(rank))).sum().backward()
    average_gradients(layer)
    torch.save(layer.weight.grad, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_psnr_of_a_known_error() -> None:
    original = torch.zeros(1, 3, 8, 8)
    assert measure_psnr(original + 0.2, original).item() == pytest.approx(20.0, abs=1e-3)
