"""diffusers' schedulers on canvases of many tiles: what a prediction means, and how a job goes on."""

import diffusers
import pytest
import torch

from tests.worker.engine.known_answer import KnownAnswer, Untiled, maker, plain_decoder
from worker.engine.canvas import Plane
from worker.engine.denoise import Checkpoint, Step, TilePredicted
from worker.engine.generate import generate
from worker.engine.plan import DenoisePlan, GenerationPlan, StagePlan
from worker.engine.stitch import Band

SCHEDULERS = [
    ("DDIMScheduler", {}),
    ("DDIMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ("DDPMScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    ("DPMSolverSinglestepScheduler", {}),
    ("UniPCMultistepScheduler", {}),
    ("DEISMultistepScheduler", {}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("LCMScheduler", {}),
    ("EDMEulerScheduler", {}),
    ("EDMDPMSolverMultistepScheduler", {}),
    ("IPNDMScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("SASolverScheduler", {}),
    ("TCDScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {}),
    ("FlowMatchHeunDiscreteScheduler", {}),
    (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    ),
]  # fmt: skip


def _prepare(name: str, options: dict[str, object]) -> tuple[Untiled, torch.Tensor]:
    scheduler = getattr(diffusers, name)(**options)
    answer = torch.sin(torch.arange(2 * 24 * 32, dtype=torch.float32)).reshape(2, 24, 32)
    return Untiled(KnownAnswer(answer, scheduler), maker(scheduler), plain_decoder()), answer


GRIDS = DenoisePlan(Plane(24, 32, (True, False)), 16, 0, 4, moving=True, seed=11, outer_shares=(0.2, 0.2))
PLAN = GenerationPlan(11, 2, (StagePlan(GRIDS, 6, modules=2),))


@pytest.mark.parametrize(("name", "options"), SCHEDULERS)
def test_clean_estimate_is_the_known_answer_at_every_step(name: str, options: dict[str, object]) -> None:
    prepared, answer = _prepare(name, options)
    clock = prepared.schedule(6).timesteps.tolist()
    for event in generate(PLAN, prepared):
        if isinstance(event, TilePredicted) and _is_noisy_enough(clock[event.index]):
            torch.testing.assert_close(
                event.clean, GRIDS.canvas.gather(answer, event.tile), rtol=0, atol=2e-2
            )


def _is_noisy_enough(timestep: float) -> bool:
    """Where nearly nothing or nearly everything is noise, dividing by it says little."""
    return 20 < timestep < 950 or -1 < timestep < 0.95


@pytest.mark.parametrize(("name", "options"), SCHEDULERS)
@pytest.mark.parametrize("stop", [1, 4])
def test_resumed_equals_never_stopped(name: str, options: dict[str, object], stop: int) -> None:
    whole = _picture(generate(PLAN, _prepare(name, options)[0]))
    resumed = _picture(generate(PLAN, _prepare(name, options)[0], _checkpoint_after(stop, name, options)))
    assert torch.equal(whole, resumed)
    assert whole.float().std() > 0


def _checkpoint_after(stop: int, name: str, options: dict[str, object]) -> Checkpoint:
    for event in generate(PLAN, _prepare(name, options)[0]):
        if isinstance(event, Step) and event.index + 1 == stop:
            return event.checkpoint
    raise AssertionError(f"no step {stop}")


def _picture(events: object) -> torch.Tensor:
    return torch.cat([event.rows for event in events if isinstance(event, Band)])  # type: ignore[attr-defined]


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2])
@pytest.mark.parametrize(("name", "options"), SCHEDULERS)
def test_less_noise_is_told_by_the_clock_at_which_it_is_expected(
    name: str, options: dict[str, object], share: float
) -> None:
    """The least noisy time that a model knows is as far as it goes; and times are whole, so levels are met nearly."""
    prepared, answer = _prepare(name, options)
    scheduler, generator = prepared.schedule(6), torch.Generator().manual_seed(0)
    noise, latent = torch.randn(answer.shape, generator=generator), torch.zeros_like(answer)
    for index, clock in enumerate(scheduler.timesteps.tolist()):
        scheduler.scale_input(latent, index)
        matched = scheduler.match_noise(index, share)
        (signal, level), (there, left) = (
            _read_levels(prepared, each) for each in (clock, matched.timestep.item())
        )
        seen = (signal * answer + share * level * noise) * matched.gain
        if _is_noisy_enough(clock) and matched.timestep.item() != 0:
            torch.testing.assert_close(seen, there * answer + left * noise, rtol=0, atol=0.03)
        latent = scheduler.step(torch.zeros_like(latent), index, latent, generator)


def _read_levels(prepared: Untiled, clock: float) -> tuple[float, float]:
    """(signal, noise) of what the model is shown at a time, as `KnownAnswer` knows it: at 1 and 0 of the answer."""
    replica = prepared.replica
    assert isinstance(replica, KnownAnswer)
    name, config = type(replica.scheduler).__name__, replica.scheduler.config
    if name.startswith("EDM"):
        sigma, data = float(torch.tensor(4 * clock).exp()), config.sigma_data
        total = (sigma**2 + data**2) ** 0.5
        return 1 / total, sigma / total
    if name == "IPNDMScheduler":
        angle = torch.tensor(clock * torch.pi / 2)
        return float(angle.cos()), float(angle.sin())
    if "FlowMatch" in name or config.get("prediction_type") == "flow_prediction":
        return 1 - clock / 1000, clock / 1000
    signal, level = replica._level(torch.tensor(clock))
    return float(signal), float(level)
