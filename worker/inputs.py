"""What a job begins with, from the store to its folder, and whether it is still what was put there."""

import hashlib
import logging
from pathlib import Path

from api_schemas.generation import PicturePart, ResolvedRequest
from api_schemas.source import SourceJob
from api_schemas.wire import input_key
from worker.checksums import verify_checksum, verify_png
from worker.errors import DamagedFileError, JobFailedError
from worker.storage import Storage

_log = logging.getLogger(__name__)


def fetch_inputs(
    storage: Storage, job_id: str, request: ResolvedRequest, folder: Path
) -> dict[PicturePart, Path]:
    """Fetch the job's pictures into `folder`, unless they are there already and undamaged.

    Raises:
        JobFailedError: one is no longer stored, or damaged there.
        ResourceError: the store does not answer.
    """
    keys: dict[PicturePart, str] = {part: input_key(job_id, part) for part in request.pictures}
    if request.source_job is not None:
        keys["source_image"] = request.source_job.image_key
    paths: dict[PicturePart, Path] = {}
    for part, key in keys.items():
        path = paths[part] = folder / f"{part}{Path(key).suffix}"
        made_by = request.source_job if part == "source_image" else None
        if path.exists() and not _is_whole(path, made_by):
            path.unlink()  # it was whole when it came
        if not _fetch(storage, key, path):
            message = f"{_name(part, request)} is no longer stored"
            raise JobFailedError("input_missing", message, retryable=False)
        if not _is_whole(path, made_by):
            path.unlink()
            remedy = "make it again" if made_by else "send the job again"
            message = f"{_name(part, request)} is damaged in the store; {remedy}"
            raise JobFailedError("input_damaged", message, retryable=False)
    return paths


def fetch_state(storage: Storage, request: ResolvedRequest, folder: Path) -> Path | None:
    """Fetch the kept final state that the job begins with; None if it begins with pixels, as it does without an undamaged one.

    Raises:
        ResourceError: the store does not answer.
    """
    key, path = request.source_job and request.source_job.state_key, folder / "source.safetensors"
    if not key or not _fetch(storage, key, path):
        return None
    try:
        verify_checksum(path)
    except DamagedFileError as error:
        _log.warning("the job begins with the picture itself: %s", error)
        return None
    return path


def _fetch(storage: Storage, key: str, path: Path) -> bool:
    """Whether the object is in the file: all of it, also after a kill."""
    partial = path.with_suffix(".partial")
    if not path.exists():
        if not storage.get_file(key, partial):
            return False
        partial.rename(path)
    return True


def _name(part: PicturePart, request: ResolvedRequest) -> str:
    if part == "source_image" and request.source and request.source.job:
        return f"the picture of job {request.source.job}, which this job begins with,"
    return f"the picture {part} that came with this job"


def _is_whole(path: Path, made_by: SourceJob | None) -> bool:
    """Whether it is what another job has made, by that job's record; what was sent is PNG, with checksums of its own.

    Of requests that older versions have taken in no digest is known: then PNG is all that can be told.
    """
    try:
        if made_by is not None and made_by.sha256 is not None:
            return _has_digest(path, made_by.sha256)
        if path.suffix == ".png":
            verify_png(path)
    except FileNotFoundError:
        return False
    except DamagedFileError as error:
        _log.warning("%s", error)
        return False
    return True


def _has_digest(path: Path, sha256: str) -> bool:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        _log.warning("%s is damaged: SHA-256 %s instead of %s", path.name, found, sha256)
    return found == sha256
