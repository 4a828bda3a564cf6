"""`chorale keys`: who may use this service."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from pydantic import Field
from typer import Argument, Option

from api_schemas.addresses import check_redis
from api_schemas.keys import Quota, Scope
from api_schemas.quota_text import read_quota, write_quota
from chorale import installed
from chorale.data_folder import DataFolder
from chorale.errors import NoConnectionError
from chorale.plain_text import show
from chorale.server_options import Data, open_notes
from chorale.tables import lay_keys, print_table
from chorale.typed_options import OptionError, typed

if TYPE_CHECKING:  # it needs what a client alone has not
    from chorale.key_records import KeyRecords

app = typer.Typer(
    help="Make and revoke API keys: of the stack in a data directory, running or not, or of CHORALE_REDIS_URL.",
    no_args_is_help=True,
)
Name = Annotated[str, Argument(metavar="KEY", help="Name, id, or the visible part of the key: chorale_ID.")]
Overlap = Annotated[float, Field(ge=0, le=30 * 86_400, allow_inf_nan=False)]
_ANSWER_S = 10.0
_UNLIMITED = "none"


@app.command()
def create(
    name: Annotated[str, Argument(help="Whose key it is.")],
    scope: Annotated[
        str,
        Option(
            help="create: make and cancel jobs; read: jobs, pictures, events, models;"
            " admin: metrics, and the jobs of all keys."
        ),
    ] = "create,read",
    quota: Annotated[
        str,
        Option(
            help="Limits, as calls=600/min,concurrent=2,queued=100,megapixel_steps=5000/day,store=50GB;"
            f" what is left out is unlimited, as is {_UNLIMITED}."
        ),
    ] = _UNLIMITED,
    data: Data = None,
) -> None:
    """Make a key and print it, this once: only a digest is stored. From then on the service needs keys."""
    scopes, limits = _read_scopes(scope), _read_limits(quota)
    if not name.strip():
        raise OptionError("NAME: a name, such as that of a person or of a program")
    with _open_keys(data) as keys:
        _print_once(keys.create(name.strip(), scopes, limits))


@app.command("list")
def show_keys(data: Data = None) -> None:
    """List all keys, without their secrets."""
    with _open_keys(data) as keys:
        print_table(lay_keys(keys.list_all()))


@app.command()
def revoke(key: Name, data: Data = None) -> None:
    """Refuse a key, its sessions and streams within about a second. Its jobs stay, its webhook goes."""
    with _open_keys(data) as keys:
        revoked = keys.revoke(key)
    print(f"{show(revoked.name)} (chorale_{revoked.id}) is revoked")


@app.command()
def rotate(
    key: Name,
    overlap: Annotated[
        float, typed(Overlap, help="Seconds for which the old secret works too, at most 30 days; 0 ends all.")
    ] = 0,
    data: Data = None,
) -> None:
    """Give a key another secret, and print it, this once. Sessions of the old one end with it."""
    with _open_keys(data) as keys:
        _print_once(keys.rotate(key, overlap))


@app.command("quota")
def change_quota(
    key: Name,
    quota: Annotated[
        str, Option(help="All limits of the key from now on, as of `create`; none is unlimited.")
    ],
    data: Data = None,
) -> None:
    """Give a key another quota, in place of all its limits, within about five seconds."""
    limits = _read_limits(quota)
    with _open_keys(data) as keys:
        changed = keys.limit(key, limits)
    print(f"{show(changed.name)} (chorale_{changed.id}): {write_quota(changed.quota) or 'unlimited'}")


@app.command()
def delete(key: Name, data: Data = None) -> None:
    """Forget a key. After the last one a service that is for this machine alone needs none again."""
    with _open_keys(data) as keys:
        key_id = keys.delete(key)
    print(f"chorale_{key_id} is deleted")


@contextmanager
def _open_keys(data: Path | None) -> Generator["KeyRecords"]:
    if url := os.environ.get("CHORALE_REDIS_URL"):
        installed.require(("redis",), "service")
        with _connect(url) as keys:
            yield keys
        return
    installed.require(installed.STACK, "all")
    from chorale.data_queue import open_data_queue

    with open_data_queue(DataFolder(data)) as url, _connect(url) as keys:
        yield keys


@contextmanager
def _connect(url: str) -> Generator["KeyRecords"]:
    """
    Raises:
        OptionError: this is no address; it may hold a password, and is not told.
        NoConnectionError: no queue server answers there.
    """
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError
    from redis.retry import Retry

    from chorale.key_records import KeyRecords

    try:
        redis = Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            check_redis(url),
            socket_timeout=_ANSWER_S,
            socket_connect_timeout=_ANSWER_S,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise OptionError(f"CHORALE_REDIS_URL: {error}") from error
    try:
        with redis:
            yield KeyRecords(redis)
    except (RedisError, OSError) as error:
        raise NoConnectionError("the queue server", str(error)) from error


def _read_scopes(text: str) -> frozenset[Scope]:
    """
    Raises:
        OptionError: there is no such scope, or none at all.
    """
    words, known = [word.strip() for word in text.split(",")], cast(tuple[Scope, ...], get_args(Scope))
    scopes: frozenset[Scope] = frozenset(scope for scope in known if scope in words)
    unknown = [word for word in words if word not in known]
    if unknown or not scopes:
        raise OptionError(f"--scope {text}: one or several of {', '.join(known)}, with commas between")
    return scopes


def _read_limits(text: str) -> Quota:
    """
    Raises:
        OptionError: a part of it is no limit, or there is none.
    """
    if not text.strip():  # a variable that is not set, say
        raise OptionError(f"--quota: limits, as in calls=600/min,store=50GB, or {_UNLIMITED}")
    try:
        return read_quota("" if text == _UNLIMITED else text)
    except ValueError as error:
        raise OptionError(f"--quota {error}") from error


def _print_once(key: str) -> None:
    """The key alone on standard output, so that a script can take it."""
    open_notes().print("This is the only time the key is shown:", style="dim")
    print(key)
