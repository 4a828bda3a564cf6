"""Several GPUs as data-parallel ranks, started by `torchrun`; without it there is one rank."""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn


def join_ranks() -> int:
    """This process' rank; where `torchrun` started several, they find each other first."""
    if "RANK" not in os.environ:
        return 0
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank()


def count_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_leader() -> bool:
    """Whether this rank writes files and prints."""
    return not dist.is_initialized() or dist.get_rank() == 0


def average_gradients(module: nn.Module) -> None:
    """Every rank gets the mean gradient, so that equal weights stay equal."""
    average([parameter.grad for parameter in module.parameters() if parameter.grad is not None])


def average(values: list[Tensor]) -> None:
    """The mean of all ranks, in place."""
    if count_ranks() == 1:
        return
    flat = torch.cat([value.flatten() for value in values])
    dist.all_reduce(flat)  # pyright: ignore[reportUnknownMemberType]  # its `op` has no type
    flat /= count_ranks()
    parts = torch.split(flat, [value.numel() for value in values])
    torch._foreach_copy_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        values, [part.view_as(value) for part, value in zip(parts, values, strict=True)]
    )


def broadcast_leader(value: float) -> float:
    """The leader's value, on every rank: clocks differ, decisions must not."""
    if count_ranks() == 1:
        return value
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(shared, src=0)
    return shared.item()


def leave_ranks() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
