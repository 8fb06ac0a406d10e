"""SOURCE to Source: finds out which kind of source it is, and reads it."""

import re
from pathlib import Path

from trimtab.errors import ExportError
from trimtab_export.source import Settings, Source

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
GRAPHS = ("model.onnx", "onnx/model.onnx")
TORCH_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def load(settings: Settings) -> Source:
    """Read the source; ExportError, which names what is in the way, where it cannot be exported."""
    graph = find_graph(settings.source)
    if graph is not None:
        from trimtab_export.load import from_onnx

        return from_onnx.load(settings, graph, home_of(graph))
    if not Path(settings.source).exists() and not HUB_ID.fullmatch(settings.source):
        raise ExportError(
            f"{settings.source} does not exist, and is no id of the Hugging Face hub (owner/name) either"
        )
    from trimtab_export.load import from_torch

    return from_torch.load(settings)


def find_graph(source: str) -> Path | None:
    """The ONNX file that the source means; None for a source of torch weights."""
    path = Path(source)
    if path.suffix == ".onnx":
        if not path.is_file():
            raise ExportError(f"{source} is not a file")
        return path
    if path.is_file():
        raise ExportError(f"{source} is a file, but not an .onnx: give the encoder's folder")
    if any(next(path.glob(pattern), None) for pattern in TORCH_WEIGHTS):
        return None
    return next((path / name for name in GRAPHS if (path / name).is_file()), None)


def home_of(graph: Path) -> Path:
    """The folder with the graph's tokenizer.json: its own, or that above a folder called onnx."""
    homes = [
        graph.parent,
        *([graph.absolute().parent.parent] if graph.absolute().parent.name == "onnx" else []),
    ]
    for home in homes:
        if (home / "tokenizer.json").is_file():
            return home
    raise ExportError(f"there is no tokenizer.json beside {graph}: put the one of its source there")
