"""Embed every document of a store again with a new encoder, into another store.

    trimtab reindex --from faiss:old --to faiss:new --encoder all-minilm-l6-v2
    trimtab reindex --from postgresql://localhost/search#docs --to postgresql://localhost/search#docs_new \\
        --encoder all-minilm-l6-v2 --rate 200
    trimtab reindex --from old.npy --texts docs.jsonl --to qdrant+http://127.0.0.1:6333#docs --encoder e5

A store is faiss:FOLDER, qdrant:FOLDER#COLLECTION, qdrant+http://HOST:PORT#COLLECTION or
postgresql://USER@HOST/DATABASE#TABLE; vectors can also be read from FILE.npy and FILE.parquet. Add what a
store does not record itself, such as #TABLE?text=body&space=0123456789abcdef.

The old store is only read. The new one is created if needed, and is the record of progress: after a stop, for
whatever reason, the same command resumes. A run after everything is done only verifies. The server lets live
queries go first. Ids and texts stay the same.

If the encoder gives sparse or multi-vectors beside dense ones, Qdrant and pgvector get all of them from one
pass, each under its output's name; --outputs names some. FAISS keeps dense vectors alone. A store that exists
gets what it keeps.

A document that cannot be moved, for example one without a text, does not stop the run: it is named at the
end, and the exit status is 3.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from trimtab import stores
from trimtab.artifacts import durable
from trimtab.commands import outputs, server_options, texts
from trimtab.core.answers import Encoder
from trimtab.core.options import declare
from trimtab.errors import ConfigError, NotFound, TrimtabError
from trimtab.migration import claims, reindex
from trimtab.migration.making import outputs_for, target_outputs
from trimtab.migration.passing import Aside
from trimtab.progress import Progress

SUMMARY = "embed a store's documents again, with another encoder"
EXTRA = None
INTERRUPTED = 130  # the exit status of shells after Ctrl-C
SET_ASIDE = 3  # done, except for documents that cannot be moved
SHOWN = 20
LOOKED_AT = 256  # documents whose payload is examined


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--from", dest="source", metavar="STORE", required=True, help="the old store")
    parser.add_argument("--to", dest="target", metavar="STORE", required=True, help="the new store")
    declared = ("encoder", "version", "role", "truncate")
    declare(parser, declared, role="default: passage, for encoders with prompts")
    parser.add_argument(
        "--outputs", metavar="NAME,...", type=outputs.names,
        help="the encoder's outputs to keep; default: all that the new store can or, if it exists, does",
    )  # fmt: skip
    source = parser.add_argument_group("texts, where the old store has none")
    source.add_argument(
        "--texts", metavar="FILE", type=Path, help="a .jsonl or .parquet file with ids and texts"
    )
    source.add_argument("--id-column", metavar="NAME", default="id", help="default: %(default)s")
    source.add_argument("--text-column", metavar="NAME", default="text", help="default: %(default)s")
    work = parser.add_argument_group("work")
    work.add_argument("--rate", type=float, metavar="N", help="at most N texts a second; default: no limit")
    work.add_argument(
        "--batch", type=int, metavar="N", default=reindex.BATCH,
        help="documents in progress, which a crash makes it embed again; default: %(default)s",
    )  # fmt: skip
    work.add_argument(
        "--sample", type=int, metavar="N", default=claims.SAMPLE,
        help="vectors of either store that are embedded again to verify them; default: %(default)s",
    )  # fmt: skip
    work.add_argument(
        "--aside", metavar="FILE", type=Path,
        help="write a line of JSON for each document that cannot be moved: its id, and why",
    )  # fmt: skip
    server_options.declare(parser)


def run(options: argparse.Namespace) -> int:
    """Re-index, and return the exit status."""
    if options.aside is not None:
        _check_aside(options.aside, options.texts)
    by_id = None
    if options.texts is not None:
        by_id = texts.read_documents(options.texts, options.id_column, options.text_column)
    with (
        server_options.connect(options) as client,
        stores.open_store(options.source) as source,
    ):
        encoder = client.encoder(options.encoder, options.version)
        _say(claims.check_source(client, source, by_id, sample=options.sample))
        first = source.page(None, LOOKED_AT)
        forms = _forms(encoder, options.outputs, options.target)
        with stores.create_store(options.target, forms, example=_example(first), source=source) as target:
            _tell_left(source, target, first)
            work = reindex.Reindex(
                client,
                source,
                target,
                encoder,
                role=options.role,
                truncate=options.truncate,
                texts=by_id,
                rate=options.rate,
                batch=options.batch,
            )
            try:
                outcome = work.run(sample=options.sample, progress=Progress)
            except (TrimtabError, KeyboardInterrupt) as error:
                _say("stopped; the same command goes on from here")
                if isinstance(error, KeyboardInterrupt):
                    return INTERRUPTED
                raise
            _say(
                f"{outcome.kept:,} documents of {source.name} are in {target.name} in {_spaces(target)}: "
                f"{outcome.moved:,} embedded now, {outcome.sampled} sampled vectors verified"
            )
            if outcome.extra:
                _say(f"{outcome.extra:,} documents are in {target.name} alone")
            return _tell_aside(outcome.aside, source.name, options.aside)


def _forms(encoder: Encoder, names: Sequence[str] | None, target: str) -> Mapping[str, stores.Form]:
    """The outputs that the new store is to keep: by default, those that it keeps if it exists, or all that it
    can. What the encoder also gives is named."""
    forms = target_outputs(encoder, names, stores.kinds(target))
    if names is None:
        try:
            with stores.open_store(target) as there:
                forms = target_outputs(encoder, outputs_for(encoder, there))
        except NotFound:
            pass
        left = [output for output in encoder.outputs if output.name not in forms]
        if left:
            also = ", ".join(f"{output.name} ({output.form})" for output in left)
            _say(f"{encoder.name} {encoder.version} also gives {also}, which {target} does not keep")
    return forms


def _spaces(store: stores.Store) -> str:
    """The spaces of a store, for a sentence."""
    if not store.others:
        return f"space {store.form.space}"
    return f"the spaces {', '.join(f'{form.space} ({name})' for name, form in store.outputs.items())}"


def _check_aside(path: Path, read: Path | None) -> None:
    """ConfigError if --aside would replace anything but an earlier run's file."""
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--aside {path}: the folder does not exist")
    if read is not None and texts.same_file(path, read):
        raise ConfigError(f"--aside {path} is also the input; name another file")
    if not path.exists():
        return
    try:
        if not path.is_file():
            raise ConfigError(f"--aside {path} is not a file")
        with path.open("rb") as stream:
            ours = all(msgspec.json.decode(line).keys() == {"id", "reason"} for line in stream)
    except (OSError, ValueError, AttributeError, RecursionError):
        ours = False
    if not ours:
        raise ConfigError(f"--aside {path} exists, and no earlier run wrote it; name another file")


def _example(documents: Sequence[stores.Document]) -> stores.Id | None:
    """An id of the type that most of these documents have."""
    ids = [document.id for document in documents]
    many = sum(isinstance(id, str) for id in ids) > len(ids) / 2
    return next((id for id in ids if isinstance(id, str) == many), None)


def _tell_left(source: stores.Store, target: stores.Store, documents: Sequence[stores.Document]) -> None:
    """Report what is not moved: other columns and vectors, and payload if the target keeps none."""
    left = list(source.beside)
    if not target.keeps_payload:
        left += sorted({key for document in documents for key in document.payload})
    if left:
        _say(
            f"{source.name} keeps {', '.join(left)} beside its documents, which do not move: look them up "
            "there by id, or copy them"
        )


def _tell_aside(aside: Sequence[Aside], name: str, path: Path | None) -> int:
    """Name the documents that were not moved. Returns the exit status."""
    for each in aside[:SHOWN]:
        _say(f"not moved: document {each.id!r}: {each.reason}")
    if len(aside) > SHOWN:
        _say(f"not moved: {len(aside) - SHOWN:,} more; --aside FILE names all")
    if aside:
        _say(f"{len(aside):,} documents of {name} are not moved, and are found in it alone")
    if path is not None:
        durable.replace(path, b"".join(msgspec.json.encode(each) + b"\n" for each in aside))
    return SET_ASIDE if aside else 0


def _say(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")
