"""Memory settings of a folder's `chorale.json`: eight-bit weights, or weights offloaded to main memory.

    .venv/bin/python -m benchmarks.placements
    .venv/bin/python -m benchmarks.placements --tiny    # does it run? on a CPU, where nothing is offloaded

An SDXL-size folder with random weights is loaded each way as a worker loads it; then 1024², 10 steps, guidance on.
"""

import argparse
import gc
import tempfile
import traceback
from pathlib import Path

import torch

from api_schemas.folder_settings import FolderSettings
from benchmarks.bench import Bench
from benchmarks.gpu import measure_picture
from benchmarks.random_models import WordlessXLPipeline, build_sdxl, wrap_sdxl
from worker.adapters.loading import load_pipeline
from worker.engine.ranks import SingleRank

WAYS = (
    FolderSettings(),
    FolderSettings(quantization="float8"),
    FolderSettings(quantization="int8"),
    FolderSettings(quantization="float8_products"),
    FolderSettings(offload="model"),
    FolderSettings(offload="group"),
    FolderSettings(offload="sequential"),
)
WORDLESS = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))


def main() -> None:
    options = parse()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_sdxl(device, tiny=options.tiny).save_pretrained(folder)  # pyright: ignore[reportUnknownMemberType]
        for way in WAYS if device.type == "cuda" else (way for way in WAYS if way.offload == "none"):
            free(device)
            try:
                measure(folder, way, device, options)
            except Exception:  # one that fails must not take the others' time
                print(f"{describe(way)}: {traceback.format_exc(limit=-3)}", flush=True)


def measure(folder: Path, way: FolderSettings, device: torch.device, options: argparse.Namespace) -> None:
    (folder / "chorale.json").write_text(way.model_dump_json(exclude_defaults=True))
    pipe = load_pipeline(WordlessXLPipeline, folder, device, **WORDLESS)
    print(describe(way), flush=True)
    bench = Bench(pipe, wrap_sdxl(pipe, way), device, SingleRank(), options)
    measure_picture(bench, 1024, "flat", 10)


def describe(way: FolderSettings) -> str:
    return f"weights: {way.model_dump(exclude_defaults=True) or 'on the device as they are'}"


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true")
    usual = {"modules": None, "attention": "default", "decode_gib": 9}
    parser.set_defaults(**usual)
    return parser.parse_args()


if __name__ == "__main__":
    main()
