"""Where a pipeline's weights lie, and how small they are made: as `chorale.json` asks."""

import importlib.util
import logging
from pathlib import Path
from typing import cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.quantizers.pipe_quant_config import PipelineQuantizationConfig
from diffusers.quantizers.quantization_config import TorchAoConfig
from torch import nn

from api_schemas.folder_settings import FolderSettings, Offload
from worker.adapters.errors import ModelFolderError
from worker.adapters.float8 import can_multiply_in_float8, multiply_in_float8
from worker.adapters.precision import DENOISERS

_log = logging.getLogger(__name__)
_VAE = "vae"  # its parts are called one by one, which triggers no hook that would bring them to the device


def choose_quantization(folder: Path, settings: FolderSettings) -> PipelineQuantizationConfig | None:
    """Quantization of the denoiser to eight-bit integers, if the settings ask for it.

    Raises:
        ModelFolderError: a package is missing.
    """
    if settings.quantization != "int8":
        return None
    require_package("torchao", f"{folder}/chorale.json: quantization 'int8'")
    from torchao.quantization import Int8WeightOnlyConfig  # pyright: ignore  # may not be installed

    config = TorchAoConfig(Int8WeightOnlyConfig())  # pyright: ignore[reportUnknownArgumentType]  # the same
    return PipelineQuantizationConfig(
        quant_mapping={name: config for name in DENOISERS if (folder / name).is_dir()}
    )


def require_package(name: str, wanted_by: str) -> None:
    """Refuse what needs an optional package that is missing.

    Raises:
        ModelFolderError: it is not installed.
    """
    if importlib.util.find_spec(name) is None:
        raise ModelFolderError(f"{wanted_by} needs the package {name}: pip install {name}")


def store_in_float8(pipe: DiffusionPipeline) -> None:
    """Keep the denoiser's weights in eight bits and widen each layer's as it is called."""
    for name in DENOISERS:
        network = pipe.components.get(name)
        if isinstance(network, ModelMixin):
            network.enable_layerwise_casting(torch.float8_e4m3fn, network.dtype)


def multiply_denoisers_in_float8(
    pipe: DiffusionPipeline, folder: Path, settings: FolderSettings, device: torch.device
) -> None:
    """Have the denoisers' transformer blocks multiply in eight bits, if the settings ask for it.

    Raises:
        ModelFolderError: the device cannot, or there are none, or they wait in main memory.
    """
    if settings.quantization != "float8_products":
        return
    asked = f"{folder}/chorale.json: quantization 'float8_products'"
    if settings.offload != "none":
        raise ModelFolderError(f"{asked} does not go with offload {settings.offload!r}; allowed: 'none'")
    if not can_multiply_in_float8(device):
        raise ModelFolderError(
            f"{asked} needs a GPU of compute capability 9.0 or more; allowed here: 'none', 'int8' or 'float8'"
        )
    networks = [part for name in DENOISERS if isinstance(part := pipe.components.get(name), nn.Module)]
    if not sum(map(multiply_in_float8, networks)):
        raise ModelFolderError(
            f"{asked}: this model has no transformer blocks; allowed: 'none', 'int8' or 'float8'"
        )


def tell_what_gains_nothing(folder: Path, settings: FolderSettings, device: torch.device) -> None:
    """Warn of what `chorale.json` asks for and a GPU alone does, or does fast."""
    if device.type == "cuda":
        return
    if settings.graphs:
        _log.warning(
            "%s/chorale.json: graphs true changes nothing on %s: launches are recorded on GPUs alone",
            folder,
            device,
        )
    if settings.quantization.startswith("float8"):
        why = f"takes less memory, but no less time on {device}, which has no products in eight bits"
        _log.warning("%s/chorale.json: quantization %r %s", folder, settings.quantization, why)


def check_offload(folder: Path, offload: Offload, device: torch.device) -> None:
    """Refuse to offload from a CPU.

    Raises:
        ModelFolderError: there is nothing to offload from.
    """
    if offload != "none" and device.type == "cpu":
        raise ModelFolderError(
            f"{folder}/chorale.json: offload {offload!r} keeps weights in main memory until a GPU needs them, "
            "but the device is cpu; allowed: 'none'"
        )


def find_execution_device(pipe: DiffusionPipeline) -> torch.device:
    """Where its networks compute, which is not where they lie while they are offloaded."""
    return pipe._execution_device  # pyright: ignore[reportPrivateUsage]  # nothing public says it


def place(pipe: DiffusionPipeline, offload: Offload, device: torch.device) -> None:
    """All on the device; or in main memory until they are needed, in parts as large as `offload` says.

    Decoders always stay on the device.
    """
    match offload:
        case "none":
            pipe.to(device)  # pyright: ignore[reportUnknownMemberType]  # its arguments have no types
        case "group":
            pipe.enable_group_offload(device, offload_type="leaf_level", exclude_modules=[_VAE])
        case _:
            excluded = cast(list[str], pipe._exclude_from_cpu_offload)  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]
            pipe._exclude_from_cpu_offload = [*excluded, _VAE]  # pyright: ignore[reportPrivateUsage]  # as group offload's argument
            if pipe.model_cpu_offload_seq is not None:
                pipe.model_cpu_offload_seq = pipe.model_cpu_offload_seq.removesuffix(f"->{_VAE}")
            if offload == "model":
                pipe.enable_model_cpu_offload(device=device)
            else:
                pipe.enable_sequential_cpu_offload(device=device)
