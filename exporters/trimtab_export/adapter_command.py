"""Fit an adapter that lets a new encoder's queries search the old encoder's index, or report on one.

    trimtab adapter fit --from repository/minilm-l6/1 --to repository/minilm-l3/1 \\
        --texts documents.txt --queries queries.txt --pairs pairs.jsonl
    trimtab adapter report repository/minilm-l6/adapters/v1-to-minilm-l3-v1 --output adapter.html

`fit` fits a ladder of maps, from the identity to one that reads the encoder's inner states, and takes the
simplest that held-out retrieval cannot tell from the best. The verdict says what to do: bridge (new queries
may search the old index), cascade (they fetch candidates, which are rescored), re-index, or stay with the old
encoder. Without --pairs the verdict is provisional.

FOLDER:VARIANT names a variant of a bundle: with --from repository/minilm-l6/1:small --to
repository/minilm-l6/1, queries of the variant `small` search the index of the encoder itself.
"""

import argparse
import shlex
import sys
from pathlib import Path

from trimtab.errors import ConfigError

SUMMARY = "fit an adapter between two encoders, or report on one"
EXTRA = "export"


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    fit = actions.add_parser("fit", help="fit an adapter, judge it, and write it next to the new encoder")
    fit.add_argument(
        "--from", dest="source", required=True, metavar="FOLDER[:VARIANT]", help="the new encoder's bundle"
    )
    fit.add_argument(
        "--to", dest="target", required=True, metavar="FOLDER[:VARIANT]", help="the old encoder's bundle"
    )
    fit.add_argument(
        "--texts", required=True, type=Path, metavar="FILE",
        help="documents as they were indexed: lines, or a column `text` of JSONL or Parquet",
    )  # fmt: skip
    fit.add_argument(
        "--queries", type=Path, metavar="FILE",
        help="queries as users send them: lines, or a column `query`; JSONL may have a `group`, such as de",
    )  # fmt: skip
    fit.add_argument(
        "--pairs", type=Path, metavar="FILE",
        help='JSONL of {"query": ..., "document": ...}: some choose and judge, the rest train; '
        "without it the verdict is provisional",
    )  # fmt: skip
    fit.add_argument(
        "--old-vectors", metavar="STORE",
        help="where the old vectors of the texts are: FILE.npy, FILE.parquet, faiss:FOLDER, "
        "qdrant:FOLDER#COLLECTION, postgresql://HOST/DATABASE#TABLE (default: embed them again)",
    )  # fmt: skip
    fit.add_argument("--name", help="the adapter's name (default: v1-to-OLD-v1)")
    fit.add_argument(
        "--documents", type=_count, default=10_000, metavar="N",
        help="the number of documents to search and to fit on (default: %(default)s)",
    )  # fmt: skip
    fit.add_argument(
        "--fit-queries", type=_count, default=40_000, metavar="N",
        help="the most queries to fit on (default: %(default)s)",
    )  # fmt: skip
    report = actions.add_parser("report", help="write an adapter's report as one HTML page")
    report.add_argument("adapter", type=Path, metavar="ADAPTER", help="the adapter's folder")
    report.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page to write (default: NAME.html in the current folder)",
    )


def run(options: argparse.Namespace) -> int:
    if options.action == "report":
        return _report(options.adapter, options.output)
    from trimtab_export.adapters.fit import fit
    from trimtab_export.adapters.request import Request

    adapter = fit(
        Request(
            source=options.source,
            target=options.target,
            texts=options.texts,
            queries=options.queries,
            pairs=options.pairs,
            old_vectors=options.old_vectors,
            name=options.name,
            documents=options.documents,
            fit_queries=options.fit_queries,
            command=_command(options),
        )
    )
    manifest = adapter.manifest
    kind = "provisional " if manifest.provisional else ""
    sys.stdout.write(f"{adapter.path}  {manifest.rung}\n{kind}verdict: {manifest.verdict}\n")
    sys.stdout.writelines(f"  - {reason}\n" for reason in manifest.reasons)
    return 0


def _report(folder: Path, output: Path | None) -> int:
    from trimtab.artifacts import adapter as adapters
    from trimtab_export.adapters.page import page

    adapter = adapters.read(folder)
    path = output or Path(f"{adapter.manifest.name}.html")
    try:
        path.write_text(page(adapter.manifest), "utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    sys.stdout.write(f"{path}\n")
    return 0


def _command(options: argparse.Namespace) -> str:
    """The command to show to others: only the last part of paths, and no address that may hold a password."""
    words = ["trimtab", "adapter", "fit"]
    for flag, value in (
        ("--from", _last_names(options.source)),
        ("--to", _last_names(options.target)),
        ("--texts", options.texts.name),
        ("--queries", options.queries and options.queries.name),
        ("--pairs", options.pairs and options.pairs.name),
        ("--documents", str(options.documents)),
        ("--fit-queries", str(options.fit_queries)),
    ):
        if value:
            words += [flag, value]
    return shlex.join(words)


def _last_names(reference: str) -> str:
    path = Path(reference)
    return f"{path.parent.name}/{path.name}"


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)
