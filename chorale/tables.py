"""Jobs and models as tables."""

import sys
import time
from collections.abc import Iterable

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from api_schemas.allow_list import AllowList
from api_schemas.answers import JobView
from api_schemas.catalog import ModelCard
from api_schemas.keys import ApiKey
from api_schemas.quota_text import write_quota
from chorale.plain_text import show

_STYLES = {"succeeded": "green", "failed": "red", "processing": "cyan", "canceled": "dim", "expired": "dim"}
_PROMPT_LENGTH = 48
_WHOLE_LINES = 100_000


def print_table(table: Table) -> None:
    """As wide as the terminal; into a file or another program, with whole lines."""
    Console(width=None if sys.stdout.isatty() else _WHOLE_LINES).print(table)


def lay_jobs(jobs: Iterable[JobView]) -> Table:
    """One line a job."""
    whole = [Column(name, no_wrap=True, min_width=length) for name, length in (("job", 28), ("seed", 16))]
    table = Table(
        whole[0], "status", "size", "steps", whole[1], "when", "prompt", box=None, header_style="dim"
    )
    for job in jobs:
        request = job.request
        table.add_row(
            Text(show(job.id)),
            Text(_status(job), style=_STYLES.get(job.status, "")),
            f"{request.width_px}x{request.height_px}",
            str(request.steps),
            str(request.seed),
            _ago(time.time() - job.created_at),
            Text(show(_shorten(request.prompt))),
        )
    return table


def lay_models(models: Iterable[ModelCard]) -> Table:
    """One line a model."""
    table = Table(
        "model", "family", "native", "sides", "steps", "add-ons", "about", box=None, header_style="dim"
    )
    for card in models:
        table.add_row(
            Text(show(f"{card.name} (default)" if card.is_default else card.name)),
            Text(show(card.family)),
            f"{card.native_size_px} px",
            f"{card.min_side_px} to {card.max_side_px} px, seamless by {card.alignment_px}",
            f"{card.default_steps} (up to {card.max_steps})",
            Text(show(", ".join((*card.loras, *card.controlnets, *card.ip_adapters)))),
            Text(show(card.description)),
        )
    return table


def lay_allowed(allow_list: AllowList) -> Table:
    """One line an entry of the operator's list."""
    table = Table("name", "kind", "for", "files", "path", box=None, header_style="dim")
    for name, entry in sorted(allow_list.models.items()):
        table.add_row(
            Text(show(name)),
            f"{entry.kind} ({entry.control})" if entry.control else entry.kind,
            Text(show(entry.base or "")),
            str(len(entry.files)),
            Text(show(str(entry.path))),
        )
    return table


def lay_keys(keys: Iterable[ApiKey]) -> Table:
    """One line a key."""
    whole = Column("key", no_wrap=True, min_width=20)
    table = Table(whole, "name", "scopes", "quota", "made", "revoked", box=None, header_style="dim")
    now = time.time()
    for key in keys:
        table.add_row(
            f"chorale_{key.id}",
            Text(show(key.name)),
            ", ".join(sorted(key.scopes)),
            write_quota(key.quota).replace(",", ", "),
            _ago(now - key.created_at),
            "" if key.revoked_at is None else _ago(now - key.revoked_at),
        )
    return table


def _status(job: JobView) -> str:
    if job.status == "queued" and job.queue_position is not None:
        return f"queued, {job.queue_position} before"
    if job.status == "processing" and job.progress is not None:
        return f"{job.progress.phase} {job.progress.done}/{job.progress.total}"
    return job.status


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def _shorten(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= _PROMPT_LENGTH else line[: _PROMPT_LENGTH - 3] + "..."
