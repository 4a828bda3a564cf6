"""Layouts of a tiny folder of Stable Diffusion, as people have them; each changes the plain one in place."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

PICKLE = b"\x80\x04cos\nsystem\n."
UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


def save_again(folder: Path, **how: object) -> None:
    """diffusers writes the folder again."""
    pipe = StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None)
    shutil.rmtree(folder)
    pipe.save_pretrained(folder, **how)


def all_in_a_variant(folder: Path) -> None:
    save_again(folder, variant="fp16")
    assert not [path for path in folder.rglob("*.safetensors") if ".fp16." not in path.name]


def in_shards(folder: Path) -> None:
    save_again(folder, max_shard_size="20KB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    assert len(list((folder / "text_encoder").glob("*-of-*.safetensors"))) > 1


def in_shards_of_a_variant(folder: Path) -> None:
    save_again(folder, max_shard_size="20KB", variant="fp16")
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").is_file()


def in_shards_of_a_variant_of_old(folder: Path) -> None:
    """As diffusers named them until 2024."""
    in_shards(folder)
    for part, base in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
        index = folder / part / f"{base}.safetensors.index.json"
        text = index.read_text()
        for shard in set(json.loads(text)["weight_map"].values()):
            named = shard.replace(".safetensors", ".fp16.safetensors")
            (folder / part / shard).rename(folder / part / named)
            text = text.replace(shard, named)
        index.unlink()
        index.with_name(f"{base}.safetensors.fp16.index.json").write_text(text)


def with_one_part_in_a_variant(folder: Path) -> None:
    (folder / UNET).rename((folder / UNET).with_suffix(".non_ema.safetensors"))


def with_variants_beside(folder: Path) -> None:
    """What has no variant is read."""
    for name in ("fp16", "bf16", "non_ema"):
        (folder / UNET).with_suffix(f".{name}.safetensors").write_bytes(b"not read")
    (folder / UNET).with_suffix(".safetensors.index.fp16.json").write_text("{not read")


def with_several_variants(folder: Path) -> None:
    """The more exact one is read."""
    (folder / UNET).rename((folder / UNET).with_suffix(".bf16.safetensors"))
    (folder / UNET).with_suffix(".fp16.safetensors").write_bytes(b"not read")
    (folder / UNET).with_suffix(".ema.safetensors").write_bytes(b"not read")


def with_pickles_beside(folder: Path) -> None:
    for name in ("diffusion_pytorch_model.bin", "diffusion_flax_model.msgpack", "model.onnx", "old.ckpt"):
        (folder / "unet" / name).write_bytes(PICKLE)
    (folder / "text_encoder" / "pytorch_model.bin").write_bytes(PICKLE)
    (folder / "text_encoder" / "pytorch_model.bin.index.json").write_text("{not read")
    (folder / "tiny.ckpt").write_bytes(PICKLE)
    (folder / "tiny.safetensors").write_bytes(b"not read")
    (folder / ".gitattributes").write_text("*.bin filter=lfs")


def with_code_beside(folder: Path) -> None:
    for name in ("pipeline.py", "unet/diffusers.py", "unet/unet.py", "text_encoder/transformers.py"):
        (folder / name).write_text("raise SystemExit('this was run')")
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling.Mine"}
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))


def with_a_safety_checker_of_pickles(folder: Path) -> None:
    """As the first folders of Stable Diffusion 1 state it."""
    tell(
        folder,
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPFeatureExtractor"],
    )
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(PICKLE)


def with_a_safety_checker_that_is_gone(folder: Path) -> None:
    tell(folder, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])


def with_links_to_folders(folder: Path) -> None:
    for part in ("unet", "tokenizer"):
        (folder / part).rename(folder.with_name(part))
        (folder / part).symlink_to(folder.with_name(part), target_is_directory=True)


def as_the_hub_caches_it(folder: Path) -> None:
    """Files are links to blobs, whose names say nothing."""
    blobs = folder.with_name("blobs")
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        path.rename(blobs / f"{number:040x}")
        path.symlink_to(
            Path(*[".."] * len(path.relative_to(folder.parent).parts[:-1])) / f"blobs/{number:040x}"
        )
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(PICKLE)


def with_no_limit_of_the_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["model_max_length"]
    path.write_text(json.dumps(config))


def with_lists_that_are_no_parts(folder: Path) -> None:
    tell(folder, _ignore_files=["one", "two"], _note=["os", "system"])


def tell(folder: Path, **entries: object) -> None:
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | entries))


LAYOUTS: tuple[Callable[[Path], None], ...] = (
    all_in_a_variant,
    in_shards,
    in_shards_of_a_variant,
    in_shards_of_a_variant_of_old,
    with_one_part_in_a_variant,
    with_variants_beside,
    with_several_variants,
    with_pickles_beside,
    with_code_beside,
    with_a_safety_checker_of_pickles,
    with_a_safety_checker_that_is_gone,
    with_links_to_folders,
    as_the_hub_caches_it,
    with_no_limit_of_the_tokenizer,
    with_lists_that_are_no_parts,
)
