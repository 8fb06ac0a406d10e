"""The passages that a server found suspicious."""

import sys

NAMED = 10  # the most suspicious rows named on standard error


class Suspects:
    """The rows that the server found suspicious, if it checks passages; reported at the end."""

    def __init__(self) -> None:
        self._first: list[int] = []
        self._count = 0

    def note(self, row: int, suspicious: bool | None) -> None:
        """Note what the server said about a row."""
        if suspicious:
            self._count += 1
            if len(self._first) < NAMED:
                self._first.append(row)

    def tell(self) -> None:
        """Report suspicious rows, if any, on standard error."""
        if self._count:
            more = f" and {self._count - len(self._first):,} more" if self._count > len(self._first) else ""
            sys.stderr.write(
                f"trimtab embed: rows {', '.join(map(str, self._first))}{more} come near to far more queries "
                "than ordinary passages do: look at these texts before they are indexed\n"
            )
