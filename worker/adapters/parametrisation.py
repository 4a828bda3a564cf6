"""What a prediction means: the clean latent it implies, for each of diffusers' schedulers.

All of them are linear in the prediction: x̂0 = a x + b prediction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import atan2, hypot, log, pi, sqrt
from typing import cast

import numpy as np
from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeScheduler
from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_ipndm import IPNDMScheduler
from torch import Tensor

from worker.adapters.scheduler_types import AnyScheduler

Tables = Mapping[str, Tensor]
_TABLES = ("sigmas", "alphas_cumprod", "alphas", "betas")
_SMALLEST_SIGNAL = 1e-3  # where zero terminal signal leaves nothing to divide by


@dataclass(frozen=True, slots=True)
class Line:
    """x̂0 = of_latent · x + of_prediction · prediction."""

    of_latent: float
    of_prediction: float


def copy_tables(scheduler: AnyScheduler) -> Tables:
    """Its noise levels in main memory: to read one, nothing has to wait for the device."""
    found = {name: getattr(scheduler, name, None) for name in _TABLES}
    return {name: table.detach().cpu() for name, table in found.items() if isinstance(table, Tensor)}


def read_line(scheduler: AnyScheduler, tables: Tables, index: int, timestep: float, scaling: float) -> Line:
    """The line of one step.

    Args:
        index: of the step in the scheduler's own list.
        timestep: its entry there.
        scaling: by which the latent was multiplied for the model.

    Raises:
        ValueError: the scheduler's kind of prediction is not known.
    """
    match cast(object, scheduler):  # classes of diffusers do not declare what the protocol does
        case EDMEulerScheduler() | EDMDPMSolverMultistepScheduler():
            return _precondition(scheduler, float(tables["sigmas"][index]))
        case CMStochasticIterativeScheduler() as consistency:
            scalings = consistency.get_scalings_for_boundary_condition(tables["sigmas"][index])
            return Line(float(scalings[0]), float(scalings[1]))
        case IPNDMScheduler():
            return _imply(*read_plain_levels(tables, index), "v_prediction")
        case _ if _is_flow(scheduler, tables):
            return _imply(1.0, _read_sigma(tables, index), "flow_prediction")
        case _:
            signal, noise = _read_levels(scheduler, tables, index, timestep, scaling)
            kind = scheduler.config["prediction_type"]
            line = _imply(signal, noise, kind)
            # An exploding latent is the preserving one divided by its signal.
            return line if scaling == 1.0 else Line(line.of_latent * scaling, line.of_prediction)


def match_noise(
    scheduler: AnyScheduler, tables: Tables, index: int, timestep: float, scaling: float, share: float
) -> tuple[float, float]:
    """(gain, timestep) at which the model expects a latent of which averaging has left a share of the noise.

    With x = a x0 + b ε for the model's input, what is left is a x0 + share · b ε, whose signal-to-noise ratio
    is that of another timestep; the gain brings it to the variance that the model expects there.

    Args:
        index: so are `timestep` and `scaling`, as in `read_line`.
        share: of the noise's deviation, above 0.
    """
    match cast(object, scheduler):
        case EDMEulerScheduler() | EDMDPMSolverMultistepScheduler() | CMStochasticIterativeScheduler():
            sigma, data = float(tables["sigmas"][index]), scheduler.config["sigma_data"]
            # Their clocks are log(σ) in units of their own (Karras et al. 2022, table 1; Song et al. 2023).
            unit = 250.0 if isinstance(scheduler, CMStochasticIterativeScheduler) else 0.25
            return hypot(sigma, data) / hypot(sigma * share, data), unit * log(max(sigma * share, 1e-44))
        case IPNDMScheduler():
            signal, noise = read_plain_levels(tables, index)
            return 1 / hypot(signal, noise * share), atan2(noise * share, signal) * 2 / pi
        case _ if _is_flow(scheduler, tables):
            sigma = _read_sigma(tables, index)
            total = 1 - sigma + sigma * share
            return 1 / total, timestep * share / total
        case _:
            signal, noise = _read_levels(scheduler, tables, index, timestep, scaling)
            gain = 1 / hypot(signal, noise * share)
            return gain, _find_timestep(tables["alphas_cumprod"], signal * gain)


def _find_timestep(alphas_cumprod: Tensor, signal: float) -> float:
    """Where the table has this signal, between timesteps."""
    levels = alphas_cumprod.double().sqrt().numpy()
    return float(np.interp(signal, levels[::-1], np.arange(len(levels))[::-1]))


def read_plain_levels(tables: Tables, index: int) -> tuple[float, float]:
    """(signal, noise) of a latent: sines and cosines (IPNDM's), or flow matching's straight line."""
    if "alphas" in tables:
        return float(tables["alphas"][index]), float(tables["betas"][index])
    sigma = _read_sigma(tables, index)
    return 1 - sigma, sigma


def _read_sigma(tables: Tables, index: int) -> float:
    if "sigmas" not in tables:
        raise ValueError("it has no noise levels for the family's kind of prediction")
    return float(tables["sigmas"][index])


def _is_flow(scheduler: AnyScheduler, tables: Tables) -> bool:
    return scheduler.config.get("prediction_type") == "flow_prediction" or "alphas_cumprod" not in tables


def _imply(signal: float, noise: float, kind: str) -> Line:
    """For x = signal · x0 + noise · ε: Ho et al. 2020, eq. 15; Salimans & Ho 2022, eq. 8; Lipman et al. 2023."""
    match kind:
        case "epsilon":
            divisor = max(signal, _SMALLEST_SIGNAL)
            return Line(1 / divisor, -noise / divisor)
        case "v_prediction":
            return Line(signal, -noise)
        case "sample":
            return Line(0.0, 1.0)
        case "flow_prediction":
            return Line(1.0, -noise)
        case _:
            raise ValueError(
                f"prediction_type is {kind!r}; allowed: epsilon, v_prediction, sample, flow_prediction"
            )


def _precondition(scheduler: AnyScheduler, sigma: float) -> Line:
    """Karras et al. 2022, table 1, last column."""
    data = scheduler.config["sigma_data"]
    total = sigma**2 + data**2
    of_prediction = sigma * data / sqrt(total)
    sign = -1 if scheduler.config["prediction_type"] == "v_prediction" else 1
    return Line(data**2 / total, sign * of_prediction)


def _read_levels(
    scheduler: AnyScheduler, tables: Tables, index: int, timestep: float, scaling: float
) -> tuple[float, float]:
    """(signal, noise) of what the model sees; the squares of both add up to 1 but for flow matching's levels."""
    if scaling != 1.0:  # the latent explodes, and 1/√(σ²+1) brings it back (Karras et al. 2022, eq. 7)
        return scaling, sqrt(max(1 - scaling**2, 0.0))
    if "sigmas" not in tables:
        signal = sqrt(float(tables["alphas_cumprod"][int(timestep)]))
        return signal, sqrt(1 - signal**2)
    sigma = _read_sigma(tables, index)
    if scheduler.config.get("use_flow_sigmas"):
        return 1 - sigma, sigma
    signal = 1 / sqrt(sigma**2 + 1)
    return signal, sigma * signal
