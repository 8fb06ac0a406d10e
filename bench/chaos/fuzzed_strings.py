"""Strings that users give: texts, and addresses of stores and servers."""

from pathlib import Path
from typing import Any

from bench.chaos.fuzzed import FuzzTarget, Refusing
from trimtab import errors


def tokens(folder: Path) -> FuzzTarget:
    """Any text, with every kind of tokenizer and truncation: the result must equal the library's own."""
    import tokenizers

    from bench.chaos import known, vocabularies
    from bench.encoders import FOLDER
    from trimtab.kinds import Truncate
    from trimtab.tokens import Tokenizer

    limit = 32
    paths = [known.bundle() / "tokenizer.json", *sorted(FOLDER.glob("*/tokenizer.json"))]
    kinds = [tokenizers.Tokenizer.from_file(str(path)).to_str() for path in paths]
    kinds += [make().to_str() for make in vocabularies.MADE.values()]

    def library(json: str, direction: str | None) -> Any:
        tokenizer = tokenizers.Tokenizer.from_str(json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if direction is not None:
            tokenizer.enable_truncation(limit, direction=direction)
        return tokenizer

    sides: dict[Truncate, str | None] = {"end": "right", "start": "left", "none": None}
    made = [
        (
            Tokenizer(tokenizers.Tokenizer.from_str(json), limit),
            {how: library(json, side) for how, side in sides.items()},
        )
        for json in kinds
    ]

    def run(data: bytes) -> None:
        text = data[2:].decode("utf-8", "replace")
        if len(data) > 1 and data[1] % 5 == 0:
            text *= data[1]
        tokenizer, libraries = made[(data[0] if data else 0) % len(made)]
        whole = libraries["none"].encode(text).ids
        for how, library in libraries.items():
            (read,) = tokenizer.read([text], how)
            least = limit + 1 if not read.whole else len(whole)
            assert least <= read.count <= len(whole), (how, read.count, len(whole))
            assert len(read.ids) <= limit, (how, len(read.ids))
            if how != "none" or read.count <= limit:
                assert list(read.ids) == library.encode(text).ids, "other tokens than the library's own"

    texts = ["", "w1 w2", "Grüße, 世界! \u200d👩‍👩‍👧 e\u0301", "\x00\u2028 \ufeff" * 9, "a" * 300]
    return FuzzTarget(run, [bytes((row, 1)) + text.encode() for row in range(len(made)) for text in texts])


def addresses(folder: Path) -> FuzzTarget:
    """Addresses of stores and of servers; a password in them is never shown."""
    from trimtab.sdk import target
    from trimtab.stores import address
    from trimtab_server import config as configs

    def run(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        for parse in (address.parse, target.check_target, configs.split_address):
            with Refusing(errors.TrimtabError):
                parse(text)
        url = f"postgresql://u:hunter2secret@{text}"
        try:
            assert "hunter2secret" not in repr(address.parse(url)), "the password is shown"
        except errors.TrimtabError as error:
            assert "hunter2secret" not in str(error), "the password is shown"

    seeds = ["faiss:a/b", "qdrant:f#c?text=body", "qdrant+http://h:1#c", "postgresql://u@h/d#t?space=0"]
    return FuzzTarget(
        run, [each.encode() for each in (*seeds, "v.npy", "127.0.0.1:1", "[::1]:2", "dns:///a")]
    )
