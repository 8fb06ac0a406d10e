"""Turns the argument SOURCE into a Source: finds out what kind of source it is, and reads it."""

import re
from pathlib import Path

from trimtab.errors import ExportError
from trimtab_export.runtime import first_line
from trimtab_export.source import Settings, Source

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
GRAPHS = ("model.onnx", "onnx/model.onnx")
TORCH_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def load(settings: Settings) -> Source:
    """Read the source; ExportError, naming the obstacle, if it cannot be exported."""
    try:
        return _load(settings)
    except ExportError:
        raise
    except Exception as error:  # whatever the libraries raise, show the user its first line
        raise ExportError(f"{settings.source} cannot be loaded: {first_line(error)}") from error


def _load(settings: Settings) -> Source:
    path = Path(settings.source)
    if path.is_file() and path.suffix != ".onnx":
        raise ExportError(f"{settings.source} is not an .onnx file: give the encoder's folder")
    if path.suffix == ".onnx" and not path.is_file():
        raise ExportError(f"{settings.source} is not a file")
    if not path.exists() and not HUB_ID.fullmatch(settings.source):
        raise ExportError(
            f"{settings.source} does not exist, and is not a Hugging Face hub id (owner/name) either"
        )
    from trimtab_export.load import colbert, declared, refused, reranker, splade

    home = home_of(path) if path.is_file() else path
    location = str(home) if path.exists() else settings.source
    if not path.is_file() and (splade.is_one(location) or _wants_sparse(settings, location)):
        from trimtab_export.load import from_splade

        return from_splade.load(settings, location, splade.read(location))
    if settings.top_k is not None or settings.stop_tokens or settings.role is not None:
        raise ExportError(
            "--top-k, --stop-token and --role are for sparse vectors by a masked language model's head, and "
            f"{settings.source} is not read as one: leave them out, or give --also sparse and the folder of "
            "the whole model (...ForMaskedLM)"
        )
    late = colbert.read(location)
    if late is not None:
        refused.check(location, late.declared)
        from trimtab_export.load import from_colbert

        return from_colbert.load(settings, late)
    if reranker.is_one(location):
        return reranker.load(settings, location, path if path.is_file() else find_graph(path, ""))
    says = declared.read(location)
    refused.check(location, says)
    graph = path if path.is_file() else find_graph(path, says.transformer_folder if says else "")
    if graph is not None:
        from trimtab_export.load import from_onnx

        return from_onnx.load(settings, graph, home, says)
    if settings.output is not None:
        raise ExportError(f"--output names an output of a graph, and {settings.source} has torch weights")
    from trimtab_export.load import bge_m3, from_torch

    if bge_m3.is_one(location):
        return bge_m3.load(settings, location, says)
    return from_torch.load(settings, says)


def _wants_sparse(settings: Settings, location: str) -> bool:
    """Whether sparse vectors are to be made of a folder that declares no modules."""
    from trimtab_export.load import files

    return "sparse" in settings.also and files.find(location, "modules.json") is None


def find_graph(folder: Path, transformer: str) -> Path | None:
    """The ONNX file of a folder; None if it has torch weights, which take precedence as in the library.

    Args:
        transformer: the subfolder of the weights, by modules.json.
    """
    homes = (folder / transformer, folder)
    if any(next(home.glob(pattern), None) for home in homes for pattern in TORCH_WEIGHTS):
        return None
    return next((home / name for home in homes for name in GRAPHS if (home / name).is_file()), None)


def home_of(graph: Path) -> Path:
    """The folder with the graph's other files: its own, or the parent of a folder called onnx."""
    own = graph.absolute().parent
    homes = [own.parent, own] if own.name == "onnx" else [own]
    # A modules.json covers everything below it. Without one, the nearest tokenizer belongs to the graph.
    declaring = [home for home in homes if (home / "modules.json").is_file()]
    return (declaring or [home for home in reversed(homes) if (home / "tokenizer.json").is_file()] or [own])[
        0
    ]
