"""Which device a name means, whether it exists, and how much memory it has."""

from dataclasses import dataclass

import torch

from worker.engine.main_memory import measure_main_memory
from worker.errors import DeviceRefusedError

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Room:
    """Memory of a device, for everybody who uses it; bytes."""

    device: str
    free: int
    total: int


def find_device(name: str) -> torch.device:
    """The device that a name of `parse_devices` means here.

    Raises:
        DeviceRefusedError: it does not exist; the message says which do.
    """
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and int(name.removeprefix("cuda:")) >= torch.cuda.device_count():
        raise DeviceRefusedError(f"devices: there is no {name}; this machine has {_list_devices()}")
    if name == "mps" and not torch.backends.mps.is_available():
        raise DeviceRefusedError(f"devices: there is no mps; this machine has {_list_devices()}")
    return torch.device(name)


def _list_devices() -> str:
    return ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])


def measure_room(device: torch.device) -> Room:
    """What other processes leave over; what PyTorch keeps here for later counts as free."""
    if device.type != "cuda":
        memory = measure_main_memory()
        return Room(str(device), memory.free, memory.total)
    free, total = torch.cuda.mem_get_info(device)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Room(str(device), free + idle, total)


def require_room(room: Room, needed_bytes: int, what: str) -> None:
    """
    Raises:
        DeviceRefusedError: the device has less free memory than that.
    """
    if needed_bytes > room.free:
        raise DeviceRefusedError(
            f"devices: {room.device} has {room.free / _GIB:.1f} of {room.total / _GIB:.1f} GiB free, and {what} "
            f"needs about {needed_bytes / _GIB:.1f} GiB; stop what else uses the device, or choose another"
        )
