"""Every refused option is told with its value and what is allowed."""

import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.models import OptionInfo

from api_schemas.errors import FieldError, Problem
from chorale.cli import app
from chorale.errors import InvalidRequestError
from chorale.typed_options import OptionError, naming_options
from tests.chorale.commands import run
from tests.disks import small_disk

NOWHERE = ("--url", "http://127.0.0.1:1")


def list_options(program: typer.Typer = app) -> Iterator[tuple[str, str, type, OptionInfo]]:
    """(command, name, type, how it is read) of all that take numbers or one of some words."""
    for command in program.registered_commands:
        assert command.callback is not None
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            if get_origin(hint) is Annotated and isinstance(hint.__metadata__[0], OptionInfo):
                for kind in strip(hint.__origin__):
                    yield command.callback.__name__, name, kind, hint.__metadata__[0]
    for group in program.registered_groups:
        assert group.typer_instance is not None
        yield from list_options(group.typer_instance)


def strip(kind: Any) -> list[Any]:
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else [kind]
    return [each for each in kinds if each in (int, float) or get_origin(each) is Literal]


def test_every_option_of_limits_names_the_value_and_what_is_allowed() -> None:
    options = list(list_options())
    assert len(options) > 30
    for command, name, _, option in options:
        assert option.parser is not None, f"{name} of {command} says not what is allowed"
        for wrong, told in (("much", "much"), ("", '""'), ("-1e30", "-1e30"), ("nan", "nan")):
            with pytest.raises(typer.BadParameter, match=f"^{told}: [0-9a-z]"):
                option.parser(wrong)


def test_what_is_offered_is_taken() -> None:
    for command, name, kind, option in list_options():
        for word in get_args(kind):
            assert option.parser is not None
            assert option.parser(str(word)) == word, (command, name)


def test_defaults_are_allowed() -> None:
    for command in app.registered_commands:
        for parameter in inspect.signature(command.callback or print).parameters.values():
            for option in getattr(parameter.annotation, "__metadata__", ()):
                parser: Callable[[Any], object] | None = getattr(option, "parser", None)
                if parser is not None and parameter.default not in (None, inspect.Parameter.empty):
                    assert parser(parameter.default) == parameter.default


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--fidelity", "1.1"), "chorale: --fidelity 1.1: a number from 0 to 1"),
        (("--fidelity", "much"), "chorale: --fidelity much: a number from 0 to 1"),
        (("--upscale", "9"), "chorale: --upscale 9: a whole number from 2 to 8"),
        (("--fit", "wide"), "chorale: --fit wide: fill, fit, crop or exact"),
        (("--size", "32x64"), "chorale: --size, width 32: a whole number from 64 to 16384"),
        (("--fidelity", "0.5"), "chorale: --fidelity 0.5: nothing without --upscale: "),
        (
            ("--mask", "0,0,9,9"),
            "chorale: --mask 0,0,9,9: nothing without --source: the picture to begin with",
        ),
        (("--style-prompt", "ink"), "chorale: --style-prompt ink: nothing without --source: "),
        (("--style-image", __file__), f"chorale: --style-image {__file__}: nothing without --source: "),
        (("--source", __file__, "--style-prompt", " "), 'chorale: --style-prompt " ": text that describes'),
        (("--fit", "crop"), "chorale: --fit crop: nothing without --source: "),
        (("--mask", "0,0,0,9"), "chorale: --mask 0,0,0,9: width: a whole number from 1 to "),
        (("--region", f"0,0,9,9:{'x' * 2001}"), "xx: prompt: text of at most 2000 characters"),
        (("--bit-depth", "16", "-o", "x.jpg"), "chorale: --bit-depth 16: 16 is for --output png or tiff"),
        (("--lora", "ash", "--lora", "ink:9"), "chorale: --lora ink:9: weight: a number from -4 to 4"),
        (("--lora", ":1"), "chorale: --lora :1: name: text of 1 to 200 characters"),
        (("--control", "x"), "chorale: --control x: only with --control-image FILE or --source"),
        (("--control-image", __file__), f"chorale: --control-image {__file__}: only with --control NAME"),
        (("--ip-adapter-scale", "1"), "chorale: --ip-adapter-scale 1: only with --ip-adapter NAME"),
        (("--url", "http://127.0.0.1:99999"), "--url 'http://127.0.0.1:99999' is no address of a server"),
        (("--data", ""), 'chorale: --data "": a folder, or where one can be made'),
        (("--data", f"{__file__}/x"), f"chorale: --data {__file__}/x: a folder, or where one can be made"),
        (
            ("--region", "sky.png:x"),
            "chorale: --region sky.png:x, mask sky.png: a file that can be read; No such",
        ),
        (("--size",), "chorale: Option '--size' requires an argument"),
        (("--guidance-interval", "0.2,9"), "chorale: --guidance-interval 0.2,9: a number from 0 to 1"),
        (("--size", "16384", "-o", "x.webp"), 'chorale: --output "webp": png, jpeg or tiff'),
    ],
)
def test_generate_refuses_by_option(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = run("generate", "moss", *NOWHERE, *arguments, folder=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert says in done.stderr


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("pipe", "this is no plain file"),
        ("folder", "this is a folder"),
        ("nothing", "No such file"),
        ("x" * 300, "File name too long"),
    ],
)
@pytest.mark.parametrize(
    ("option", "form"),
    [
        ("--source", "{}"),
        ("--mask", "{}"),
        ("--style-image", "{}"),
        ("--control-image", "{}"),
        ("--ip-adapter-image", "{}"),
        ("--regions", "{}"),
        ("--region", "{}.png:dunes"),
    ],
)
def test_what_is_no_file_is_named_with_its_option(
    option: str, form: str, name: str, fault: str, tmp_path: Path
) -> None:
    """And not read: a pipe that nobody writes to has no end."""
    for suffix in ("", ".png"):
        (tmp_path / f"folder{suffix}").mkdir()
        os.mkfifo(tmp_path / f"pipe{suffix}")
    value = form.format(name)
    done = run("generate", "moss", option, value, *NOWHERE, folder=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith(f"chorale: {option} {value[:200]}")
    assert fault in done.stderr


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        ("folder", "this is a folder"),
        ("pipe", "this is no plain file"),
        ("photo.jpg/x.png", "Not a directory"),
        ("folder/new/" + "x" * 240 + ".png", "File name too long"),
    ],
)
@pytest.mark.parametrize(
    "command", [("generate", "moss"), ("reroll", "0" * 28, "--region", "0,0,9,9"), ("vary", "0" * 28)]
)
def test_where_nothing_can_be_written_nothing_is_asked_for(
    command: tuple[str, ...], output: str, fault: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "photo.jpg").touch()
    os.mkfifo(tmp_path / "pipe")
    done = run(*command, "-o", output, *NOWHERE, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"chorale: --output {Path(output).with_suffix('')}"[:200])
    assert fault in done.stderr
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_folder_that_is_read_only_is_named_before_anything_is_asked_for() -> None:
    with small_disk() as disk, disk.unwritable():
        done = run("generate", "moss", *NOWHERE, folder=disk.folder)
    assert done.returncode == 2
    assert "chorale: --output moss.png: a file in a folder that can be written; " in done.stderr


def test_only_what_begins_with_a_source_goes_without_a_prompt(tmp_path: Path) -> None:
    for words, told in (((), "prompt"), (("",), 'prompt ""'), (("  ",), 'prompt "  "')):
        alone = run("generate", *words, *NOWHERE, folder=tmp_path)
        assert alone.returncode == 2
        assert f"chorale: {told}: missing; only with --source" in alone.stderr
    (tmp_path / "photo.jpg").touch()
    begun = run("generate", "--source", "photo.jpg", "--upscale", "2", *NOWHERE, folder=tmp_path)
    assert "no answer from" in begun.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "chorale: --left 0: above 0, here or in --right, --top, --bottom"),
        (
            ("--left", "16385"),
            "chorale: --left 16385: a whole number from 0 to 16384",
        ),
    ],
)
def test_extend_refuses_by_option(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = run("extend", "0" * 28, "-o", "x.png", *arguments, *NOWHERE, folder=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr


GIVEN = {
    "mask_image": Path("black.png"),
    "mask": "6,6,9,9",
    "regions.1": "--region 0,0,9,9:dunes",
    "region": "0,0,0,0",
    "style.style_image": Path("ink.png"),
}


@pytest.mark.parametrize(
    ("field", "value", "allowed", "says"),
    [
        ("mask_image", "a picture", "white somewhere", "--mask black.png: white somewhere"),
        ("left_px", "9", "at most 8", "--left 9: at most 8"),
        ("advanced.stages.0.steps", "1", "at least 2", "advanced.stages.0.steps 1: at least 2"),
        ("mask.rectangle", '{"left_px":6}', "within", "--mask 6,6,9,9: within"),
        ("mask.polygon.2", "[6, 6]", "within", "--mask 6,6,9,9: within"),
        ("regions.1.shape.rectangle", '{"left_px":0}', "within", "--region 0,0,9,9:dunes: within"),
        ("regions.1.prompt", '"dunes"', "short", "--region 0,0,9,9:dunes: prompt: short"),
        ("regions.0.prompt", '"of a file"', "short", 'regions.0.prompt "of a file": short'),
        ("region.rectangle.height_px", "0", "above 0", "--region 0,0,0,0: height: above 0"),
        ("region.feather_px", "-1", "above 0", "--feather -1: above 0"),
        ("finish_within_s", "3", "`start_within_s`", "--finish-within 3: --start-within"),
        ("style.style_image", "true", "`style.prompt`", "--style-image ink.png: --style-prompt"),
        ("width_px", "9", "nothing beside `upscale`", "--size, width 9: nothing beside --upscale"),
    ],
)
def test_what_the_server_refuses_is_told_by_option_as_typed(
    field: str, value: str, allowed: str, says: str
) -> None:
    error = FieldError(field=field, value=value, allowed=allowed)
    errors = [error, error]  # two fields of one text may be told in the same words
    problem = Problem(title="", status=422, detail="", code="invalid_request", errors=errors, request_id="-")
    with pytest.raises(OptionError) as refused, naming_options(GIVEN):
        raise InvalidRequestError(problem)
    assert str(refused.value) == says
