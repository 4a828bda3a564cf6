"""From finished rows to a stored result that an event may name."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from api_schemas.events import Result
from api_schemas.generation import ResolvedRequest
from worker.messages import Sung
from worker.metadata import describe_picture
from worker.pyramid import MEDIA_TYPES, SUFFIXES, Press
from worker.storage import Storage

FILES = 2  # the picture and its pyramid
_PYRAMID_TYPES = {".dzi": "application/xml", ".jpg": "image/jpeg"}


@dataclass(frozen=True, slots=True)
class Parcel:
    """Files as they will be stored."""

    image: Path
    pyramid: Path
    sha256: str


class Delivery:
    """Writes and stores the files of one attempt, under keys that no other attempt uses."""

    def __init__(self, storage: Storage, request: ResolvedRequest, job_id: str, token: str) -> None:
        self._storage = storage
        self._request = request
        self._prefix = f"jobs/{job_id}/{token}"
        self._press: Press | None = None
        self._stopped = Event()

    def stop(self) -> None:
        """Make `pack` end soon; from another thread."""
        self._stopped.set()
        if self._press is not None:
            self._press.stop()

    def pack(self, sung: Sung, folder: Path) -> Parcel:
        """Write the picture and its pyramid.

        Raises:
            DiskFullError: no space left.
        """
        self._press = Press(sung.path, self._request.dpi)
        kind = self._request.output_format
        image, pyramid = folder / f"image.{SUFFIXES[kind]}", folder / "pyramid"
        # `image.tif` holds the rows.
        image = image.with_stem("finished") if image == sung.path else image
        pyramid.mkdir(exist_ok=True)
        metadata = describe_picture(self._request) if self._request.embed_metadata else None
        self._press.write_picture(image, kind, metadata)
        if not self._stopped.is_set():
            self._press.write_pyramid(pyramid / "image")
        with image.open("rb") as file:
            return Parcel(image, pyramid, hashlib.file_digest(file, "sha256").hexdigest())

    def send(self, parcel: Parcel, engine_s: float) -> Result:
        """Store the files.

        Raises:
            ResourceError: the store does not take them.
        """
        kind = self._request.output_format
        image_key = f"{self._prefix}/image.{SUFFIXES[kind]}"
        self._storage.put_file(image_key, parcel.image, MEDIA_TYPES[kind])
        self._storage.put_folder(self._prefix, parcel.pyramid, _PYRAMID_TYPES, self._stopped.is_set)
        return Result(
            image_key=image_key,
            pyramid_key=self._prefix,
            media_type=MEDIA_TYPES[kind],
            width_px=self._request.width_px,
            height_px=self._request.height_px,
            size_bytes=parcel.image.stat().st_size,
            sha256=parcel.sha256,
            engine_s=round(engine_s, 3),
        )


def sweep(storage: Storage, job_id: str, committed: Result | None) -> None:
    """Delete what attempts of an ended job left behind, all but its result.

    Raises:
        ResourceError: the store does not answer.
    """
    kept = committed.image_key.rpartition("/")[0] if committed else None
    keys = storage.list_keys(f"jobs/{job_id}")
    storage.delete([key for key in keys if kept is None or not key.startswith(f"{kept}/")])
