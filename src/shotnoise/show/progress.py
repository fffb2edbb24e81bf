"""Progress bars for long work, on the terminal's error stream so that results can be piped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ProgressReport = Callable[[int, int], None]  # (done, total)


@contextmanager
def progress(console: Console | None = None) -> Iterator[Callable[[str], ProgressReport]]:
    """A place for bars: call what it gives with a description, and hand the result to a verb as `progress`.

    >>> from rich.console import Console
    >>> with progress(Console(quiet=True)) as bar:
    ...     report = bar("measuring")
    ...     report(50, 100)
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console or Console(stderr=True)) as bars:

        def bar(description: str) -> ProgressReport:
            task = bars.add_task(description, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield bar
