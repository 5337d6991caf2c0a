"""Tables in a Markdown page, each between two comments that name the command which writes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Part:
    """What stands in a page between `<!-- COMMAND -->` and `<!-- end of COMMAND -->`.

    Raises ValueError where there is no such page, or no such place in it: at once, before any long work.
    """

    page: Path
    command: str

    def __post_init__(self):
        self._around()

    def write(self, text: str) -> None:
        """Put a text in place of what is there; the rest of the page stays as it is by now."""
        before, after = self._around()
        self.page.write_text(f"{before}{text}{after}")

    def _around(self) -> tuple[str, str]:
        begin, end = f"<!-- {self.command} -->\n", f"<!-- end of {self.command} -->"
        head, found, rest = (self.page.read_text() if self.page.exists() else "").partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise ValueError(
                f"{self.page} has no place for the tables: write the lines {begin.strip()!r} and {end!r} into it."
            )
        return head + begin, end + tail
