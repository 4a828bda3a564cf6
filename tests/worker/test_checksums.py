"""No change of a file passes: one byte, its second half, its end."""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from worker.checksums import NO_CHECKSUM, verify_checksum, verify_png, write_checksum
from worker.errors import DamagedFileError


def sealed_tensors(path: Path) -> None:
    save_file({"latent": torch.arange(12.0), "state": torch.ones(3, dtype=torch.uint8)}, path, NO_CHECKSUM)
    write_checksum(path)


def picture(path: Path) -> None:
    noise = Image.effect_noise((14, 10), 80).convert("RGB")
    noise.save(path, "PNG", pnginfo=None)


KINDS = pytest.mark.parametrize(
    ("write", "verify"), [(sealed_tensors, verify_checksum), (picture, verify_png)]
)


def damages(whole: bytes) -> Iterator[bytes]:
    for place in range(len(whole)):
        yield whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :]
        yield whole[:place]
    yield whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
    yield bytes(len(whole))


@KINDS
def test_every_changed_byte_and_every_cut_is_told(
    tmp_path: Path, write: Callable[[Path], None], verify: Callable[[Path], None]
) -> None:
    path = tmp_path / "file"
    write(path)
    verify(path)
    for damaged in damages(path.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match="file"):
            verify(path)


def test_a_checked_file_is_still_a_safetensors_file(tmp_path: Path) -> None:
    sealed_tensors(tmp_path / "a")
    assert torch.equal(load_file(tmp_path / "a")["latent"], torch.arange(12.0))


def test_pillows_own_reading_lets_damage_pass(tmp_path: Path) -> None:
    """Which is why the chunks are verified here."""
    picture(tmp_path / "a")
    whole = (tmp_path / "a").read_bytes()
    passed = 0
    for place in range(whole.index(b"IDAT"), len(whole)):
        try:
            Image.open(BytesIO(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])).load()
            passed += 1
        except (OSError, SyntaxError):
            continue
    assert passed


def test_a_file_without_checksum_is_not_taken(tmp_path: Path) -> None:
    save_file({"latent": torch.ones(3)}, tmp_path / "a")
    with pytest.raises(DamagedFileError, match="a has no checksum"):
        verify_checksum(tmp_path / "a")
