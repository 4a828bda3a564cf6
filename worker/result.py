"""From a finished attempt to stored files: final state, picture and pyramid."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from api_schemas.events import Result, WarnedData
from api_schemas.generation import ResolvedRequest
from api_schemas.pyramid import Pyramid
from api_schemas.wire import STATE_FILE, result_folder
from worker.alpha import open_alpha
from worker.disk_faults import WORK_FOLDER, find_disk_fault
from worker.marking import UNMARKED, Marking, find_source_type
from worker.metadata import describe_picture
from worker.picture_writer import MEDIA_TYPES, SUFFIXES, PictureWriter
from worker.process.protocol import Generated
from worker.storage import Storage

FILES = 2  # that progress counts: the picture and its pyramid
_PYRAMID_TYPES = {".dzi": "application/xml", ".jpg": "image/jpeg"}


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """Files on disk as they will be stored.

    Args:
        warnings: of what could not be done as asked.
    """

    image: Path
    pyramid: Path
    sha256: str
    warnings: tuple[WarnedData, ...] = ()


class ResultWriter:
    """Writes and stores the files of one attempt.

    Args:
        prefix: of their keys, which no other attempt uses.
        source: the picture that the job begins with, whose alpha is put back.
    """

    def __init__(
        self,
        storage: Storage,
        request: ResolvedRequest,
        prefix: str,
        generated: Generated,
        source: Path | None = None,
        marking: Marking = UNMARKED,
    ) -> None:
        self._storage = storage
        self._request = request
        self._prefix = prefix
        self._generated = generated
        self._source = source
        self._marking = marking
        self._pictures = PictureWriter(
            generated.path,
            request.dpi,
            generated.colors,
            lambda: open_alpha(request, source),
            lambda rows: marking.mark(rows, generated.levels),
            find_source_type(generated),
        )

    def stop(self) -> None:
        """Make `write` or `upload` end soon; from another thread."""
        self._pictures.stop()

    def write(self, folder: Path) -> ResultFiles:
        """Write the picture and its pyramid.

        Raises:
            ResourceError: the work folder is full or cannot be written, or the certificate is not valid now.
        """
        kind = self._request.output_format
        image, pyramid = folder / f"image.{SUFFIXES[kind]}", folder / "pyramid"
        # `image.tif` is the file of the rows.
        image = image.with_stem("finished") if image == self._generated.path else image
        pyramid.mkdir(exist_ok=True)
        metadata = describe_picture(self._request) if self._request.embed_metadata else None
        stays = self._generated.changed is not None
        quality = self._request.output_quality
        self._pictures.write_picture(image, kind, metadata, lossless=stays, quality=quality)
        warnings = () if self._pictures.is_stopped() else self._sign(image)
        if not self._pictures.is_stopped():
            self._pictures.write_pyramid(pyramid / "image")
        with image.open("rb") as file:
            return ResultFiles(image, pyramid, hashlib.file_digest(file, "sha256").hexdigest(), warnings)

    def _sign(self, image: Path) -> tuple[WarnedData, ...]:
        try:
            return tuple(self._marking.sign(image, self._request, self._generated, self._source))
        except OSError as error:
            raise find_disk_fault(error, WORK_FOLDER) or error from error

    def upload(self, files: ResultFiles) -> Result:
        """Store the files.

        Raises:
            ResourceError: the store does not take them.
        """
        kind = self._request.output_format
        image_key = f"{self._prefix}/image.{SUFFIXES[kind]}"
        self._storage.put_file(image_key, files.image, MEDIA_TYPES[kind])
        self._storage.put_file(
            f"{self._prefix}/{STATE_FILE}", self._generated.state, "application/octet-stream"
        )
        inherited = self._list_inherited()
        paths = [path for path in files.pyramid.rglob("*") if path.is_file()]
        paths = [path for path in paths if not inherited or self._has_changed(path)]
        stored = [files.image, self._generated.state, *paths]
        self._storage.put_files(self._prefix, paths, files.pyramid, _PYRAMID_TYPES, self._pictures.is_stopped)
        return Result(
            image_key=image_key,
            pyramid_key=self._prefix,
            inherited_pyramids=inherited,
            media_type=MEDIA_TYPES[kind],
            width_px=self._request.width_px,
            height_px=self._request.height_px,
            size_bytes=files.image.stat().st_size,
            stored_bytes=sum(path.stat().st_size for path in stored),
            sha256=files.sha256,
            engine_s=round(self._generated.engine_s, 3),
            dtype=self._generated.dtype,
        )

    def _list_inherited(self) -> list[str]:
        """Pyramids that have all tiles but those that have changed. Of a parent alone: its tiles outlive it."""
        request, job = self._request, self._request.source_job
        is_child = request.parent is not None and request.source and request.source.job == request.parent
        return job.pyramid_keys if job and is_child and self._generated.changed else []

    def _has_changed(self, path: Path) -> bool:
        if path.suffix != ".jpg" or self._generated.changed is None:
            return True
        level, column, row = int(path.parent.name), *map(int, path.stem.split("_"))
        window = Pyramid(self._request.width_px, self._request.height_px).window(level, column, row)
        return window is None or window.touches(self._generated.changed)


def delete_leftovers(storage: Storage, job_id: str, committed: Result | None) -> None:
    """Delete the files of all attempts of a job that has ended, but not its result.

    Raises:
        ResourceError: the store does not answer.
    """
    kept = committed.image_key.rpartition("/")[0] if committed else None
    keys = storage.list_keys(result_folder(job_id))
    storage.delete([key for key in keys if kept is None or not key.startswith(f"{kept}/")])
