"""How finished pictures are marked as made by a model: source type, watermark, signed manifest."""

import logging
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pyvips

from api_schemas.events import WarnedData
from api_schemas.generation import ResolvedRequest
from provenance.errors import CredentialsError, SigningError
from provenance.manifest import Claim, ManifestSigner, Parent
from provenance.source_types import SourceType
from provenance.watermark import add_watermark
from worker.disk_faults import hide_paths
from worker.errors import ResourceError, SigningUnavailableError
from worker.process.protocol import Generated, Levels

_MOST_LEVEL = 255
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Marking:
    """What an operator has chosen; the source type is not a choice.

    Args:
        signer: None: files have no manifest.
        model_digest: for the manifest.
    """

    signer: ManifestSigner | None = None
    has_watermark: bool = False
    model_digest: str = ""

    def find_fault(self) -> ResourceError | None:
        """Why nothing can be signed now, although it should be."""
        try:
            if self.signer is not None:
                self.signer.check()
        except CredentialsError as error:
            return SigningUnavailableError(hide_paths(str(error)))
        return None

    def mark(self, rows: pyvips.Image, levels: Levels | None) -> pyvips.Image:
        """The pixels as they are stored: what stays of a source is not changed.

        Args:
            levels: how much of each pixel is new; None: all of it.
        """
        if not self.has_watermark:
            return rows
        return add_watermark(rows, None if levels is None else _open_share(levels, rows))

    def sign(
        self, path: Path, request: ResolvedRequest, generated: Generated, source: Path | None
    ) -> list[WarnedData]:
        """Sign the file; a picture that cannot be signed stays as it is, and that is said.

        Raises:
            SigningUnavailableError: the certificate is not valid now.
            OSError: the signed file cannot be written.
        """
        if self.signer is None:
            return []
        claim = self._describe(request, generated, source)
        try:
            return _sign(self.signer, path, claim)
        except CredentialsError as error:
            raise SigningUnavailableError(hide_paths(str(error))) from error

    def _describe(self, request: ResolvedRequest, generated: Generated, source: Path | None) -> Claim:
        digest = {"sha256": self.model_digest} if self.model_digest else {}
        made: dict[str, object] = {"model": {"name": request.model} | digest}
        if request.embed_metadata:
            made |= request.model_dump(mode="json", include={"prompt", "negative_prompt", "seed", "steps"})
        parent = None if source is None else _describe_parent(source, request)
        return Claim(version("chorale"), find_source_type(generated), made, parent)


UNMARKED: Final = Marking()


def find_source_type(generated: Generated) -> SourceType:
    """Whether pixels of another picture stay in this one."""
    return "trainedAlgorithmicMedia" if generated.changed is None else "compositeWithTrainedAlgorithmicMedia"


def _describe_parent(source: Path, request: ResolvedRequest) -> Parent:
    """What was sent is stored as its pixels alone; who wants no metadata does not publish that of a parent either."""
    title = "uploaded picture" if request.source_job is None else "picture that this one was made of"
    return Parent(source, title, is_quoted=request.embed_metadata)


def _open_share(levels: Levels, rows: pyvips.Image) -> pyvips.Image:
    image = pyvips.Image.rawload(str(levels.path), levels.width, levels.height, 1)
    return image.crop(0, 0, rows.width, rows.height) / _MOST_LEVEL


def _sign(signer: ManifestSigner, path: Path, claim: Claim) -> list[WarnedData]:
    """With the time, else without, else not at all."""
    attempts = [partial(signer.sign, timed=False)]
    attempts = [signer.sign, *attempts] if signer.timestamp_url else attempts
    warnings: list[WarnedData] = []
    for attempt in attempts:
        try:
            attempt(path, claim)
        except SigningError as error:
            warnings.append(_warn(error, is_last=attempt is attempts[-1]))
        else:
            return warnings
    return warnings[-1:]


def _warn(error: SigningError, *, is_last: bool) -> WarnedData:
    _log.error("%s: %s", "the picture is not signed" if is_last else "no time from the authority", error)
    if is_last:
        return WarnedData(
            code="unsigned", message="the picture could not be signed; the worker's log says why"
        )
    return WarnedData(code="untimed", message="signed without a time stamp: its authority gives none")
