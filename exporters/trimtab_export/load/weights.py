"""The digest of an encoder's weights, a part of its space's name: the same for every export of them."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import ExportError
from trimtab_export.source import Dense, Graph, Head

# Buffers that only count positions or repeat zeros, and a pooler that no token state passes through (random
# if the checkpoint lacks it): none of them affects a vector.
IDLE_SUFFIXES = ("position_ids", "token_type_ids")
IDLE_PREFIX = "pooler."


def is_idle(name: str) -> bool:
    """Whether a tensor of a backbone's state does not affect its token states."""
    return name.startswith(IDLE_PREFIX) or name.endswith(IDLE_SUFFIXES)


def check_finite(backbone: Any) -> None:
    """Refuse a torch backbone with NaN or infinite weights, naming the first one."""
    if backbone is None or isinstance(
        backbone, Graph
    ):  # the comparison with the source will catch their effect
        return
    for name, tensor in backbone.state_dict().items():
        if not is_idle(name) and tensor.is_floating_point() and not tensor.isfinite().all():
            raise ExportError(
                f"the weight {name} of the source holds NaN or infinity: the checkpoint is broken, or was "
                "trained until it was"
            )


def of_torch(backbone: Any, head: Head) -> str:
    """SHA-256 of a torch backbone's state and of the layers after its pooling, as hexadecimal digits."""
    return of_state(backbone, _layers(head))


def of_state(backbone: Any, arrays: Iterable[tuple[str, NDArray[Any]]]) -> str:
    """SHA-256 of a torch backbone's state and of named arrays of what comes after it."""
    state = ((name, tensor) for name, tensor in backbone.state_dict().items() if not is_idle(name))
    return digest([*((f"backbone.{name}", tensor.numpy()) for name, tensor in state), *arrays])


def of_arrays(arrays: Iterable[NDArray[Any]], head: Head) -> str:
    """SHA-256 of a graph's initializers, whatever their names, and of the layers after the pooling."""
    graph = sorted(digest([("", array)]) for array in arrays)
    return hashlib.sha256(" ".join([*graph, digest(_layers(head))]).encode()).hexdigest()


def digest(entries: Iterable[tuple[str, NDArray[Any]]]) -> str:
    """SHA-256 over name, dtype, shape and little-endian bytes of each array, in order of the names."""
    sha256 = hashlib.sha256()
    for name, array in sorted(entries, key=lambda entry: entry[0]):
        sha256.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        sha256.update(little.data if little.size else b"")
    return sha256.hexdigest()


def _layers(head: Head) -> Iterable[tuple[str, NDArray[Any]]]:
    """The layers as named arrays; a layer's settings are part of the name.

    A final Normalize is left out: the space's digest covers it separately.
    """
    layers = head.layers[:-1] if head.normalizes else head.layers
    for number, layer in enumerate(layers):
        if isinstance(layer, Dense):
            yield f"layer{number}.Dense.{layer.activation}.weight", layer.weight
            if layer.bias is not None:
                yield f"layer{number}.Dense.{layer.activation}.bias", layer.bias
        else:
            yield f"layer{number}.Normalize", np.zeros(0, dtype=np.float32)
