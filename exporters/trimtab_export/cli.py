"""Turn an encoder into a bundle: an immutable folder that `trimtab serve` reads.

SOURCE is a sentence-transformers folder, a Hugging Face folder or hub id (owner/name), or an ONNX graph with
its tokenizer.json: the .onnx file, or a folder with model.onnx or onnx/model.onnx and no torch weights.
Pooling, further layers, prompts, the maximum length and the similarity are read from the source. What it does
not say must be given; what cannot be exported faithfully is refused. The prompts of queries and passages are
those that encode_query and encode_document of sentence-transformers use; other prompts are listed but not
exported. Before anything appears in the repository, the graph's vectors are compared with the source's own on
texts in many languages.

    trimtab export ./all-MiniLM-L6-v2 --name minilm --repository ./repository
    trimtab export intfloat/e5-small-v2 --name e5 --repository ./repository \\
        --query-prompt 'query: ' --passage-prompt 'passage: '
    trimtab export ./bert --name bert --repository ./repository --pooling cls --normalize
"""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import get_args

from trimtab import kinds
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts.variants import alone
from trimtab.errors import ExportError
from trimtab_export.source import Device, Settings, Target

SUMMARY = "turn an encoder into a bundle for the server"
EXTRA = "export"


class _ListTexts(argparse.Action):
    """List the kinds of text on this machine, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from trimtab_export.texts import gather

        sys.stdout.write(gather.describe(gather.gather()))
        parser.exit()


def configure(parser: argparse.ArgumentParser) -> None:
    _configure_encoder(parser)
    _configure_variants(
        parser.add_argument_group(
            "smaller and faster variants", "each has its own space, and a report card in the manifest"
        )
    )


def _configure_encoder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a folder, an .onnx file, or a Hugging Face hub id")
    parser.add_argument(
        "--name", required=True, help="the encoder's name: lower-case letters, digits, '.', '_', '-'"
    )
    parser.add_argument(
        "--repository", required=True, type=Path, help="the folder of bundles; created if missing"
    )
    parser.add_argument(
        "--version",
        type=_positive,
        help="the bundle's version, an unused number (default: the last one plus 1, or 1)",
    )
    parser.add_argument(
        "--pooling",
        choices=get_args(kinds.Pooling),
        help="how to pool token states into one vector, if the source does not declare it",
    )
    parser.add_argument(
        "--normalize",
        action="store_true",
        help="scale vectors to length 1, if the source does not declare it",
    )
    parser.add_argument(
        "--query-prompt", metavar="TEXT", help="text before each query (default: as declared, else nothing)"
    )
    parser.add_argument(
        "--passage-prompt",
        metavar="TEXT",
        help="text before each passage (default: as declared, else nothing)",
    )
    parser.add_argument(
        "--max-tokens",
        type=_positive,
        metavar="N",
        help="the most tokens to read of a text (default: as declared, at most the encoder's positions)",
    )
    parser.add_argument(
        "--output",
        metavar="NAME",
        help="the ONNX graph's output with the vectors or token states (default: the one called "
        "sentence_embedding, last_hidden_state or similar)",
    )
    parser.add_argument("--reads", metavar="KIND", help="the kind of input (default: the source's own)")
    parser.add_argument(
        "--also",
        metavar="KIND",
        action="append",
        default=[],
        help="a kind of output to give beside those that the source declares; may be given several times",
    )
    parser.add_argument(
        "--role",
        choices=kinds.ROLES,
        help="which texts to embed, if the source reads queries and passages by different modules",
    )
    parser.add_argument(
        "--top-k",
        type=_positive,
        metavar="N",
        help="keep only the N largest weights of a sparse vector (default: all)",
    )
    parser.add_argument(
        "--stop-token",
        metavar="TOKEN",
        action="append",
        default=[],
        help="a token of the vocabulary that gets no weight in sparse vectors; may be given several times",
    )


def _configure_variants(more: argparse._ArgumentGroup) -> None:
    more.add_argument(
        "--min-quality",
        type=_share,
        action="append",
        default=[],
        metavar="SHARE",
        help="search for the fastest variants that keep this share of the encoder's nDCG@10, such as 0.99, "
        "over each kind of text that was left out of making them, and over --pairs; given several times, for "
        "the fastest at each",
    )
    more.add_argument("--recipe", type=Path, metavar="FILE", help="make the variants of this TOML file")
    more.add_argument(
        "--target",
        choices=get_args(Target),
        default="throughput",
        help="what to optimise: single texts, batches, or size (default: %(default)s)",
    )
    more.add_argument(
        "--device",
        choices=get_args(Device),
        default="cpu",
        help="the device to make variants for: int8 and, for OpenVINO if it is installed, bfloat16 for a "
        "CPU; float16 for a GPU (default: %(default)s)",
    )
    more.add_argument(
        "--tensorrt",
        action="store_true",
        help="build TensorRT engines for this machine's GPU; without a GPU the bundle gets none",
    )
    more.add_argument(
        "--heal-minutes",
        type=_minutes,
        default=16.0,
        metavar="N",
        help="how long the search may train the cuts that it tries, all together; more minutes keep more "
        "(default: %(default)g)",
    )
    more.add_argument(
        "--pairs",
        type=Path,
        metavar="FILE",
        help='retrieval of your own: {"query": "...", "document": "..."} a line. Some are held out and '
        "judge, beside the kinds of text that are left out; the others train",
    )
    more.add_argument(
        "--texts",
        type=Path,
        metavar="FILE",
        help="texts to train and calibrate on, one a line, before those that are at hand (see --list-texts)",
    )
    more.add_argument(
        "--list-texts", action=_ListTexts, nargs=0, help="list the kinds of text on this machine, and exit"
    )


def run(options: argparse.Namespace) -> int:
    bundles.check_name(options.name)
    from trimtab_export.export import export
    from trimtab_export.variants import recipe
    from trimtab_export.variants.candidates import summary
    from trimtab_export.variants.selection import VariantRequest

    settings = Settings(
        source=options.source,
        pooling=options.pooling,
        normalize=options.normalize,
        query_prompt=options.query_prompt,
        passage_prompt=options.passage_prompt,
        max_tokens=options.max_tokens,
        output=options.output,
        reads=options.reads,
        also=tuple(options.also),
        role=options.role,
        top_k=options.top_k,
        stop_tokens=tuple(options.stop_token),
    )
    wanted = VariantRequest(
        recipe=recipe.load(options.recipe) if options.recipe else (),
        min_quality=tuple(options.min_quality),
        target=options.target,
        device=options.device,
        heal_minutes=options.heal_minutes,
        pairs=options.pairs,
        texts=options.texts,
        tensorrt=options.tensorrt,
    )
    with _terminated_like_interrupted(), _disk_errors_told():
        bundle = export(settings, options.name, options.repository, options.version, wanted)
    manifest = bundle.manifest
    size = sum(file.size for file in manifest.files())
    parity = manifest.variants[0].report.parity.max_abs_diff
    sys.stdout.write(f"{bundle.path}  space {manifest.space}  parity {parity:.1e}  {size / 1e6:.1f} MB\n")
    for variant in manifest.variants[1:]:
        if variant.report.fidelity is not None:
            space, kept = alone(manifest, variant).space, summary(variant.report.fidelity)
            sys.stdout.write(f"  {variant.name}  space {space}  {kept}\n")
    made = [variant.passes for variant in manifest.variants if variant.passes is not None]
    if made:
        sys.stdout.write(f"the recipe that makes them again:\n\n{recipe.dump(made)}")
    return 0


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and at most 1")
    return share


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes above 0")
    return minutes


def _positive(text: str) -> int:
    if not bundles.VERSION.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


@contextmanager
def _disk_errors_told() -> Iterator[None]:
    """Report a full disk and similar errors without a traceback."""
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise ExportError(
            f"{error.strerror or error}{where}. No bundle was written. Where the disk is full, make room and "
            "run the command again: a search goes on where it stopped"
        ) from error


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Make SIGTERM and SIGHUP unwind the stack like Ctrl-C, so that a half-made bundle is removed."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
