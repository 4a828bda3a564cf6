"""Which files of a folder its loader reads: they have digests, and they alone are shown to it.

diffusers and transformers decide by names, so this does too; no file but the two that describe the folder is opened.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from pydantic import TypeAdapter, ValidationError

# The configuration of a folder.
JSON_OBJECT: Final = TypeAdapter(dict[str, object])
_LIST: Final = TypeAdapter(list[object])
# The name that a loader asks for -> the name that the file has below the folder.
Files = Mapping[str, str]

# Safety checkers and their preprocessors: they are not used.
_NEVER_READ = frozenset({"safety_checker", "feature_extractor"})
# Families whose IP-Adapters may use the model's own image encoder; others never do.
_SEES = frozenset({
    "StableDiffusionPipeline", "StableDiffusionXLPipeline",
    "StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline",
})  # fmt: skip
_BASES = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
# The network of a cascade's later stages: beside the pipeline's own parts, since no pipeline of diffusers has both.
UPSCALER = "latent_upscaler"
_UPSCALED = frozenset({"StableDiffusionPipeline"})
SETTINGS: Final = "chorale.json"
_WEIGHTLESS = ("scheduler", "tokenizer")
# Configurations, vocabularies, chat templates. An index is one of weights.
_TEXTS = frozenset({".json", ".txt", ".model", ".jinja"})
_VARIANTS = (None, "fp32", "bf16", "fp16")  # the first of these that exists is read, and no other
# These run code when they are loaded.
_PICKLED = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"})
_LEVELS = ("*", "*/*", "*/additional_chat_templates/*")  # loaders read at most this deep
_ENCODER = "image_encoder"
_ADAPTER = "adapter_config.json"


class FolderError(ValueError):
    """Why what is in a folder cannot be loaded; names the folder."""


@dataclass(frozen=True, slots=True)
class Folder:
    """`names` of files below `root`; other files are ignored."""

    root: Path
    names: frozenset[str]

    @classmethod
    def on_disk(cls, root: Path) -> "Folder":
        """With all that is there, links followed."""
        found = (path for level in _LEVELS for path in root.glob(level) if path.is_file())
        return cls(root, frozenset(path.relative_to(root).as_posix() for path in found))

    def inside(self, part: str) -> list[str]:
        """Names directly in a folder below, in order; "" is the root."""
        prefix = f"{part}/" if part else ""
        below = sorted(name.removeprefix(prefix) for name in self.names if name.startswith(prefix))
        return [name for name in below if "/" not in name]

    def read(self, name: str) -> dict[str, object]:
        """
        Raises:
            FolderError: the file holds no JSON object, or cannot be read.
        """
        path = self.root / name
        try:
            return JSON_OBJECT.validate_json(path.read_bytes())
        except ValidationError as error:
            words = str(error.errors()[0]["msg"]).replace("Input should be an", "this is no")
            raise FolderError(f"{path}: {words}") from error
        except OSError as error:
            raise FolderError(f"{path} cannot be read: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class ModelIndex:
    """Content of `model_index.json`.

    Args:
        kind: the pipeline's class.
        parts: library of each part that is read, by the name of its folder.
        absent: parts that the index names and that are null, or never read.
    """

    kind: str
    parts: dict[str, str]
    absent: frozenset[str]


def read_index(folder: Folder) -> ModelIndex:
    """
    Raises:
        FolderError: there is none, it names no pipeline, or it needs custom code.
    """
    path = folder.root / "model_index.json"
    if path.name not in folder.names:
        raise FolderError(f"{folder.root} is not a model folder: {path.name} is missing{_hint(folder)}")
    entries = folder.read(path.name)
    kind = entries.get("_class_name")
    if isinstance(kind, list):
        raise FolderError(f"{path} asks for code of its own: _class_name is {kind!r}; it is never run")
    if not isinstance(kind, str):
        raise FolderError(f"{path}: _class_name is {kind!r}; allowed: the name of a pipeline of diffusers")
    named = {
        name: _read_library(path, name, value) for name, value in entries.items() if _is_part(name, value)
    }
    unread = _NEVER_READ if kind in _SEES else _NEVER_READ | {_ENCODER}
    parts = {part: library for part, library in named.items() if library and part not in unread}
    for part, library in parts.items():
        if library not in _BASES:
            raise FolderError(f"{path} asks for code of its own: {part} is of {library}; it is never run")
    return ModelIndex(kind, parts, frozenset(named) - parts.keys())


def choose_model_files(folder: Folder) -> Files:
    """Of a diffusers folder.

    Where weights lie in several variants those without one are read, as diffusers does; then fp32, bf16, fp16.

    Raises:
        FolderError: something is missing or not as it has to be.
    """
    index = read_index(folder)
    files = {name: name for name in ("model_index.json", SETTINGS) if name in folder.names}
    parts = {part: (library, f"model_index.json names {part}") for part, library in index.parts.items()}
    if _asks_for_upscaler(folder, index.kind):
        parts[UPSCALER] = (
            "diffusers",
            f"{SETTINGS} says that cascade.conditioned is true, which needs {UPSCALER}",
        )
    for part, (library, reason) in parts.items():
        if not any(name.startswith(f"{part}/") for name in folder.names):
            raise FolderError(
                f"{folder.root} is incomplete: {reason}, and there is no such folder with files"
            )
        if not part.startswith(_WEIGHTLESS):
            files |= _choose_weights(folder, part, library)
        files |= _choose_texts(folder, part)
    return files


def _asks_for_upscaler(folder: Folder, kind: str) -> bool:
    """
    Raises:
        FolderError: the pipeline is of a kind that none is known for.
    """
    cascade = folder.read(SETTINGS).get("cascade") if SETTINGS in folder.names else None
    if not isinstance(cascade, dict) or JSON_OBJECT.validate_python(cascade).get("conditioned") is not True:
        return False  # what is no setting is refused with the others, by folder_settings.py
    if kind not in _UPSCALED:
        raise FolderError(
            f"{folder.root / SETTINGS}: cascade.conditioned is true; allowed for a {kind}: false, only a"
            f" {' or a '.join(_UPSCALED)} can have a {UPSCALER}"
        )
    return True


def choose_add_on_files(folder: Folder, kind: str, file: str | None) -> Files:
    """Of a LoRA, ControlNet or IP-Adapter.

    Args:
        file: the safetensors file that was named, or None for the whole folder.

    Raises:
        FolderError: something is missing or not as it has to be.
    """
    if kind == "controlnet":
        if "config.json" not in folder.names:
            raise FolderError(f"{folder.root} is no {kind}: config.json is missing")
        return {"config.json": "config.json", **_choose_weights(folder, "", "diffusers")}
    found = [file] if file else [name for name in folder.inside("") if name.endswith(".safetensors")]
    if len(found) != 1 or found[0] not in folder.names:
        told = ", ".join(found) or f"none{_hint(folder)}"
        raise FolderError(f"{folder.root} is no {kind}: it must hold one .safetensors file; it holds {told}")
    files = {found[0]: found[0]}
    if kind == "ip_adapter" and folder.inside(_ENCODER):
        files |= _choose_texts(folder, _ENCODER) | _choose_weights(folder, _ENCODER, "transformers")
    return files


def _is_part(name: str, value: object) -> bool:
    """[library, class], or nulls for a part that is not there."""
    return not name.startswith("_") and isinstance(value, list) and len(_LIST.validate_python(value)) == 2


def _read_library(path: Path, part: str, value: object) -> str | None:
    library, _ = _LIST.validate_python(value)
    if library is not None and not isinstance(library, str):
        raise FolderError(f"{path}: {part} is of {library!r}; allowed: diffusers, transformers, null")
    if not re.fullmatch(r"\w+", part):
        raise FolderError(f"{path}: {part!r} is no name of a part; allowed: letters, digits and underscores")
    return library


def _choose_texts(folder: Folder, part: str) -> dict[str, str]:
    below = (PurePosixPath(name) for name in folder.names if name.startswith(f"{part}/"))
    chosen = [name for name in below if name.suffix in _TEXTS and ".index." not in name.name]
    return {str(name): str(name) for name in chosen}


def _choose_weights(folder: Folder, part: str, library: str) -> dict[str, str]:
    """One file, or an index and its shards; shown without the variant, so that a loader needs no `variant` argument."""
    base, inside = _BASES[library], folder.inside(part)
    if library == "transformers" and _ADAPTER in inside:  # it would name other weights, anywhere
        raise FolderError(
            f"{folder.root / part / _ADAPTER} changes weights as they are loaded; merge it into them, or add it"
            " as a LoRA"
        )
    names = _find_variants(base, inside)
    if not names:
        raise FolderError(_describe_lack(folder, part, base))
    variant = next((variant for variant in _VARIANTS if variant in names), None)
    if variant is None and None not in names:
        if len(names) > 1:
            there = ", ".join(sorted(name for name in names if name))
            raise FolderError(
                f"{folder.root / part} holds weights in the variants {there} and none that is usual; keep one of them"
            )
        variant = next(iter(names))
    files = names[variant]
    # Both are there at times: diffusers then reads the shards, transformers the one file.
    chosen = min(files, key=lambda name: (".index." in name) == (library == "transformers"))
    prefix = f"{part}/" if part else ""
    if ".index." not in chosen:
        return {f"{prefix}{base}.safetensors": f"{prefix}{chosen}"}
    shards = {f"{prefix}{shard}": f"{prefix}{shard}" for shard in _read_shards(folder, f"{prefix}{chosen}")}
    return {f"{prefix}{base}.safetensors.index.json": f"{prefix}{chosen}", **shards}


def _find_variants(base: str, names: list[str]) -> dict[str | None, list[str]]:
    """Weights and indexes by variant, such as `model.fp16.safetensors` and `model.safetensors.index.fp16.json`."""
    variant, shard = r"(?:\.(?P<v>[\w-]+))?", r"-\d{5}-of-\d{5}"
    single = re.compile(rf"{base}{variant}\.safetensors")
    indexes = re.compile(rf"{base}\.safetensors\.index{variant}\.json")
    old = re.compile(rf"{base}\.safetensors{variant}\.index\.json")
    found: dict[str | None, list[str]] = {}
    for name in names:
        match = single.fullmatch(name) or indexes.fullmatch(name) or old.fullmatch(name)
        if match and not re.search(shard, name):
            found.setdefault(match["v"], []).append(name)
    return found


def _read_shards(folder: Folder, index: str) -> list[str]:
    path, part = folder.root / index, PurePosixPath(index).parent
    named = folder.read(index).get("weight_map")
    try:
        shards = sorted(set(TypeAdapter(dict[str, str]).validate_python(named).values()))
    except ValidationError as error:
        raise FolderError(f"{path}: weight_map says for each tensor in which file it is") from error
    for shard in shards:
        if PurePosixPath(shard).name != shard or not shard.endswith(".safetensors"):
            raise FolderError(f"{path} names {shard!r}; allowed: safetensors files beside it")
        if str(part / shard) not in folder.names:
            raise FolderError(f"{path} names {shard}, and there is no such file")
    return shards


def _describe_lack(folder: Folder, part: str, base: str) -> str:
    inside = folder.inside(part)
    where, pickled = folder.root / part, _pick_pickled(inside, part)
    if pickled:
        return (
            f"{where} holds only pickled weights ({', '.join(pickled)}), which would run code when loaded;"
            " only safetensors are"
        )
    there = ", ".join(inside) or "nothing"
    return f"{where} holds no weights: {base}.safetensors is missing, and so are variants of it; there is {there}"


def _hint(folder: Folder) -> str:
    inside = folder.inside("")
    if pickled := _pick_pickled(inside, ""):
        return (
            f"; pickled weights ({', '.join(pickled)}) would run code when loaded, only safetensors are taken"
        )
    if single := [name for name in inside if name.endswith(".safetensors")]:
        return (
            f"; a checkpoint of one file ({single[0]}) has to be saved as a folder first, with diffusers'"
            " from_single_file and save_pretrained"
        )
    return ""


def _pick_pickled(names: list[str], part: str) -> list[str]:
    prefix = f"{part}/" if part else ""
    return [f"{prefix}{name}" for name in names if PurePosixPath(name).suffix.lower() in _PICKLED]
