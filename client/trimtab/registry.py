"""Kinds found by name: Trimtab's own, and those of installed packages.

A package adds a kind by an entry point in its metadata (in pyproject.toml, `[project.entry-points]`). The
entry point has the registry's group and the kind's name. Entry points are looked up and imported only when a
kind is named that Trimtab itself does not have.
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from trimtab.errors import ConfigError, NotFound

Kind = TypeVar("Kind")


class Registry(Generic[Kind]):
    """The kinds of one sort, by name.

    what: what messages call one. fits: whether an object from a package is a kind of this sort.
    """

    def __init__(self, what: str, group: str, own: dict[str, Kind], fits: Callable[[object], bool]) -> None:
        self._what = what
        self._group = group
        self._known = dict(own)
        self._fits = fits

    def __getitem__(self, name: str) -> Kind:
        """The kind with this name. NotFound, which lists the existing names, if there is none; ConfigError if
        a package's kind cannot be used."""
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = self._installed(name)
        return found

    def names(self) -> list[str]:
        """All names, in order."""
        return sorted({*self._known, *(each.name for each in entry_points(group=self._group))})

    def _installed(self, name: str) -> Kind:
        for each in entry_points(group=self._group, name=name):
            try:
                kind = each.load()
            except Exception as error:  # whatever the package raises
                raise ConfigError(
                    f"the {self._what} {name!r} of {each.value} cannot be imported: {error}"
                ) from error
            if not self._fits(kind):
                raise ConfigError(f"{each.value}, for the {self._what} {name!r}, is none")
            return kind  # type: ignore[no-any-return]  # it fits
        raise NotFound(f"the {self._what} {name!r} is not known; there is {', '.join(self.names())}")
