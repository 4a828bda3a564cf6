"""Which devices a worker sings on: `auto`, `cpu`, `cuda:0`, or several: `0,1`, `cpu,cpu`."""

import re

_ALLOWED = "auto, cpu, mps, cuda:N or N; several of one kind with commas between, as in 0,1 or cpu,cpu"


def parse_devices(text: str) -> tuple[str, ...]:
    """One name a rank, in the form that torch knows; empty means auto.

    Raises:
        ValueError: no such device can exist; the message says what is allowed.
    """
    devices = tuple(_parse(name.strip(), text) for name in (text or "auto").split(","))
    kinds = {device.partition(":")[0] for device in devices}
    if len(devices) > 1 and kinds not in ({"cpu"}, {"cuda"}):
        raise ValueError(f"{text!r} mixes kinds of devices; allowed: {_ALLOWED}")
    if kinds == {"cuda"} and len(set(devices)) < len(devices):
        raise ValueError(f"{text!r} names a GPU twice; two ranks on one GPU are no faster than one")
    return devices


def _parse(name: str, text: str) -> str:
    if name in ("auto", "cpu", "mps"):
        return name
    if match := re.fullmatch(r"(?:cuda:)?(\d{1,3})", name):
        return f"cuda:{int(match[1])}"
    raise ValueError(f"{text!r} is not a list of devices; allowed: {_ALLOWED}")
