"""The rest of the training line: autoencoder, tokens, measures, the folder that ships."""

import hashlib
import random
from pathlib import Path

import pytest
import torch

from api_schemas.layout import Cascade
from training.autoencoder import (
    AutoencoderOptions,
    AutoencoderTraining,
    build_autoencoder,
    raise_faint_channels,
)
from training.bundle import BundleError, check_sizes, describe_cascade, write_digests
from training.diffusion import build_noising
from training.features import FeaturePair
from training.measures import Probe, fit_probe, measure_kid, measure_psnr
from training.parts import MissingPartError, load_denoiser, load_encoders
from training.progress import Budget, begin_with
from training.tokens import train_tokenizer


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


@pytest.mark.parametrize("perceptual", [0.0, 0.1])
def test_a_decoder_trained_alone_leaves_the_latents(perceptual: float) -> None:
    torch.manual_seed(0)
    options = AutoencoderOptions(channels=4, width=8, decoder_only=True, perceptual=perceptual, critic=0)
    training = AutoencoderTraining(options, torch.device("cpu"), None)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    latent, picture = training.model.encoder(image), training.model.decoder(torch.zeros(1, 4, 8, 8))
    for _ in range(2):
        losses = training.step(image, 0.9, random.Random(0))
    assert set(losses) == {"absolute", "square", "tone"} | ({"perceptual"} if perceptual else set())
    assert torch.equal(training.model.encoder(image), latent)
    assert not torch.equal(training.model.decoder(torch.zeros(1, 4, 8, 8)), picture)


def test_the_tokenizer_keeps_own_words_whole_and_splits_strange_ones() -> None:
    tokenizer = train_tokenizer(["grass", "brick", "cobblestones"], ["the", "wall"], size=300)
    assert tokenizer.tokenize("Brick cobblestones") == ["brick</w>", "cobblestones</w>"]
    assert len(tokenizer.tokenize("zygote")) > 1


def test_digests_name_every_file_but_the_card(tmp_path: Path) -> None:
    for name in ("a.json", "MODEL_CARD.md"):
        (tmp_path / name).write_text(name)
    write_digests(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_text().split() == [hashlib.sha256(b"a.json").hexdigest(), "a.json"]


@pytest.mark.parametrize("conditioned", [True, False])
def test_the_folder_says_how_its_later_stages_are_made(conditioned: bool) -> None:
    cascade = Cascade.model_validate(describe_cascade(5, conditioned=conditioned))
    assert (cascade.steps, cascade.conditioned, cascade.enlarges) == (
        ([5, 4], True, 4) if conditioned else ([5, 2, 2], False, 2)
    )


def test_a_folder_that_is_too_large_is_not_shipped(tmp_path: Path) -> None:
    for name in ("unet", "latent_upscaler", "vae"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(23_000_000)  # takes no space
    check_sizes(tmp_path)
    with (tmp_path / "text_encoder").open("wb") as file:
        file.truncate(2_000_000)
    with pytest.raises(BundleError, match="71000000 bytes of at most 70000000"):
        check_sizes(tmp_path)
    (tmp_path / "vae").unlink()
    with (tmp_path / "unet").open("wb") as file:
        file.truncate(30_000_001)
    with pytest.raises(BundleError, match="unet has 30000001 of 30000000"):
        check_sizes(tmp_path)


def test_noising_is_undone_by_the_true_velocity() -> None:
    noising = build_noising(torch.device("cpu"))
    latent, noise = torch.randn(5, 4, 8, 8), torch.randn(5, 4, 8, 8)
    timestep = torch.tensor([0, 250, 500, 750, 999])
    noisy = noising.add(latent, noise, timestep)
    restored = noising.clean(noisy, noising.velocity(latent, noise, timestep), timestep)
    assert torch.allclose(restored, latent, atol=1e-5)


def test_a_missing_part_is_named_with_the_stage_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(
        MissingPartError, match=r"no folder .*unet_full: python -m training\.denoiser writes it"
    ):
        load_denoiser(tmp_path / "unet_full")
    with pytest.raises(MissingPartError, match=r"no folder .*vae: python -m training\.autoencoder writes it"):
        load_encoders(tmp_path, torch.device("cpu"))
    with pytest.raises(MissingPartError, match=r"no folder .*elsewhere$"):
        load_denoiser(tmp_path / "elsewhere")


def test_a_stage_ends_with_its_budget() -> None:
    assert list(Budget(seconds=0.0).steps()) == []
    assert list(Budget(seconds=10.0, spent=11.0).steps(first=5)) == []


def test_the_deepest_maps_are_those_that_are_pooled() -> None:
    torch.manual_seed(0)
    pair, image = FeaturePair(), torch.rand(2, 3, 64, 64) * 2 - 1
    maps = pair.all_stages(image)
    assert tuple(each.shape[1] for each in maps) == pair.channels
    assert all(map(torch.equal, maps[:4] + maps[5:9], pair.stages(image)))
    for network, deepest in zip(pair.networks, maps[4::5], strict=True):
        torch.testing.assert_close(network(image), deepest.mean(dim=(2, 3)))


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


def test_psnr_of_a_known_error() -> None:
    original = torch.zeros(1, 3, 8, 8)
    assert measure_psnr(original + 0.2, original).item() == pytest.approx(20.0, abs=1e-3)
