"""The folders that the stages leave to each other, as diffusers writes them."""

from pathlib import Path

_WRITERS = {
    "vae": "autoencoder",
    "text_encoder": "text_encoder",
    "tokenizer": "text_encoder",
    "unet_full": "denoiser",
    "unet": "distill",
}


class MissingPartError(Exception):
    """A stage has not what an earlier one writes; the message names the folder and that stage."""


def require_part(folder: Path) -> Path:
    """The folder itself; diffusers would look for one that is not there in the network.

    Raises:
        MissingPartError: it is not there.
    """
    if folder.is_dir():
        return folder
    writer = _WRITERS.get(folder.name)
    hint = f": python -m training.{writer} writes it" if writer else ""
    raise MissingPartError(f"there is no folder {folder}{hint}")
