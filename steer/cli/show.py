"""Progress bars and tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console()
TEXT = ("", "reward", "method", "picture", "of", "what it does", "dials")


def quiet() -> None:
    """Silence the loading bars of the libraries; steer shows its own progress."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def bars() -> Progress:
    """A live progress display; also in a pipe, where it prints its last state."""
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, refresh_per_second=4)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> None:
    """Print a table; columns of numbers are aligned right."""
    drawn = Table(
        title=title, caption=caption, title_justify="left", caption_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    for column in columns:
        drawn.add_column(column, justify="left" if column in TEXT else "right")
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn, markup=False)  # a column may be called [a - b] / 2
