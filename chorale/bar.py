"""One progress bar for one job."""

import time
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from api_schemas.events import JobWarned
from chorale.plain_text import show
from chorale.progress import JobProgress
from chorale.protocol import Preview, Update


def show_progress(console: Console, updates: Iterable[Update | Preview]) -> None:
    """Draw a bar until the job has ended."""
    progress, state = _make_bar(console), JobProgress()
    with progress:
        task = progress.add_task(state.label, total=None, counts="", ends_at=None)
        for update in updates:
            if isinstance(update, Preview):
                state.glimpse(update.event.data)
            else:
                state.apply(update)
                ends_at = None if state.eta_s is None else _time_of(update) + state.eta_s
                progress.update(task, ends_at=ends_at)
            if isinstance(update, JobWarned):
                console.print(show(update.data.message), style="yellow", highlight=False, markup=False)
            progress.update(
                task,
                description=state.label,
                total=1.0 if state.fraction else None,
                completed=state.fraction,
                counts=_counts(state),
            )


def _time_of(update: Update) -> float:
    """Time of an event; a snapshot is the state of now."""
    return time.time() if update.type == "snapshot" else update.ts


class _TimeLeft(ProgressColumn):
    """Counts down between events."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        ends_at: float | None = task.fields["ends_at"]
        if ends_at is None:
            return Text("")
        seconds = max(0, round(ends_at - time.time()))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return Text(f"{clock} left", style="dim")


def _make_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<11}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[counts]}", style="dim"),
        _TimeLeft(),
        console=console,
        expand=True,
    )


def _counts(state: JobProgress) -> str:
    if not state.steps:
        return ""
    begun = f" and {state.within_step:.0%} of the next" if state.within_step else ""
    return f"step {state.step}/{state.steps}{begun}  tile {state.tiles}/{state.tiles_expected}"
