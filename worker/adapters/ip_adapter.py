"""IP-Adapters of the UNet families: a picture that is heard beside the prompt."""

# diffusers' pipelines are typed as if an image encoder were always there.
# pyright: reportArgumentType=false

from pathlib import Path

from torch import Tensor

from worker.adapters.add_ons import IpAdapter, find_weights, stamp, to_pil
from worker.adapters.errors import ModelFolderError
from worker.adapters.image_encoder import load_image_encoder
from worker.adapters.ip_adapter_file import check_ip_adapter
from worker.adapters.unet_pipeline import UNetPipeline

_ENCODER = "image_encoder"


class IpAdapters:
    """Keeps the last adapter loaded while pictures ask for it."""

    def __init__(self, pipe: UNetPipeline) -> None:
        self._pipe = pipe
        self._own_encoder = pipe.image_encoder
        self._worn: tuple[Path, int] | None = None

    def wear(self, chosen: IpAdapter | None, *, guided: bool) -> tuple[Tensor, ...]:
        """What the UNet is told of the picture, each (branches, 1, ...); nothing without one.

        Raises:
            ModelFolderError: it is not for this model, or unreadable.
        """
        if chosen is None:
            self._take_off()
            return ()
        file = find_weights(chosen.path)
        if self._worn != stamp(file):
            self._put_on(file)
        self._pipe.set_ip_adapter_scale(chosen.scale)
        embeds = self._pipe.prepare_ip_adapter_image_embeds(
            [to_pil(chosen.picture)], None, self._pipe.device, 1, guided
        )
        return tuple(embed.to(self._pipe.unet.dtype) for embed in embeds)

    def _put_on(self, file: Path) -> None:
        self._take_off()
        folder = file.parent / _ENCODER
        if self._own_encoder is None and not folder.is_dir():
            raise ModelFolderError(
                f"{file.name} needs a folder {_ENCODER} beside it, since the model has none"
            )
        self._worn = stamp(file)
        pipe = self._pipe
        try:
            encoder = self._own_encoder or load_image_encoder(folder, pipe.dtype)
            check_ip_adapter(file, pipe.unet, encoder.config)
            pipe.register_modules(image_encoder=encoder.to(pipe.device))
            # Loaded with room for every weight, layers refuse keys that they do not know; else they are left out.
            pipe.load_ip_adapter(
                str(file.parent), "", file.name, local_files_only=True, low_cpu_mem_usage=False
            )
        except Exception as error:  # whatever a file of another model may raise in diffusers
            self._take_off()
            raise ModelFolderError(
                f"{file.name} is no IP-Adapter for this model: {str(error)[:400]}"
            ) from error

    def _take_off(self) -> None:
        if self._worn is not None:
            self._pipe.unload_ip_adapter()
            self._pipe.register_modules(image_encoder=self._own_encoder, feature_extractor=None)
            self._worn = None
