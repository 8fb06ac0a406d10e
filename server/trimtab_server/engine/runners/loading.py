"""Reads models and opens them in ONNX Runtime: their files are read once, checked, and passed on as memory.

What runs is what was hashed, even if the files are overwritten afterwards, and a graph can read no file that
its manifest does not name.
"""

import shutil
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import Any

import onnxruntime as ort

from trimtab.artifacts import reading, tensorrt
from trimtab_server.engine.batch import HashedFile, Model

# A folder that cannot exist, where ONNX Runtime looks for files that it was not given.
NOWHERE = "/dev/null/nowhere"
TENSORRT = "TensorrtExecutionProvider"


def open_session(
    model: Model, options: ort.SessionOptions, providers: Sequence[str], index: int
) -> ort.InferenceSession:
    """A session with these providers.

    Raises reading.UnreadableError if a file is not what the manifest says, and whatever ONNX Runtime raises.
    """
    if TENSORRT in providers:
        return _in_a_folder(model, options, providers, index)
    settings = [_provider(model, name, index, None) for name in providers]
    return in_memory(*contents(model), options, settings)


def contents(model: Model) -> tuple[bytearray, dict[str, bytearray]]:
    """A graph, and its external data by the graph's names for it.

    Raises reading.UnreadableError if a file is not what the manifest says.
    """
    first, *rest = model.files
    beside = PurePosixPath(first.path).parent
    names = [PurePosixPath(file.path).relative_to(beside).as_posix() for file in rest]
    data = {name: _content(model, file) for name, file in zip(names, rest, strict=True)}
    return _content(model, first), data


def _in_a_folder(
    model: Model, options: ort.SessionOptions, providers: Sequence[str], index: int
) -> ort.InferenceSession:
    """A session of files in a temporary folder, which is deleted with it.

    TensorRT finds engines by the name of the graph's file, reads them at any time, and may write some.
    """
    home = Path(mkdtemp(prefix="trimtab-"))
    try:
        for file in (*model.files, *model.engines):
            path = home / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_content(model, file))
        graph = home / model.files[0].path
        settings = [_provider(model, name, index, graph) for name in providers]
        session = ort.InferenceSession(graph, options, providers=settings)
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    weakref.finalize(session, shutil.rmtree, home, ignore_errors=True)
    return session


def in_memory(
    graph: bytearray, data: Mapping[str, bytearray], options: ort.SessionOptions, providers: Sequence[Any]
) -> ort.InferenceSession:
    """A session of a graph whose external data is `data`, by the graph's names for it, and which reads no
    files.

    ONNX Runtime copies both, so the arguments may be freed.
    """
    if data:
        options.add_external_initializers_from_files_in_memory(
            list(data), list(data.values()), [len(each) for each in data.values()]
        )
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", NOWHERE)
    return ort.InferenceSession(bytes(graph), options, providers=providers)


def _content(model: Model, file: HashedFile) -> bytearray:
    return reading.content(model.folder, file.path, file.size, file.sha256)


def _provider(model: Model, name: str, index: int, copied: Path | None) -> Any:
    """A provider with its options; TensorRT's name the engines that came with the bundle.

    `copied` is the graph's path in TensorRT's temporary folder.
    """
    if name == "CPUExecutionProvider":
        return name
    if name != TENSORRT or copied is None:
        return name, {"device_id": str(index)}
    engines = copied.with_name(tensorrt.FOLDER) if model.engines else None
    return name, tensorrt.options(model.input.names, model.most_units, model.precision, engines, index)
