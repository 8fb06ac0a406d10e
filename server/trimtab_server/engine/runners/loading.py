"""From a model to a session of ONNX Runtime's: its files are read once, checked, and given over as memory.

What runs is what was hashed, whatever is copied over the files afterwards, and a graph reads no file that its
manifest does not name.
"""

import shutil
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import Any

import onnxruntime as ort

from trimtab.artifacts import reading, tensorrt
from trimtab_server.engine.batch import Model, Stored

# A folder that nobody can make, where ONNX Runtime looks for what it was not given.
NOWHERE = "/dev/null/nowhere"
TENSORRT = "TensorrtExecutionProvider"


def open_session(
    model: Model, options: ort.SessionOptions, providers: Sequence[str], index: int
) -> ort.InferenceSession:
    """A session by these providers.

    Raises reading.UnreadableError where a file is not what the manifest says, and what ONNX Runtime raises.
    """
    if TENSORRT in providers:
        return _in_a_folder(model, options, providers, index)
    first, *rest = model.files
    beside = PurePosixPath(first.path).parent
    names = [PurePosixPath(file.path).relative_to(beside).as_posix() for file in rest]
    data = {name: _content(model, file) for name, file in zip(names, rest, strict=True)}
    settings = [_provider(model, name, index, None) for name in providers]
    return in_memory(_content(model, first), data, options, settings)


def _in_a_folder(
    model: Model, options: ort.SessionOptions, providers: Sequence[str], index: int
) -> ort.InferenceSession:
    """A session of files in a folder of its own, which goes with it.

    TensorRT finds engines by the name of the graph's file, reads them when it likes, and may write some.
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
    """A session of a graph whose external data is `data`, by the graph's names for it, and nothing else.

    ONNX Runtime copies both: the memory of the arguments may go.
    """
    if data:
        options.add_external_initializers_from_files_in_memory(
            list(data), list(data.values()), [len(each) for each in data.values()]
        )
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", NOWHERE)
    return ort.InferenceSession(bytes(graph), options, providers=providers)


def _content(model: Model, file: Stored) -> bytearray:
    return reading.content(model.folder, file.path, file.size, file.sha256)


def _provider(model: Model, name: str, index: int, copied: Path | None) -> Any:
    """How a provider is asked for; TensorRT's is told of the engines that came with the bundle.

    `copied` is where the graph lies in TensorRT's own folder.
    """
    if name == "CPUExecutionProvider":
        return name
    if name != TENSORRT or copied is None:
        return name, {"device_id": str(index)}
    engines = copied.with_name(tensorrt.FOLDER) if model.engines else None
    return name, tensorrt.options(model.input.names, model.most_units, model.precision, engines, index)
