"""Pictures that came with a job, fetched before it is sung."""

from pathlib import Path

from api_schemas.generation import PicturePart, ResolvedRequest
from api_schemas.wire import input_key
from worker.errors import HopelessJobError
from worker.storage import Storage


def fetch_inputs(
    storage: Storage, job_id: str, request: ResolvedRequest, folder: Path
) -> dict[PicturePart, Path]:
    """The job's pictures as PNG files in `folder`; those that are there already stay.

    Raises:
        HopelessJobError: one is no longer stored.
        ResourceError: the store does not answer.
    """
    paths: dict[PicturePart, Path] = {}
    for part in request.pictures:
        path = paths[part] = folder / f"{part}.png"
        partial = path.with_suffix(".partial")
        if path.exists():
            continue
        if not storage.get_file(input_key(job_id, part), partial):
            message = f"the picture {part} that came with this job is no longer stored"
            raise HopelessJobError("input_missing", message, retryable=False)
        partial.rename(path)
    return paths
