"""The graphs that are measured, made once: with and without padding, in float32 and float16, and in int8.

fp32           the graph of the bundle that `trimtab export` writes, without padding
fp32 padded    the same before the padding is taken out of it
fp16           the first as the exporter writes it for GPUs; fp16 padded: the second
int8           the first in static int8, in a bundle of its own, so that it can be served
"""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from bench import data, processes
from bench.encoders import exported
from bench.gpu.devices import CPU, MIB, Row
from bench.gpu.sessions import Encoder, Opened, cosines, tried
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts import cards, space
from trimtab.artifacts.manifest import BundleVariant, SpaceParts
from trimtab_export import write
from trimtab_export.graph import head, to_onnx
from trimtab_export.load import load
from trimtab_export.passes import half, quantize
from trimtab_export.source import Settings, TokenizerFile
from trimtab_export.steps import no_progress_bars, quiet
from trimtab_export.tokens import Collator

NAME = "demo"
GRAPHS = ("fp32", "fp32 padded", "fp16", "fp16 padded")
CALIBRATION, BATCH = 128, 16  # texts that int8's ranges are measured on
COMPARED = 64  # texts of int8's report card


@dataclass(frozen=True, slots=True)
class Graphs:
    """Where they are, below one folder."""

    folder: Path

    @property
    def repository(self) -> Path:
        """The bundle's, for a server."""
        return self.folder / "models"

    @property
    def int8_repository(self) -> Path:
        """The same with int8."""
        return self.folder / "int8-models"

    @property
    def bundle(self) -> Path:
        """The encoder as the exporter writes it."""
        return self.repository / NAME / "1"

    @property
    def int8_bundle(self) -> Path:
        """The same in int8."""
        return self.int8_repository / NAME / "1"

    def path(self, name: str) -> Path:
        """The graph of this name. FileNotFoundError if the part "graphs" could not make it."""
        if name == "fp32":
            path = self.bundle / "fp32" / head.GRAPH
        elif name == "int8":
            path = self.int8_bundle / "int8" / head.GRAPH
        else:
            path = self.folder / name.replace(" ", "-") / head.GRAPH
        if not path.exists():
            raise FileNotFoundError(f"there is no graph {name}: see the part graphs")
        return path


def make(graphs: Graphs, source: Path) -> Iterator[Row]:
    """A row for each graph; what is there already is kept."""

    def row(name: str, make: Callable[[], None]) -> Row:
        def measure() -> Row:
            begun = time.monotonic()
            make()
            path = graphs.path(name)
            size = sum(each.stat().st_size for each in path.parent.iterdir()) / MIB
            return {"seconds": round(time.monotonic() - begun, 1), "mib": round(size, 1), "on": "cpu"}

        return tried({"row": name}, measure)

    yield row("fp32", partial(_export, graphs, source))
    yield row("fp32 padded", partial(_padded, graphs, source))
    for name in ("fp32", "fp32 padded"):
        yield row(name.replace("32", "16"), partial(_half, graphs, name))
    yield row("int8", partial(_int8, graphs))


def _export(graphs: Graphs, source: Path) -> None:
    if not exported(graphs.bundle):
        command = [processes.PYTHON, "-m", "trimtab.cli", "export", str(source), "--name", NAME]
        command += ["--repository", str(graphs.repository), "--version", "1"]
        done = subprocess.run(command, cwd=processes.ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the export has failed: {done.stderr.strip()[-300:]}")
    if not bundles.read(graphs.bundle).manifest.variants[0].unpadded:
        raise RuntimeError("the exporter could not take the padding out of this encoder: nothing to compare")


def _padded(graphs: Graphs, source: Path) -> None:
    folder = graphs.folder / "fp32-padded"
    if folder.exists():
        return
    with TemporaryDirectory(dir=graphs.folder) as work, quiet():
        no_progress_bars()
        read = load(Settings(str(source)))
        backbone = to_onnx.states_graph(read, Path(work))
        head.graft_dense(backbone, read.head, read.dimensions, Path(work) / "made")
        (Path(work) / "made").rename(folder)


def _half(graphs: Graphs, name: str) -> None:
    folder = graphs.folder / name.replace("32", "16").replace(" ", "-")
    if folder.exists():
        return
    with TemporaryDirectory(dir=graphs.folder) as work:
        half.to_fp16(graphs.path(name), Path(work) / "made")
        (Path(work) / "made").rename(folder)


def _int8(graphs: Graphs) -> None:
    """The graph in a bundle, whose card says how near its vectors are to the encoder's, and nothing more."""
    if exported(graphs.int8_bundle):
        return
    first = bundles.read(graphs.bundle)
    manifest = first.manifest
    tokenizer = TokenizerFile(first.file(manifest.tokenizer).read_text("utf-8"), manifest.pad_id)
    collator = Collator(tokenizer, manifest.max_tokens)
    texts = sorted(data.mix("mixed", CALIBRATION), key=collator.count)
    batches = [collator(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    with TemporaryDirectory(dir=graphs.folder) as work:
        folder = Path(work) / "made"
        folder.mkdir()
        shutil.copy(first.file(manifest.tokenizer), folder / manifest.tokenizer.path)
        files = quantize.to_int8(graphs.path("fp32"), batches, folder / "int8")
        entries = tuple(write.entry(folder, path) for path in files)
        variant = BundleVariant(
            name="int8", precision="int8", inputs=to_onnx.inputs_of(files[0]),
            tensors=manifest.variants[0].tensors, unpadded=True, files=entries,
            report=_card(graphs, files[0]),
        )  # fmt: skip
        parts = SpaceParts(weights_sha256=entries[-1].sha256, structure=manifest.output.space_parts.structure)
        output = space.named(msgspec.structs.replace(manifest.output, space_parts=parts), manifest.inputs)
        tower = msgspec.structs.replace(manifest.towers[0], variants=(variant,))
        write.manifest(folder, msgspec.structs.replace(manifest, outputs=(output,), towers=(tower,)))
        graphs.int8_bundle.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(graphs.int8_bundle)


def _card(graphs: Graphs, graph: Path) -> cards.ReportCard:
    encoder = Encoder(graphs.bundle)
    ids = encoder.ids(data.mix("mixed", COMPARED))
    before, now = (Opened(path, CPU).vectors(encoder, ids, 1) for path in (graphs.path("fp32"), graph))
    together = Opened(graph, CPU).vectors(encoder, ids, BATCH)
    parity = cards.Parity(
        texts=len(ids),
        max_abs_diff=float(np.abs(now - before).max()),
        min_cosine=float(cosines(now, before).min()),
        batch_max_abs_diff=float(np.abs(together - now).max()),
    )
    return cards.ReportCard(parity=parity, speed=(), machine="")
