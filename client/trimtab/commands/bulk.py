"""Embed a file into a folder of Parquet files, block by block, with threads of this process or on Ray."""

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.commands import outputs, server_options, shards, texts
from trimtab.commands.description import Description
from trimtab.core.options import Options
from trimtab.errors import ConfigError, FailedPrecondition, TrimtabError, Unavailable
from trimtab.progress import Progress
from trimtab.sdk.client import Client

BLOCK_ROWS = 8192
BLOCK_ROWS_OF_OUTPUTS = 1024  # a block is in memory as a whole, and multi-vectors are large
WORKERS = 2  # one keeps the server busy while the other waits for its last answers


@dataclass(frozen=True, slots=True)
class BulkJob:
    """What all blocks have in common. The paths are valid wherever a worker runs."""

    source: Path
    format: str
    column: str
    folder: Path
    vectors: Description
    wanted: Options  # pinned to one version


def rows_of(job: BulkJob) -> int:
    """How many texts a block has, if nobody says."""
    return BLOCK_ROWS if job.vectors.outputs is None else BLOCK_ROWS_OF_OUTPUTS


def run(
    client: Client,
    job: BulkJob,
    connection: argparse.Namespace,
    *,
    block_rows: int,
    workers: int,
    on_ray: bool,
) -> int:
    """Embed the missing blocks. Returns how many rows the folder has then."""
    manifest = shards.ShardManifest(vectors=job.vectors, block_rows=block_rows)
    with shards.locked(job.folder):
        if connection.restart:
            shards.clear(job.folder)
        shards.begin(job.folder, manifest)
        before = _stamp(job.source)
        blocks = texts.find_blocks(job.source, job.format, job.column, block_rows)
        done = _on_ray(job, blocks, connection, workers) if on_ray else _here(client, job, blocks, workers)
        with Progress("embedding", "texts", sum(block.rows for block in blocks)) as progress:
            for rows in done:
                progress.advance(rows)
        if _stamp(job.source) != before:
            raise _changed(job)
        return shards.finish(job.folder, manifest, blocks)


def embed_block(client: Client, job: BulkJob, block: texts.Block) -> int:
    """Write the file of a block, unless it exists. Returns how many rows the block has."""
    wanted = texts.read_block(job.source, job.format, job.column, block)
    if len(wanted) != block.rows:
        raise _changed(job)
    path = shards.shard_path(job.folder, block, wanted)
    if shards.check(path):
        return block.rows
    if job.vectors.outputs is not None:
        parts = [
            outputs.embedded(client, group, job.wanted, job.vectors)
            for group in outputs.groups(client, iter(wanted), job.wanted)
        ]
        shards.write_outputs(path, block.first, parts, job.vectors)
        return block.rows
    with client.embed_stream(wanted, **job.wanted.values) as stream:
        vectors = np.stack(list(stream))
        if stream.adapters != job.vectors.adapters:
            raise FailedPrecondition(
                f"the adapters were {', '.join(job.vectors.adapters)} and now are "
                f"{', '.join(stream.adapters)}: pass --restart to make all rows with these"
            )
        shards.write(path, block.first, vectors, stream.scale, job.vectors)
    return block.rows


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _changed(job: BulkJob) -> FailedPrecondition:
    return FailedPrecondition(
        f"{job.source} was changed while its texts were embedded. Repeat the command: it checks all blocks"
    )


def _here(client: Client, job: BulkJob, blocks: Sequence[texts.Block], workers: int) -> Iterator[int]:
    with ThreadPoolExecutor(workers) as pool:
        pending = [pool.submit(embed_block, client, job, block) for block in blocks]
        try:
            for each in as_completed(pending):
                yield each.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()  # ends the streams of blocks in progress
            raise


class _Worker:
    """An actor on a machine of the Ray cluster, with a client of its own."""

    def __init__(self, job: BulkJob, connection: argparse.Namespace) -> None:
        self._job, self._client = job, server_options.connect(connection)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"rows": embed_block(self._client, self._job, texts.Block(**row))}


def _on_ray(
    job: BulkJob, blocks: Sequence[texts.Block], connection: argparse.Namespace, workers: int
) -> Iterator[int]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ModuleNotFoundError:
        raise ConfigError("--ray needs Ray: pip install 'trimtab[ray]'") from None
    if not blocks:
        return
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="warning")
    except (RuntimeError, ConnectionError) as error:  # on a busy machine, it gives up after 30 s
        raise Unavailable(f"Ray did not start, or cannot be reached: {error}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    rows = ray.data.from_items([asdict(block) for block in blocks], override_num_blocks=len(blocks))
    done = rows.map(_Worker, fn_constructor_args=(job, connection), concurrency=(1, workers))
    try:
        for row in done.iter_rows():
            yield int(row["rows"])
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, TrimtabError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise cause or error from None
    finally:
        ray.shutdown()
