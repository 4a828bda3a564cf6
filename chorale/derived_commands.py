"""`chorale reroll`, `extend` and `vary`: what can be made of a finished job."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from typer import Argument, Option

from api_schemas.derived import MAX_VARIATIONS, ExtendRequest, RerollRequest, VariationsRequest
from api_schemas.refused_values import list_refused
from api_schemas.source import SourceMask
from chorale.client import Client
from chorale.file_options import require_place
from chorale.follow import follow_job
from chorale.picture_options import FinishWithin, PriorityLevel, Seed, StartWithin, name_urgency
from chorale.region_options import parse_shape
from chorale.server_options import Data, Key, Url, find_server, once_served, telling_what_is_kept
from chorale.typed_options import Given, OptionError, field_of, naming_options, tell_options, typed

Asked = TypeVar("Asked", bound=BaseModel)
JobId = Annotated[str, Argument(metavar="ID", help="A job that has succeeded.")]
Prompt = Annotated[str | None, Option(help="Prompt of what is new.", show_default="the job's")]
Output = Annotated[Path, Option("-o", "--output", help="File to write.")]
Side = Annotated[int, typed(field_of(ExtendRequest, "left_px"), help="Pixels.")]


def add_to(app: typer.Typer) -> None:
    for command in (reroll, extend, vary):
        app.command()(command)


def reroll(
    job_id: JobId,
    output: Output,
    region: Annotated[str, Option(metavar="SHAPE", help="LEFT,TOP,WIDTH,HEIGHT or 'X,Y X,Y X,Y', pixels.")],
    prompt: Prompt = None,
    seed: Seed = None,
    strength: Annotated[
        float,
        typed(field_of(RerollRequest, "strength"), help="Below 1, the part begins with what it was."),
    ] = 1.0,
    feather: Annotated[
        int, typed(field_of(SourceMask, "feather_px"), help="Softness of the border, inwards, pixels.")
    ] = 32,
    priority: PriorityLevel = None,
    start_within: StartWithin = None,
    finish_within: FinishWithin = None,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """Inpaint a part of a job's picture; every pixel outside of it stays."""
    require_place(output)
    shape = parse_shape(region)
    if shape is None:
        raise OptionError(f"--region {region}: LEFT,TOP,WIDTH,HEIGHT or 'X,Y X,Y X,Y'")
    fields = {"region": shape | {"feather_px": feather}, "prompt": prompt, "seed": seed, "strength": strength}
    given = {"region": region}
    asked = _read(RerollRequest, fields | name_urgency(priority, start_within, finish_within), given)
    with Client(find_server(url, data), api_key=key) as client:
        with naming_options(given):
            job = once_served(lambda: client.reroll(job_id, asked))
        with telling_what_is_kept(client, job):
            follow_job(client, job, output)


def extend(
    job_id: JobId,
    output: Output,
    left: Side = 0,
    right: Side = 0,
    top: Side = 0,
    bottom: Side = 0,
    prompt: Prompt = None,
    seed: Seed = None,
    feather: Annotated[
        int,
        typed(
            field_of(ExtendRequest, "feather_px"), help="How far what is new fades into the picture, pixels."
        ),
    ] = 0,
    priority: PriorityLevel = None,
    start_within: StartWithin = None,
    finish_within: FinishWithin = None,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """Make more picture around a job's, whose own pixels stay."""
    require_place(output)
    sides = {"left_px": left, "right_px": right, "top_px": top, "bottom_px": bottom}
    fields = sides | {"prompt": prompt, "seed": seed, "feather_px": feather}
    asked = _read(ExtendRequest, fields | name_urgency(priority, start_within, finish_within))
    with Client(find_server(url, data), api_key=key) as client:
        with naming_options():
            job = once_served(lambda: client.extend(job_id, asked))
        with telling_what_is_kept(client, job):
            follow_job(client, job, output)


def vary(
    job_id: JobId,
    output: Annotated[Path, Option("-o", "--output", help="File to write; several get a number.")],
    count: Annotated[
        int, typed(field_of(VariationsRequest, "count"), help=f"Pictures, at most {MAX_VARIATIONS}.")
    ] = 4,
    amount: Annotated[
        float,
        typed(field_of(VariationsRequest, "amount"), help="How far from the job's own noise, up to 1."),
    ] = 0.2,
    priority: PriorityLevel = None,
    start_within: StartWithin = None,
    finish_within: FinishWithin = None,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """Make pictures from noise beside a job's own."""
    paths = [require_place(output)]
    if count > 1:
        paths = [require_place(output.with_stem(f"{output.stem}-{number + 1}")) for number in range(count)]
    fields = {"count": count, "amount": amount} | name_urgency(priority, start_within, finish_within)
    asked = _read(VariationsRequest, fields)
    with Client(find_server(url, data), api_key=key) as client:
        with naming_options():
            made = once_served(lambda: client.vary(job_id, asked))
        for job, path in zip(made.data, paths, strict=False):
            with telling_what_is_kept(client, job):
                follow_job(client, job, path)


def _read(kind: type[Asked], fields: Mapping[str, object], given: Given | None = None) -> Asked:
    """
    Raises:
        OptionError: a value is out of its limits.
    """
    try:
        return kind.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise OptionError(tell_options(list_refused(error, kind), given)) from error
