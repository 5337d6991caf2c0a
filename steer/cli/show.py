"""Progress bars and tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console()


def bars() -> Progress:
    """A live progress display; also in a pipe, where it prints its last state."""
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, refresh_per_second=4)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> None:
    """Print a table; the first column is text, the others are numbers."""
    drawn = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for k, column in enumerate(columns):
        drawn.add_column(column, justify="left" if k == 0 else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn)
