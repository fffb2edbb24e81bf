"""How far a simulation is, on the error stream: a live line in a terminal, elsewhere a plain line now and then."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from shotnoise.show.words import about, number
from shotnoise.simulate import Status

PLAIN_EVERY = 30.0  # seconds between lines where none can be overwritten, as in the log of a batch job
SPEED_OVER = 60.0  # seconds over which the speed is a mean


@contextmanager
def ensemble_progress(console: Console) -> Iterator[Callable[[Status], None]]:
    """Hand what it gives to `shotnoise.simulate` as `progress`.

    >>> with ensemble_progress(Console(quiet=True)) as report:
    ...     report(Status(runs=10, all_runs=40, updates=1000, all_updates=4000, seconds=1.0, loss=0.5))
    """
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    live = console.is_terminal
    with Progress(*columns, console=console, speed_estimate_period=SPEED_OVER, disable=not live) as bars:
        display = _Display(console, bars)
        yield display
        if not live:
            display.line()


class _Display:
    def __init__(self, console: Console, bars: Progress) -> None:
        self.console, self.bars = console, bars
        self.last_line, self.last_text = time.monotonic(), ""

    def __call__(self, status: Status) -> None:
        if not self.bars.tasks:  # what was there before this start is not counted for the speed
            self.bars.add_task("", total=status.all_updates, completed=status.updates)
        task = self.bars.tasks[0]
        self.bars.update(task.id, completed=status.updates)
        self.bars.update(task.id, description=_sentence(status, task.speed))
        if not self.console.is_terminal and time.monotonic() - self.last_line > PLAIN_EVERY:
            self.line()

    def line(self) -> None:
        """The present state as a line of its own, once."""
        self.last_line = time.monotonic()
        for task in self.bars.tasks:
            left = f", {duration(task.time_remaining)} left" if task.time_remaining else ""
            if task.description != self.last_text:
                self.console.print(Text(task.description + left), soft_wrap=True)
            self.last_text = task.description


def _sentence(status: Status, speed: float | None) -> str:
    parts = [f"{status.runs:,} of {status.all_runs:,} runs"]
    parts += [f"{about(speed)} run-steps/s"] if speed else []
    parts += [f"minibatch loss {number(status.loss, 3)}"] if math.isfinite(status.loss) else []
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A time for people.

    >>> [duration(s) for s in (0.4, 40, 700, 5000, 400_000)]
    ['less than 1 s', '40 s', '12 min', '1.4 hours', '4.6 days']
    """
    if seconds < 1:
        return "less than 1 s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{about(hours)} hours" if hours < 48 else f"{about(hours / 24)} days"
