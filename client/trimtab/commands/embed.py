"""Embed the texts of a file, or of standard input, with a server.

    trimtab embed titles.txt --output titles.npy
    trimtab embed articles.jsonl --column body --role passage --output articles.npy
    trimtab embed articles.parquet --column body --dtype int8 --output articles.npy
    trimtab embed articles.parquet --column body --output articles/ --ray
    echo "hello world" | trimtab embed

A .npy file is one array with one row per text. It is written row by row, so memory use stays small however
many texts there are. A .jsonl file, and standard output, have one line per text: {"row": 0, "embedding":
[...]}. Beside a file, OUT.json describes its vectors: encoder, version, space, and for int8 the value of one
step.

A run that stops, for whatever reason, leaves OUT.partial; the same command resumes it. All vectors of a file
are of one version of the encoder and of one space: the encoder's own, or the one that --space names, into
which the server's adapters map them.

With --outputs, each text has a value of each output that is named, by one pass through the encoder: a vector,
several vectors, or {"indices": [...], "values": [...]} for a sparse one. JSON lines have a field for each of
them, Parquet files a column, and for a sparse one two: NAME_indices and NAME_values. A .npy file has no room
for them. Texts are then embedded up to 64 at a time, so lines come in such groups.

If OUT ends in /, it is a folder with vectors.json and one Parquet file per block of texts, with the columns
id (the row, from 0) and vector. Several workers fill it. With --ray, they are workers of a Ray cluster, and
all must find FILE and OUT under these paths (and TRIMTAB_TOKEN in their environment, if one is needed). The
same command resumes it; another space or input is refused.
"""

import argparse
import os
import sys
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

from trimtab.commands import bulk, layouts, outputs, server_options, shards, texts, vector_files
from trimtab.commands.description import Description, describe
from trimtab.commands.suspects import Suspects
from trimtab.core.answers import Encoder
from trimtab.core.options import Options, declare, given
from trimtab.errors import ConfigError, FailedPrecondition, NotFound
from trimtab.progress import Progress
from trimtab.sdk.client import Client

SUMMARY = "embed a file's texts into vectors"
EXTRA = None
INTERRUPTED = 130  # the exit status of shells after Ctrl-C


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    source = parser.add_argument_group("texts")
    source.add_argument("file", metavar="FILE", type=Path, nargs="?", help="default: standard input")
    source.add_argument("--format", choices=texts.FORMATS, help="default: by FILE's suffix; otherwise lines")
    source.add_argument(
        "--column", metavar="NAME", help="the column of JSONL or Parquet that holds the texts"
    )
    target = parser.add_argument_group("vectors")
    target.add_argument(
        "--output",
        metavar="OUT",
        type=_output,
        default="-",
        help="a .npy or .jsonl file, or a folder, as NAME/; default: JSON lines on standard output",
    )
    target.add_argument(
        "--outputs", metavar="NAME,...", type=outputs.names,
        help="the encoder's outputs to keep, such as dense,sparse; default: its first one, without a name",
    )  # fmt: skip
    target.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    target.add_argument("--restart", action="store_true", help="discard an unfinished OUT, and start again")
    folder = parser.add_argument_group("folders")
    folder.add_argument(
        "--ray", action="store_true", help="embed on Ray: RAY_ADDRESS's, or one of this machine"
    )
    folder.add_argument(
        "--workers", type=_positive, metavar="N", help=f"blocks at a time; default: {bulk.WORKERS}"
    )
    folder.add_argument(
        "--block-rows", type=_positive, metavar="N", help=f"texts in a block; default: {bulk.BLOCK_ROWS}"
    )
    encoder = parser.add_argument_group("encoder")
    declare(encoder)
    server_options.declare(parser)


def run(options: argparse.Namespace) -> int:
    """Embed, and return the exit status."""
    # The file lasts longer than an overload, so no brownout.
    wanted = given(options, priority="bulk", allow_brownout=False)
    output: Path | None = options.output
    if options.outputs is not None:
        outputs.check(options.outputs, wanted, output)
    if output is not None and output.suffix not in layouts.SUFFIXES:
        return _to_folder(wanted, options, output)
    if options.ray or options.workers or options.block_rows:
        raise ConfigError("--ray, --workers and --block-rows go with a folder: --output NAME/")
    if output is not None:
        if output.exists() and not output.is_file():
            raise ConfigError(f"{output} exists and is not a file; name another --output")
        vector_files.complete(output)
        _check_free(output, overwrite=options.overwrite)
    if output is not None and options.file is not None and texts.same_file(output, options.file):
        raise ConfigError(f"{output} is also the input; name another file for the vectors")
    source = texts.open_texts(options.file, options.format, options.column)
    with server_options.connect(options) as client:
        if output is None:
            return _to_standard_output(client, wanted, source, options.outputs)
        try:
            return _to_file(client, wanted, source, output, options)
        except OSError as error:
            raise FailedPrecondition(f"{output} cannot be written: {error.strerror}") from error


def _output(name: str) -> Path | None:
    if name == "-":
        return None
    if name.endswith("/") == (Path(name).suffix in layouts.SUFFIXES):
        raise argparse.ArgumentTypeError(
            f"{name!r} is none of these: a .npy or .jsonl file, a folder with / at its end, or -"
        )
    return Path(name)


def _positive(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from 1")
    return int(value)


def _to_standard_output(
    client: Client, wanted: Options, source: texts.TextSource, named: list[str] | None
) -> int:
    output, suspects = sys.stdout.buffer, Suspects()
    layout = layouts.jsonl(named=named is not None)
    description = None
    if named is not None:
        encoder = client.encoder(*wanted.version)
        wanted = wanted.pinned(encoder)
        description = _describe(client, encoder, wanted, named)
    try:
        with closing(_rows(client, source.texts, wanted, description)) as rows:
            for index, row in enumerate(rows):
                output.write(layout.row(index, row.value))
                output.flush()
                suspects.note(index, row.suspicious)
        suspects.tell()
    except BrokenPipeError:
        # The reader closed the pipe. Otherwise Python would fail again when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _rows(
    client: Client, source: Iterator[str], wanted: Options, description: Description | None
) -> Generator[outputs.Row, None, None]:
    """What the texts have: vectors from a stream, or the outputs that the description names."""
    if description is not None and description.outputs is not None:
        yield from outputs.rows(client, source, wanted, description)
        return
    read: deque[str] = deque()
    with client.embed_stream(_noted(source, read), **wanted.values) as stream:
        for vector in stream:
            if description is not None and stream.adapters != description.adapters:
                raise FailedPrecondition(
                    f"the adapters were {', '.join(description.adapters)} and now are "
                    f"{', '.join(stream.adapters)}: pass --restart to make all rows with these"
                )
            yield outputs.Row(read.popleft(), vector, stream.scale, stream.suspicious)


def _check_free(output: Path, *, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise ConfigError(f"{output} exists; pass --overwrite to replace it")


def _to_file(
    client: Client, wanted: Options, source: texts.TextSource, output: Path, options: argparse.Namespace
) -> int:
    overwrite: bool = options.overwrite
    journal = None if options.restart else vector_files.read_journal(output)
    encoder = _encoder(client, wanted, journal.vectors if journal else None, output)
    wanted = wanted.pinned(encoder)
    description = _describe(client, encoder, wanted, options.outputs)
    file, suspects = vector_files.VectorFile(output, description, journal), Suspects()
    try:
        _check_free(output, overwrite=overwrite)  # again: another run may have finished
        file.skip(source.texts)
        with (
            closing(_rows(client, source.texts, wanted, description)) as rows,
            Progress("embedding", "texts", source.total, file.rows) as progress,
        ):
            for row in rows:
                suspects.note(file.rows, row.suspicious)
                file.write(row.text, row.value, row.scale)
                progress.advance()
        _check_free(output, overwrite=overwrite)
        file.finish()
    except BaseException as error:
        suspects.tell()  # the next run will not see them
        if kept := file.stop():
            sys.stderr.write(
                f"trimtab embed: stopped after {kept:,} rows; the same command goes on from there\n"
            )
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED
        raise
    suspects.tell()
    sys.stderr.write(f"{file.rows:,} {description.said} are in {output}\n")
    return 0


def _to_folder(wanted: Options, options: argparse.Namespace, folder: Path) -> int:
    if options.file is None:
        raise ConfigError("a folder needs a FILE as its input, since several workers read it; name one")
    format, column = texts.check_source(options.file, options.format, options.column)
    manifest = None if options.restart else shards.read_manifest(folder)
    with server_options.connect(options) as client:
        encoder = _encoder(client, wanted, manifest.vectors if manifest else None, folder)
        pinned = wanted.pinned(encoder)
        job = bulk.BulkJob(
            options.file.resolve(), format, column, folder.resolve(),
            _describe(client, encoder, pinned, options.outputs), pinned,
        )  # fmt: skip
        try:
            rows = bulk.run(
                client, job, options,
                block_rows=options.block_rows or (manifest.block_rows if manifest else bulk.rows_of(job)),
                workers=options.workers or bulk.WORKERS,
                on_ray=options.ray,
            )  # fmt: skip
        except KeyboardInterrupt:
            return INTERRUPTED
        except OSError as error:
            raise FailedPrecondition(f"{folder} cannot be written: {error.strerror}") from error
    sys.stderr.write(f"{rows:,} {job.vectors.said} are in {folder}/\n")
    return 0


def _encoder(client: Client, wanted: Options, begun: Description | None, output: Path) -> Encoder:
    """The version to embed with. For an unfinished file, it is the one that made the first rows."""
    if begun is None:
        return client.encoder(*wanted.version)
    try:
        encoder, version = wanted.version
        return client.encoder(encoder or begun.encoder, version or begun.version)
    except NotFound as error:
        raise FailedPrecondition(
            f"{output} was begun with {begun.encoder} {begun.version}, and the server says: {error}. "
            "Pass --restart to begin again"
        ) from error


def _describe(
    client: Client, encoder: Encoder, wanted: Options, named: list[str] | None = None
) -> Description:
    """The description of the vectors. Dimensions in another space or variant come from a first vector, and so
    does all that is said of outputs that are named."""
    if named is not None:
        found = outputs.described(client, encoder, wanted, named)
        first = found[named[0]]
        return describe(encoder, wanted, space=first.space, columns=first.dimensions, outputs=found)
    if wanted.itself and wanted.values["space"] in ("", encoder.space):
        return describe(encoder, wanted)
    own = client.embed_detailed(["first"], **wanted.values)
    return describe(
        encoder,
        wanted,
        space=own.space,
        columns=own.vectors.shape[1],
        adapters=own.adapters,
        variant=own.variant,
    )


def _noted(source: Iterator[str], read: deque[str]) -> Iterator[str]:
    """The texts; `read` has each of them until its vector arrives."""
    for text in source:
        read.append(text)
        yield text
