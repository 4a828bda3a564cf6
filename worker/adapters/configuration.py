"""Fields of a folder's configurations of which no picture can be made, or not the one that was meant.

diffusers fails on most of it in the middle of a picture; here it is refused when the folder is loaded. All that
is not named here is honoured, changes nothing, or shows itself in the first small picture that a worker makes:
tests/conformance holds every field to that.
"""

from collections.abc import Iterator
from math import prod

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from api_schemas.model_files import UPSCALER
from worker.adapters.errors import ModelFolderError
from worker.adapters.rules import (
    Configs,
    Rule,
    are_numbers,
    are_sizes,
    as_many,
    count_entries,
    divisor,
    is_size,
    list_entries,
    number,
    one_of,
    size,
    to_int,
)


def check_configuration(pipe: DiffusionPipeline) -> None:
    """Refuse a loaded pipeline of which no picture can be made, or another than was meant.

    Raises:
        ModelFolderError: names the first field that cannot be honoured, its value and what is allowed.
    """
    configs: Configs = {
        name: part.config for name, part in pipe.components.items() if hasattr(part, "config")
    }
    for rule in _find_rules(pipe, configs):
        config = configs[rule.part]
        if rule.field in config and not rule.fits(config[rule.field], configs):
            raise ModelFolderError(rule.explain(configs))


def _find_rules(pipe: DiffusionPipeline, configs: Configs) -> Iterator[Rule]:
    kind = next(each.__name__ for each in type(pipe).__mro__ if each.__name__ in _RULES)
    allowed, rules = _RULES[kind]
    found = type(pipe.components["vae"]).__name__
    if found not in allowed:
        raise ModelFolderError(f"vae is of class {found}; allowed for a {kind}: {', '.join(allowed)}")
    yield from _OF_AUTOENCODERS[found]
    yield from rules
    if UPSCALER in configs:
        yield from _OF_UPSCALERS


def _unet_size(part: str = "unet") -> Rule:
    """diffusers takes it as a number or as (height, width), and uses it nowhere else."""
    return Rule(
        part, "sample_size", "a whole number from 1, two of them, or null",
        lambda value, _: value is None or is_size(value) or are_sizes(value, 2),
    )  # fmt: skip


def _as_in_unet(field: str) -> Rule:
    """A cascade's later stages read the same text, and make the same latent."""
    return Rule(
        UPSCALER, field, lambda configs: f"{configs['unet'][field]!r}, as {field} of unet/config.json",
        lambda value, configs: value == configs["unet"][field],
    )  # fmt: skip


def _levels(field: str, channels: str) -> Rule:
    return Rule(
        "vae", field, lambda configs: f"{configs['vae'][channels]} numbers, as {channels} says",
        lambda value, configs: are_numbers(value, configs["vae"][channels]),
    )  # fmt: skip


def _both_levels_or_none(field: str) -> Rule:
    def fits(value: object, configs: Configs) -> bool:
        levels = [configs["vae"].get(name) for name in ("latents_mean", "latents_std")]
        return None in levels or are_numbers(value, configs["vae"]["latent_channels"])

    return Rule("vae", field, lambda configs: f"{configs['vae']['latent_channels']} numbers, or null", fits)


def _channels(part: str, *, packed: int = 1, of: str = "latent_channels") -> Rule:
    """Models that take more than a latent have pipelines of their own."""
    counted = f"as {of} of vae/config.json" + (f" times {packed}, a token's pixels" if packed > 1 else "")
    return Rule(
        part, "in_channels", lambda configs: f"{to_int(configs['vae'][of]) * packed}, {counted}",
        lambda value, configs: value == to_int(configs["vae"][of]) * packed,
    )  # fmt: skip


def _out_channels(part: str, *times: int) -> Rule:
    """The second half of a prediction is its variance, which no step needs."""

    def count(configs: Configs) -> list[int]:
        return [to_int(configs[part]["in_channels"]) * each for each in times]

    return Rule(
        part, "out_channels", lambda configs: " or ".join(map(str, count(configs))) + ", as in_channels has it",
        lambda value, configs: value is None or value in count(configs),
    )  # fmt: skip


_COLOURS = 3
_OF_AUTOENCODERS: dict[str, tuple[Rule, ...]] = {
    "AutoencoderKL": (
        one_of("vae", "in_channels", _COLOURS),
        one_of("vae", "out_channels", _COLOURS),
        as_many("vae", "up_block_types", "block_out_channels"),
        as_many("vae", "down_block_types", "block_out_channels"),
    ),
    "AutoencoderKLFlux2": (
        one_of("vae", "in_channels", _COLOURS),
        one_of("vae", "out_channels", _COLOURS),
        as_many("vae", "up_block_types", "block_out_channels"),
        as_many("vae", "down_block_types", "block_out_channels"),
        Rule(
            "vae", "decoder_block_out_channels", "null, or as many entries as block_out_channels has",
            lambda value, configs: value is None or count_entries(value) == count_entries(configs["vae"]["block_out_channels"]),
        ),
        Rule("vae", "patch_size", "of 4 pixels in all", lambda value, _: prod(list_entries(value)) == 4),
    ),
    "AutoencoderKLQwenImage": (
        one_of("vae", "input_channels", _COLOURS),
        as_many("vae", "dim_mult", "temperal_downsample", more=1),
        _levels("latents_mean", "z_dim"),
        _levels("latents_std", "z_dim"),
    ),
    "AutoencoderDC": (
        one_of("vae", "in_channels", _COLOURS),
        as_many("vae", "encoder_block_out_channels", "decoder_block_out_channels"),
        divisor("vae", "scaling_factor"),
    ),
    "AutoencoderTiny": (
        one_of("vae", "in_channels", _COLOURS),
        one_of("vae", "out_channels", _COLOURS),
        one_of("vae", "upsampling_scaling_factor", 2),
        Rule("vae", "encoder_block_out_channels", "entries that are all alike", lambda value, _: len({*list_entries(value)}) == 1),
        as_many("vae", "encoder_block_out_channels", "decoder_block_out_channels"),
        divisor("vae", "scaling_factor"),
    ),
}  # fmt: skip

_SEEN = Rule(
    "unet", "in_channels",
    lambda configs: " or ".join(map(str, _count_seen(configs)))
    + ", for latent_channels of vae/config.json alone, or for a mask and as many again, too",
    lambda value, configs: value in _count_seen(configs),
)  # fmt: skip


def _count_seen(configs: Configs) -> tuple[int, int]:
    """By a plain UNet, and by one that sees masks."""
    channels = to_int(configs["vae"]["latent_channels"])
    return channels, 2 * channels + 1


_UNET = (
    _unet_size(),
    one_of("unet", "class_embed_type", None),
    one_of("unet", "num_class_embeds", None),
    one_of("unet", "encoder_hid_dim_type", None, "text_proj"),
)
_SD = (*_UNET, one_of("unet", "addition_embed_type", None, "text"), divisor("vae", "scaling_factor"))
_SDXL = (
    *_UNET,
    one_of("unet", "addition_embed_type", "text_time"),
    divisor("vae", "scaling_factor"),
    _both_levels_or_none("latents_mean"),
    _both_levels_or_none("latents_std"),
)
_OF_UPSCALERS = (
    Rule(
        UPSCALER, "in_channels",
        lambda configs: f"{to_int(configs['vae']['latent_channels']) * 2}, twice latent_channels of vae/config.json",
        lambda value, configs: value == to_int(configs["vae"]["latent_channels"]) * 2,
    ),
    _as_in_unet("out_channels"),
    _as_in_unet("cross_attention_dim"),
    _unet_size(UPSCALER),
    Rule(
        UPSCALER, "block_out_channels", "no more entries than block_out_channels of unet/config.json has",
        lambda value, configs: 1 <= count_entries(value) <= count_entries(configs["unet"]["block_out_channels"]),
    ),
    *(
        one_of(UPSCALER, field, None)
        for field in (
            "class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "addition_embed_type", "time_cond_proj_dim",
        )
    ),
)  # fmt: skip
_SHIFTED = (divisor("vae", "scaling_factor"), number("vae", "shift_factor"))
_FLUX_2 = (
    _channels("transformer", packed=4),
    _out_channels("transformer", 1),
    one_of("transformer", "patch_size", 1),
)
_TEXT_TOKENS = 512  # that Z-Image's pipeline reads; the picture has the place behind them

_KL = ("AutoencoderKL", "AutoencoderTiny")
_RULES: dict[str, tuple[tuple[str, ...], tuple[Rule, ...]]] = {
    "StableDiffusionPipeline": (
        _KL, (_channels("unet"), *_SD),
    ),
    "InpaintingPipeline": (_KL, (_SEEN, *_SD)),
    "StableDiffusionXLPipeline": (
        _KL, (_channels("unet"), *_SDXL),
    ),
    "InpaintingXLPipeline": (_KL, (_SEEN, *_SDXL)),
    "StableDiffusion3Pipeline": (
        _KL, (
            _channels("transformer"),
            _out_channels("transformer", 1),
            *(size("transformer", field) for field in ("sample_size", "patch_size", "pos_embed_max_size")),
            *_SHIFTED,
        ),
    ),
    "FluxPipeline": (
        _KL, (
            _channels("transformer", packed=4),
            _out_channels("transformer", 1),
            one_of("transformer", "patch_size", 1),
            *_SHIFTED,
        ),
    ),
    "Flux2Pipeline": (("AutoencoderKLFlux2",), _FLUX_2),
    "Flux2KleinPipeline": (("AutoencoderKLFlux2",), _FLUX_2),
    "PixArtSigmaPipeline": (
        _KL, (
            _channels("transformer"),
            _out_channels("transformer", 1, 2),
            *(size("transformer", field) for field in ("sample_size", "patch_size")),
            Rule(
                "transformer", "use_additional_conditions", "false, or null where sample_size is not 128",
                lambda value, configs: not value and (value, configs["transformer"]["sample_size"]) != (None, 128),
            ),
            divisor("vae", "scaling_factor"),
        ),
    ),
    "SanaPipeline": (
        ("AutoencoderDC", "AutoencoderTiny"), (
            _channels("transformer"),
            _out_channels("transformer", 1, 2),
            *(size("transformer", field) for field in ("sample_size", "patch_size")),
            number("transformer", "timestep_scale"),
            one_of("transformer", "guidance_embeds", False),
        ),
    ),
    "QwenImagePipeline": (
        ("AutoencoderKLQwenImage",), (
            _channels("transformer", packed=4, of="z_dim"),
            one_of("transformer", "patch_size", 2),
            Rule(
                "transformer", "out_channels", "a quarter of in_channels",
                lambda value, configs: to_int(value) * 4 == configs["transformer"]["in_channels"],
            ),
            one_of("transformer", "guidance_embeds", False),
            one_of("transformer", "use_additional_t_cond", False),
        ),
    ),
    "ZImagePipeline": (
        _KL, (
            _channels("transformer"),
            Rule("transformer", "all_patch_size", "a list with 2", lambda value, _: 2 in list_entries(value)),
            Rule("transformer", "all_f_patch_size", "a list with 1", lambda value, _: 1 in list_entries(value)),
            Rule(
                "transformer", "axes_lens", f"three numbers, of which the first is at least {_TEXT_TOKENS + 2}",
                lambda value, _: are_sizes(value, 3) and list_entries(value)[0] >= _TEXT_TOKENS + 2,
            ),
            *_SHIFTED,
        ),
    ),
}  # fmt: skip
