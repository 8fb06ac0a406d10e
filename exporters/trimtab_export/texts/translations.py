"""Translations of programs' messages (gettext): one in another language is the query for the English one."""

import gettext
from collections.abc import Iterator
from pathlib import Path

from trimtab_export.texts.domain import Pair

ROOT = Path("/usr/share/locale")
LANGUAGES = {"de": "de", "es": "es", "fr": "fr", "pt": "pt", "pt_BR": "pt", "it": "it", "nl": "nl"}
LEAST = 4  # words
MOST_OF_A_FILE = 100  # spread over it


def find() -> Iterator[Pair]:
    for folder, language in LANGUAGES.items():
        for path in sorted(ROOT.glob(f"{folder}/LC_MESSAGES/*.mo")):
            found = sorted(_messages(path).items())
            for original, translated in found[:: max(1, -(-len(found) // MOST_OF_A_FILE))]:
                if min(len(original.split()), len(translated.split())) >= LEAST and original != translated:
                    yield Pair(translated, original, language)


def _messages(path: Path) -> dict[str, str]:
    """Translations by original, without plurals and contexts."""
    try:
        with path.open("rb") as stream:
            catalog = vars(gettext.GNUTranslations(stream))["_catalog"]
    except (OSError, ValueError, KeyError, UnicodeDecodeError):
        return {}
    return {
        each: text
        for each, text in catalog.items()
        if isinstance(each, str) and isinstance(text, str) and "\x04" not in each
    }
