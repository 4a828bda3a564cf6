"""The denoiser, its distillation and its sharpening."""

from collections.abc import Callable
from dataclasses import replace
from math import log
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from training.classifier import AuxiliaryClassifier, build_classifier
from training.critic import Backbone, Critic, LatentBackbone, PictureBackbone, critic_loss
from training.denoiser import DenoiserOptions, DenoiserTraining, Lessons, build_denoiser
from training.diffusion import build_noising
from training.distill import Distillation, DistillOptions, Task, _compose
from training.interpolate import interpolate
from training.latents import PHRASINGS, Bank, Captions
from training.parts import copy_denoiser, write_half
from training.progress import Budget, begin_with, compile_for, load_checkpoint, save_checkpoint
from training.sampling import FEW_STEPS, Recipe, build_few_step_scheduler, sample
from training.sharpen import Batch, Sharpening, SharpenOptions, sharpen


def test_a_denoiser_trains_goes_on_and_paints(tiny: DenoiserOptions, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    bank, captions = (
        Bank(torch.randn(4, 4, 16, 16), torch.tensor([0, 1, 0, 1])),
        Captions(torch.randn(17, 8, 16), torch.tensor([False, True]), ["sky", "sand"]),
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
    write_half(UNet2DConditionModel.from_pretrained(tmp_path / "unet"), tmp_path / "copy")
    assert tmp_path.name not in (tmp_path / "copy" / "config.json").read_text()
    picture = sample(again.model, FEW_STEPS, captions.states[:2], captions.empty(1), side=16, seed=1)
    assert picture.shape == (2, 4, 16, 16)
    assert picture.isfinite().all()


def test_only_the_usual_size_is_compiled() -> None:
    ask = compile_for(64, lambda noisy, *_: (noisy.shape[-1], torch.compiler.is_compiling()), really=True)
    given = torch.zeros(1), torch.zeros(1)
    with torch.compiler.set_stance(
        "default"
    ):  # tests whose ranks are threads may leave another: it is the process's
        assert ask(torch.zeros(1, 4, 64, 64), *given) == (64, True)
        assert ask(torch.zeros(1, 4, 128, 128), *given) == (128, False)
    assert compile_for(64, len, really=False) is len


def test_distilling_moves_the_student_alone(tiny: DenoiserOptions) -> None:
    torch.manual_seed(0)
    distillation = Distillation(
        build_denoiser(4, 16, tiny.widths), DistillOptions(steps=2, teacher_steps=2), torch.device("cpu")
    )
    before = [weight.clone() for weight in distillation.teacher.parameters()]
    text, known = torch.randn(2, 2, 8, 16)
    task = Task(torch.randn(2, 4, 16, 16), text, known, torch.randn(1, 8, 16), torch.tensor([3.0, 1.5]))
    for _ in range(2):
        assert distillation.step(task).isfinite()
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
    text = torch.zeros(5, 8, 16)
    velocity = distillation._lead(noisy, index, Task(noisy, text, text, text[:1], torch.full((5,), 3.0)))
    # A teacher who is never wrong goes straight to the clean latent, so one step must say the same.
    torch.testing.assert_close(
        distillation.noising.clean(noisy, velocity, start), clean.expand(5, -1, -1, -1), rtol=0, atol=1e-3
    )


def test_the_teacher_is_guided_less_to_views_and_given_what_it_knows() -> None:
    captions = Captions(
        torch.arange(2 * PHRASINGS + 1).float().view(-1, 1, 1), torch.tensor([False, True]), ["sky", "sand"]
    )
    options = DistillOptions(guidance_scale=3.0, view_scale=1.5, empty_share=0.5)
    owners = torch.tensor([0, 1]).repeat(100)
    task = _compose(torch.zeros(200, 4, 8, 8), owners, captions, options)
    assert task.scale.tolist() == [3.0, 1.5] * 100
    pairs = set(zip(task.text.flatten().int().tolist(), task.known.flatten().int().tolist(), strict=True))
    empty = 2 * PHRASINGS
    assert pairs == {(empty, empty)} | {
        (first + phrasing, first + (7 if phrasing >= 4 else 0))
        for first in (0, PHRASINGS)
        for phrasing in range(PHRASINGS)
    }


def test_weights_are_interpolated_between_kin_alone() -> None:
    first, second = (build_denoiser(4, 16, (16, 16, 16)) for _ in range(2))
    wanted = [
        0.75 * mine + 0.25 * other
        for mine, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    ]
    interpolate(first, second, share=0.25)
    for weight, want in zip(first.state_dict().values(), wanted, strict=True):
        torch.testing.assert_close(weight, want)
    with pytest.raises(ValueError, match="other layers"):
        interpolate(first, build_denoiser(4, 16, (16, 16, 32)), share=0.25)


def build_vae() -> AutoencoderTiny:
    return AutoencoderTiny(
        latent_channels=4, encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4
    )


def build_tiny_classifier(latents: torch.Tensor) -> AuxiliaryClassifier:
    owners = torch.arange(len(latents)) % 2
    states, views = torch.zeros(3 * PHRASINGS + 1, 8, 16), torch.zeros(3)
    captions = Captions(states, views, ["sky", "sand", "snow"])  # no latent shows snow
    return build_classifier(build_vae(), Bank(latents, owners), captions)


def build_sharpening(steps: int, weight: float = 0.01) -> Sharpening:
    torch.manual_seed(0)
    recipe = Recipe(build_few_step_scheduler, steps, guidance_scale=1.0)
    cpu, denoiser = torch.device("cpu"), build_denoiser(4, 16, (16, 16, 16))
    critic = Critic([LatentBackbone(copy_denoiser(denoiser), build_noising(cpu))], text_width=16)
    classifier = build_tiny_classifier(torch.randn(4, 4, 8, 8))
    options = SharpenOptions(learned_steps=steps, classifier=weight)
    return Sharpening(denoiser, critic, classifier, recipe, options, cpu)


def draw_batch() -> Batch:
    return Batch(
        torch.randn(2, 4, 16, 16),
        *torch.randn(2, 2, 8, 16),
        torch.tensor([0, 1]),
        torch.tensor([True, False]),
        torch.randn(1, 8, 16),
    )


def test_sharpening_teaches_both_sides_and_leaves_the_rest() -> None:
    sharpening = build_sharpening(steps=2)
    parts = (sharpening.generator, sharpening.critic.heads, sharpening.known)
    before = [[weight.clone() for weight in part.parameters()] for part in parts]
    losses = sharpening.step(draw_batch(), torch.randn(1, 8, 16))
    assert all(loss.isfinite() for loss in losses.values())
    moved = [
        not all(map(torch.equal, part.parameters(), old)) for part, old in zip(parts, before, strict=True)
    ]
    assert moved == [True, True, False]


def test_the_critic_is_shown_real_latents_under_wrong_captions() -> None:
    sharpening, batch = build_sharpening(steps=1), draw_batch()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    extract = sharpening.critic.extract
    sharpening.critic.extract = lambda *given: (seen.append(given[:2]), extract(*given))[1]
    sharpening.step(batch, torch.randn(1, 8, 16))
    real = [text for latent, text in seen if torch.equal(latent, batch.real)]
    assert [torch.equal(text, batch.text) for text in real] == [True, False]
    assert torch.equal(real[1], batch.text.flip(0))
    scores = torch.randn(3, 2, 4).unbind()
    assert critic_loss(scores[0], scores[1], scores[1]) == critic_loss(scores[0], scores[1])
    assert critic_loss(*scores) != critic_loss(*scores[:2])


def test_maps_that_do_not_depend_on_captions_are_not_made_twice() -> None:
    critic = Critic([build_picture_backbone(), build_latent_backbone()], text_width=16)
    latent, text = torch.randn(2, 4, 16, 16), torch.randn(2, 8, 16)
    maps = critic.extract(latent, text)
    pictures, latents = critic.extract(latent, text.flip(0), maps)
    assert pictures is maps[0]
    assert not any(map(torch.equal, latents, maps[1]))


def test_views_are_held_to_what_they_are_where_little_noise_hides_it() -> None:
    sharpening, batch = build_sharpening(steps=1), draw_batch()
    batch = replace(batch, known=batch.text)  # whose distance is nothing else
    empty = torch.randn(1, 8, 16)
    assert sharpening._measure_distance(batch, empty) < 1e-6  # of what has not moved yet
    sharpening.options = replace(sharpening.options, seen_below=1000)
    assert sharpening._measure_distance(batch, empty) > 0.1
    assert sharpening._measure_distance(replace(batch, views=torch.tensor([False, False])), empty) < 1e-6


def test_what_is_kept_is_missed_once_it_changes() -> None:
    sharpening, text, empty = build_sharpening(steps=2), torch.randn(2, 8, 16), torch.randn(1, 8, 16)
    assert sharpening._measure_kept(text, empty) < 1e-6
    assert sharpening._measure_kept(text[:0], empty) == 0
    with torch.no_grad():
        sharpening.generator.conv_out.bias += 1.0
    torch.testing.assert_close(
        sharpening._measure_kept(text, empty).item(), sharpening.options.kept, rtol=1e-3, atol=0.0
    )


def test_pictures_without_crops_are_those_that_are_kept() -> None:
    captions = Captions(torch.zeros(1, 8, 16), torch.zeros(4), ["sand"] * 4)
    lessons = Lessons({512: Bank(torch.zeros(2, 4, 8, 8), torch.tensor([0, 2]))}, captions)
    assert set(lessons.draw_uncut(50).tolist()) == {1, 3}
    assert lessons.draw_uncut(0).tolist() == []


def test_the_classifier_moves_the_denoiser() -> None:
    moved = []
    for weight in (0.0, 100.0):
        sharpening = build_sharpening(steps=1, weight=weight)
        sharpening.set_rates(step=50, fraction=0.0)
        sharpening.step(draw_batch(), torch.randn(1, 8, 16))
        moved.append(torch.cat([each.flatten() for each in sharpening.generator.parameters()]))
    assert not torch.equal(*moved)


def test_sharpening_goes_on_where_it_stopped_and_writes_what_it_has(tmp_path: Path) -> None:
    bank, captions = (
        Bank(torch.randn(4, 4, 8, 8), torch.tensor([0, 1, 0, 1])),
        Captions(torch.randn(17, 8, 16), torch.tensor([False, True]), ["sky", "sand"]),
    )
    lessons, sizes = Lessons({512: bank, 1024: bank}, captions), DenoiserOptions(batch=2)
    first, again = build_sharpening(steps=1), build_sharpening(steps=1)
    sharpen(lessons, first, tmp_path / "unet", Budget(seconds=1.0), sizes, seed=0)
    kept = load_checkpoint(tmp_path / "sharpen-unet.pt", torch.device("cpu"))
    sharpen(lessons, again, tmp_path / "unet", Budget(seconds=1.0), sizes, seed=0)  # its time is over already
    assert kept is not None
    assert kept["step"] >= 10
    for mine, theirs in ((first.generator, again.generator), (first.critic.heads, again.critic.heads)):
        assert all(map(torch.equal, mine.parameters(), theirs.parameters()))
    written = UNet2DConditionModel.from_pretrained(tmp_path / "unet", torch_dtype=torch.float32)
    for half, average in zip(written.parameters(), first.average.values, strict=True):
        assert torch.equal(half, average.half().float())


def test_a_latent_can_be_moved_until_it_is_classified_right() -> None:
    torch.manual_seed(0)
    sky, sand = torch.full((8, 4, 8, 8), 2.0), torch.full((8, 4, 8, 8), -2.0)
    known = torch.stack([sky, sand], dim=1).flatten(0, 1) + torch.randn(16, 4, 8, 8)
    classifier, owners = build_tiny_classifier(known), torch.arange(16) % 2
    right, wrong = classifier.measure_loss(known, owners), classifier.measure_loss(known, 1 - owners)
    assert right < log(3) < wrong  # of a guess
    moved = known.clone().requires_grad_()
    (way,) = torch.autograd.grad(classifier.measure_loss(moved, 1 - owners), moved)
    assert classifier.measure_loss(known - 0.1 * way / way.abs().max(), 1 - owners) < wrong


def build_latent_backbone() -> Backbone:
    return LatentBackbone(build_denoiser(4, 16, (16, 32, 32)), build_noising(torch.device("cpu")))


def build_picture_backbone() -> Backbone:
    return PictureBackbone(build_vae())


@pytest.mark.parametrize(
    ("kinds", "maps"),
    [([build_latent_backbone], 4), ([build_picture_backbone, build_latent_backbone], 10 + 4)],
)
def test_every_map_of_a_critic_depends_on_the_latent_and_the_caption(
    kinds: list[Callable[[], Backbone]], maps: int
) -> None:
    torch.manual_seed(0)
    critic = Critic([build() for build in kinds], text_width=16)
    latent, text = torch.randn(2, 4, 16, 16, requires_grad=True), torch.randn(2, 8, 16, requires_grad=True)
    maps_of = critic.extract(latent, text)
    critic.calibrate(maps_of)
    scores = critic(maps_of, text)
    assert scores.shape[:2] == (2, maps)
    for stage in scores.square().sum(dim=(0, 2, 3)):
        gradients = torch.autograd.grad(stage, (latent, text), retain_graph=True)
        assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_a_critic_depends_on_contrast() -> None:
    torch.manual_seed(0)
    head = Critic([build_latent_backbone()], text_width=16).heads[0]
    stage = torch.randn(4, 16, 8, 8)
    head.calibrate(stage)
    text = torch.zeros(4, 16)
    assert not torch.allclose(head(stage, text), head(stage / 2, text), rtol=0.1)


def test_a_channel_that_was_still_at_first_does_not_outweigh_the_others() -> None:
    torch.manual_seed(0)
    head = Critic([build_latent_backbone()], text_width=16).heads[0]
    stage, text = torch.randn(4, 16, 8, 8), torch.zeros(4, 16)
    stage[:, 0] = 0
    head.calibrate(stage)
    before = head(stage, text)
    moves = [head(stage + torch.eye(16)[channel].view(1, 16, 1, 1), text) - before for channel in range(16)]
    still, *others = [move.abs().mean() for move in moves]
    assert still < 20 * max(others)


def test_a_caption_in_another_phrasing_is_known_by_the_one_it_stands_for() -> None:
    states = torch.arange(3 * PHRASINGS + 1).float().view(-1, 1, 1)
    owners = torch.tensor([2]).repeat(200)
    texts, known = (
        each.flatten().int().tolist()
        for each in Captions(states, torch.zeros(3), ["sand"] * 3).draw_pairs(owners)
    )
    first = 2 * PHRASINGS
    assert set(texts) == set(range(first, first + PHRASINGS))
    assert {(own - first >= 4, best - first) for own, best in zip(texts, known, strict=True)} == {
        (False, 0),
        (True, 7),
    }


def test_a_denoiser_of_wider_latents_begins_with_what_the_narrow_one_knew(tiny: DenoiserOptions) -> None:
    narrow, wide = (build_denoiser(count, 16, tiny.widths).eval() for count in (4, 6))
    begin_with(wide, narrow)
    latent, time, text = torch.randn(1, 4, 16, 16), torch.tensor([7]), torch.randn(1, 8, 16)
    widened = torch.cat([latent, torch.zeros(1, 2, 16, 16)], dim=1)
    torch.testing.assert_close(wide(widened, time, text).sample[:, :4], narrow(latent, time, text).sample)
