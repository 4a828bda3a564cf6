"""LoRA files in every layout that people bring, and what they do to a model: its weights changed by hand."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """W + alpha / rank * up @ down.

    Args:
        name: in the pipeline's part, as its own modules are called.
        magnitude: of DoRA, (out,).
    """

    part: str
    name: str
    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None
    bias: Tensor | None = None

    @property
    def scale(self) -> float:
        return self.alpha / self.down.shape[0]

    @property
    def known_as(self) -> str:
        """As files call it: CLIP's layers have always lain in `text_model`."""
        is_inner = self.part != "text_encoder" or self.name.startswith("text_model.")
        return self.name if is_inner else f"text_model.{self.name}"

    @property
    def flat(self) -> str:
        return self.known_as.replace(".", "_")

    @property
    def wide_magnitude(self) -> Tensor:
        """(out, 1) or (out, 1, 1, 1)."""
        assert self.magnitude is not None
        return self.magnitude.reshape(-1, *[1] * (self.down.ndim - 1))


def draw(pipe: DiffusionPipeline, names: Sequence[str], kind: str = "plain", seed: int = 3) -> list[Layer]:
    """Layers of many ranks and alphas.

    Args:
        names: part and layer, as `unet.conv_in`.
        kind: plain, dora, mixed (every other is dora), or bias.
    """
    generator = torch.Generator().manual_seed(seed)
    return [_draw(pipe, *name.split(".", 1), index, kind, generator) for index, name in enumerate(names)]


def _draw(
    pipe: DiffusionPipeline, part: str, name: str, index: int, kind: str, generator: torch.Generator
) -> Layer:
    weight = getattr(pipe, part).get_submodule(name).weight
    (out, *inner), rank, ones = weight.shape, 2 + index % 3, [1] * (weight.ndim - 2)
    down, up = (
        torch.randn(shape, generator=generator) * 0.2 for shape in ([rank, *inner], [out, rank, *ones])
    )
    norm = weight.detach().flatten(1).norm(dim=1)
    is_dora = kind == "dora" or (kind == "mixed" and index % 2 == 0)
    magnitude = norm * (0.7 + 0.6 * torch.rand(out, generator=generator)) if is_dora else None
    bias = torch.randn(out, generator=generator) * 0.2 if kind == "bias" and index % 2 == 0 else None
    return Layer(part, name, down, up, (1.0, 4.0, 0.5)[index % 3], magnitude, bias)


def change(layer: Layer, weight: Tensor, strength: float) -> Tensor:
    """Hu et al. 2021, section 4.1, and Liu et al. 2024, equation 5, whose norm is of each output's weights."""
    change = torch.einsum("or,ri->oi", layer.up.flatten(1), layer.down.flatten(1)).reshape(weight.shape)
    changed = weight + strength * layer.scale * change
    if layer.magnitude is None:
        return changed
    norm = changed.flatten(1).norm(dim=1)
    return changed * (layer.magnitude / norm).reshape(-1, *[1] * (weight.ndim - 1))


@contextmanager
def changed(pipe: DiffusionPipeline, layers: Sequence[Layer], strength: float = 1.0) -> Iterator[None]:
    """The pipeline with its own weights changed; they are put back afterwards."""
    modules = [getattr(pipe, layer.part).get_submodule(layer.name) for layer in layers]
    before = [(module.weight, module.bias) for module in modules]
    for module, layer in zip(modules, layers, strict=True):
        module.weight = nn.Parameter(change(layer, module.weight.detach(), strength))
        if layer.bias is not None:
            own = 0 if module.bias is None else module.bias.detach()
            module.bias = nn.Parameter(own + strength * layer.scale * layer.bias)
    yield
    for module, (weight, bias) in zip(reversed(modules), reversed(before), strict=True):
        module.weight, module.bias = weight, bias


def with_scale_inside(layer: Layer) -> Layer:
    """For layouts that have no word for alpha."""
    return replace(layer, up=layer.up * layer.scale, alpha=float(len(layer.down)))


@dataclass(frozen=True)
class Layout:
    """How a file is written.

    Args:
        write: one layer's tensors.
        has_alpha: whether the layout can say it; else it is multiplied in.
        config: what peft writes beside the file, or diffusers into its header.
    """

    write: Callable[[Layer], Tensors]
    has_alpha: bool = True
    config: str = ""
    takes: Callable[[Layer], bool] = lambda layer: True


def write(folder: Path, layout: Layout, layers: Sequence[Layer]) -> Path:
    """Answers what is to be loaded."""
    folder.mkdir(parents=True)
    chosen = layers if layout.has_alpha else [with_scale_inside(layer) for layer in layers]
    tensors = {key: tensor.contiguous() for layer in chosen for key, tensor in layout.write(layer).items()}
    header = None
    if layout.config == "header":
        header = {"lora_adapter_metadata": json.dumps(_describe_parts(layers))}
    if layout.config == "peft":
        config = {"peft_type": "LORA", "base_model_name_or_path": "tiny", **_describe(layers)}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors", header)
    return folder


def _describe_parts(layers: Sequence[Layer]) -> dict[str, object]:
    parts = {layer.part: [each for each in layers if each.part == layer.part] for layer in layers}
    return {f"{part}.{key}": value for part, own in parts.items() for key, value in _describe(own).items()}


def _describe(layers: Sequence[Layer]) -> dict[str, object]:
    return {
        "r": 2,
        "lora_alpha": 1.0,
        "rank_pattern": {layer.name: len(layer.down) for layer in layers if len(layer.down) != 2},
        "alpha_pattern": {f"^{re.escape(layer.name)}": layer.alpha for layer in layers if layer.alpha != 1.0},
        "target_modules": [layer.name for layer in layers],
    }


def peft(prefix: str = "", adapter: str = "", part: bool = True) -> Callable[[Layer], Tensors]:
    """peft's names, which diffusers has taken over."""

    def write(layer: Layer) -> Tensors:
        name = prefix + (f"{layer.part}." if part else "") + layer.known_as
        tensors = {f"{name}.lora_A{adapter}.weight": layer.down, f"{name}.lora_B{adapter}.weight": layer.up}
        if layer.magnitude is not None:
            wide = layer.wide_magnitude.transpose(0, 1) if layer.down.ndim == 4 else layer.magnitude
            tensors[f"{name}.lora_magnitude_vector{adapter}"] = wide
        return tensors | ({f"{name}.lora_B{adapter}.bias": layer.bias} if layer.bias is not None else {})

    return write


def dotted(
    prefix: str, down: str, up: str, alpha: bool = True, part: bool = False
) -> Callable[[Layer], Tensors]:
    def write(layer: Layer) -> Tensors:
        name = prefix + (f"{layer.part}." if part else "") + layer.known_as
        tensors = {f"{name}.{down}.weight": layer.down, f"{name}.{up}.weight": layer.up}
        return tensors | ({f"{name}.alpha": torch.tensor(layer.alpha)} if alpha else {})

    return write


def old_diffusers(layer: Layer) -> Tensors:
    """As train_text_to_image_lora.py wrote them, from attention processors on."""
    kind = "lora" if layer.part == "unet" else "lora_linear_layer"
    name = f"{layer.part}.{layer.known_as}.{kind}"
    return {f"{name}.down.weight": layer.down, f"{name}.up.weight": layer.up}


def processors(prefix: str) -> Callable[[Layer], Tensors]:
    def write(layer: Layer) -> Tensors:
        name = re.sub(r"\.to_(q|k|v|out)(\.0)?$", r".processor.to_\1_lora", layer.name)
        return {f"{prefix}{name}.down.weight": layer.down, f"{prefix}{name}.up.weight": layer.up}

    return write


def kohya(prefixes: dict[str, str], rename: Callable[[str], str] = str) -> Callable[[Layer], Tensors]:
    """As sd-scripts and LyCORIS write them."""

    def write(layer: Layer) -> Tensors:
        name = prefixes[layer.part] + rename(layer.flat)
        tensors = {
            f"{name}.lora_down.weight": layer.down,
            f"{name}.lora_up.weight": layer.up,
            f"{name}.alpha": torch.tensor(layer.alpha),
        }
        return tensors | ({f"{name}.dora_scale": layer.wide_magnitude} if layer.magnitude is not None else {})

    return write
