"""Turn an encoder into a bundle: an immutable folder that `trimtab serve` reads.

SOURCE is a sentence-transformers folder, a Hugging Face folder or an id of its hub (owner/name), or an ONNX
graph with its tokenizer.json: the .onnx file, or a folder with model.onnx or onnx/model.onnx and no torch
weights. Pooling, further layers, prompts, the length of texts and the similarity are read from the source;
what it does not say has to be given, and what cannot be exported faithfully is refused. The graph's vectors
are compared with the source's own over texts of many languages before anything appears in the repository.

    trimtab export ./all-MiniLM-L6-v2 --name minilm --repository ./repository
    trimtab export intfloat/e5-small-v2 --name e5 --repository ./repository \\
        --query-prompt 'query: ' --passage-prompt 'passage: '
    trimtab export ./bert --name bert --repository ./repository --pooling cls --normalize
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import get_args

from trimtab import bundle as bundles

SUMMARY = "turn an encoder into a bundle for the server"
EXTRA = "export"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help="a folder, an .onnx file, or an id of the Hugging Face hub"
    )
    parser.add_argument(
        "--name", required=True, help="the encoder's name: lower-case letters, digits, '.', '_', '-'"
    )
    parser.add_argument(
        "--repository", required=True, type=Path, help="the folder of bundles; made where it does not exist"
    )
    parser.add_argument(
        "--version",
        type=_positive,
        help="the bundle's version, a number not in use yet (default: the one after the last, or 1)",
    )
    parser.add_argument(
        "--pooling",
        choices=get_args(bundles.Pooling),
        help="how token states become one vector, for a source that does not declare it",
    )
    parser.add_argument(
        "--normalize",
        action="store_true",
        help="scale vectors to length 1, for a source that does not declare it",
    )
    parser.add_argument(
        "--query-prompt", metavar="TEXT", help="put before a query (default: as declared, else nothing)"
    )
    parser.add_argument(
        "--passage-prompt", metavar="TEXT", help="put before a passage (default: as declared, else nothing)"
    )
    parser.add_argument(
        "--max-tokens",
        type=_positive,
        metavar="N",
        help="how many tokens of a text are read (default: as declared, and no more than the positions)",
    )


def run(options: argparse.Namespace) -> int:
    # ONNX Runtime reports its use to its makers unless it is told not to before it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    bundles.check_name(options.name)
    from trimtab_export.export import export
    from trimtab_export.source import Settings

    settings = Settings(
        source=options.source,
        pooling=options.pooling,
        normalize=options.normalize,
        query_prompt=options.query_prompt,
        passage_prompt=options.passage_prompt,
        max_tokens=options.max_tokens,
    )
    with _terminated_like_interrupted():
        bundle = export(settings, options.name, options.repository, options.version)
    manifest = bundle.manifest
    size = sum(file.size for file in bundles.files(manifest))
    parity = manifest.variants[0].report.parity.max_abs_diff
    sys.stdout.write(f"{bundle.path}  space {manifest.space}  parity {parity:.1e}  {size / 1e6:.1f} MB\n")
    return 0


def _positive(text: str) -> int:
    if not bundles.VERSION.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, as Ctrl-C does, so that a half-made bundle is removed."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
