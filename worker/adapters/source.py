"""From the model that the operator names to its folder, and to the add-ons that fit it."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from api_schemas.allow_list import HUB_NAME, AllowedModel, AllowList
from api_schemas.catalog import AddOnKind, Dtype
from api_schemas.generation import MAX_LORAS
from worker.adapters.errors import ModelFolderError
from worker.adapters.integrity import Snapshot, digest_files, snapshot_listed

Stamp = tuple[tuple[str, int, int, int, int], ...]  # name, file, size, times of the last change
_log = logging.getLogger(__name__)
_KEPT = MAX_LORAS + 2  # all that one picture can name: beside LoRAs a ControlNet and an IP-Adapter
# In this order, since what has no variant is what diffusers would take.
_VARIANTS = (None, "bf16", "fp16")
_NEVER_READ = {"safety_checker": None, "feature_extractor": None}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A name on the allow-list, a folder, a name on the hub (`someone/model`), or `toy`.

    Args:
        models_file: the allow-list; there need not be one.
        scratch: folder for copies of files that others could change; None for the system's.
        dtype: that the operator chose; None: as the folder says.
    """

    model: str
    models_file: Path | None = None
    scratch: Path | None = None
    dtype: Dtype | None = None


class AddOns:
    """The allow-list's LoRAs, ControlNets and IP-Adapters that fit one family.

    The snapshots of the last few that were opened are kept, since to check or copy one may mean gigabytes.
    """

    def __init__(
        self, entries: Mapping[str, AllowedModel] | None = None, scratch: Path | None = None
    ) -> None:
        self._entries, self._scratch = entries or {}, scratch
        # With what files looked like when their digests were found right; least recently opened first.
        self._snapshots: dict[str, tuple[Stamp, Snapshot]] = {}

    def announce(self) -> dict[str, object]:
        """The fields of a model's card that list them."""
        for_tiles = [name for name in self.names("controlnet") if self._entries[name].control == "tile"]
        return {
            "loras": self.names("lora"),
            "controlnets": self.names("controlnet"),
            "ip_adapters": self.names("ip_adapter"),
            "tile_controlnet": next(iter(for_tiles), None),
        }

    def only(self, kinds: Sequence[AddOnKind]) -> "AddOns":
        """Those that a family can take."""
        return AddOns(
            {name: entry for name, entry in self._entries.items() if entry.kind in kinds}, self._scratch
        )

    def names(self, kind: AddOnKind) -> list[str]:
        """All of one kind."""
        return sorted(name for name, entry in self._entries.items() if entry.kind == kind)

    def open(self, kind: AddOnKind, name: str) -> Path:
        """A file or folder whose digests are as listed and which holds nothing else, until others are opened.

        Raises:
            ModelFolderError: there is no such add-on, or it cannot be loaded.
            DamagedModelError: it was changed.
        """
        entry = self._entries.get(name)
        if entry is None or entry.kind != kind:
            raise ModelFolderError(f"no {kind} {name!r} is on the allow-list for this model's family")
        stamp = _stamp(entry)
        kept = self._snapshots.pop(name, None)
        if kept is None or kept[0] != stamp:
            kept = stamp, snapshot_listed(name, entry, self._scratch)
        self._snapshots[name] = kept
        for oldest in list(self._snapshots)[:-_KEPT]:
            del self._snapshots[oldest]
        folder = kept[1].path
        return folder / entry.path.name if entry.root != entry.path else folder


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model that may be loaded.

    Args:
        address: its folder, or `toy` with its options; empty: it is to be fetched from the hub.
        name: what it is called on the allow-list or the hub; None for a bare folder.
        dtype: as in `ModelSource`.
    """

    address: str
    name: str | None
    entry: AllowedModel | None
    allow_list: AllowList
    scratch: Path | None = None
    dtype: Dtype | None = None

    def digest(self) -> str:
        """SHA-256 of what `sha256sum` prints of the files that are read, in the order of their names; "" for `toy`."""
        if self.address.partition(":")[0] == "toy":
            return ""
        files = self.entry.files if self.entry else digest_files(Path(self.address))
        lines = (f"{digest}  {name}\n" for name, digest in sorted(files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def add_ons(self, family: str) -> AddOns:
        """Those that fit; one that is gone from the disk is left out, loudly."""
        fitting = {
            name: entry
            for name, entry in self.allow_list.models.items()
            if entry.kind != "model" and entry.base == family
        }
        gone = [name for name, entry in fitting.items() if not entry.path.exists()]
        for name in gone:
            _log.error("%s is on the allow-list, but %s is gone", name, fitting[name].path)
        return AddOns({name: entry for name, entry in fitting.items() if name not in gone}, self.scratch)


def find_model(source: ModelSource) -> FoundModel:
    """The allow-list goes before folders of the same name, and they before the hub.

    Raises:
        ModelFolderError: none has it, or the allow-list cannot be read.
    """
    found = find_here(source)
    return found if found.address else replace(found, address=str(_fetch(source.model)))


def find_here(source: ModelSource) -> FoundModel:
    """The same, but for what the hub may have: that has no address.

    Raises:
        ModelFolderError: it can be nowhere, or the allow-list cannot be read.
    """
    allow_list = _read(source.models_file)
    scratch, dtype = source.scratch, source.dtype
    entry = allow_list.models.get(source.model)
    if entry is not None and entry.kind == "model":
        return FoundModel(str(entry.path), source.model, entry, allow_list, scratch, dtype)
    if source.model.partition(":")[0] == "toy" or Path(source.model).is_dir():
        return FoundModel(source.model, None, None, allow_list, scratch, dtype)
    if HUB_NAME.fullmatch(source.model):
        name = source.model.partition("/")[2]
        return FoundModel("", name, None, allow_list, scratch, dtype)
    known = _join(name for name, each in allow_list.models.items() if each.kind == "model")
    raise ModelFolderError(
        f"{source.model} is neither a model folder nor on the allow-list; listed are {known}"
    )


def _stamp(entry: AllowedModel) -> Stamp:
    paths = ((name, entry.root / name) for name in sorted(entry.files))
    states = ((name, path.stat()) for name, path in paths if path.exists())
    return tuple(
        (name, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for name, state in states
    )


def _read(path: Path | None) -> AllowList:
    if path is None or not path.is_file():
        return AllowList()
    try:
        return AllowList.model_validate_json(path.read_bytes(), extra="ignore")
    except ValidationError as error:
        # Without what was read: it may be any file.
        faults = "; ".join(each["msg"] for each in error.errors(include_input=False))
        raise ModelFolderError(
            f"CHORALE_MODELS_FILE {path} is no allow-list, as `chorale models add` writes it: {faults}"
        ) from None


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _fetch(name: str) -> Path:
    """The folder of a model, as `someone/model`; what its pipeline needs of it, without pickled weights.

    HF_HOME is where the cache lies, HF_TOKEN the account. Where the hub cannot be reached, what the cache has is used.

    Raises:
        ModelFolderError: it is neither on the hub nor in the cache, or it would run code of its own.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline  # two seconds that other models spare

    errors: list[Exception] = []
    for variant in _VARIANTS:
        try:
            download = cast(Callable[..., str], DiffusionPipeline.download)  # pyright: ignore[reportUnknownMemberType]  # untyped options
            return Path(download(name, use_safetensors=True, variant=variant, **_NEVER_READ))
        except Exception as error:  # whatever diffusers, the hub and the network may raise
            errors.append(error)
    raise ModelFolderError(f"{name} cannot be fetched from the hub: {errors[0]}") from errors[0]
