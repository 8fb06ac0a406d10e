"""A repository with three encoders that lead to one another, and adapters of every fate."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from tests import adapters_made as made
from tests.server.server_process import NAME
from trimtab.artifacts.adapter import Endpoint
from trimtab.artifacts.bundle import Bundle

GONE = "deadbeefdeadbeef"  # the space of an encoder that the repository does not have any more
BY_STATES = "feedfacefeedface"
GROUPED = "0123456789abcdef"
REFUSED, STAYING = "aaaa000000000000", "bbbb000000000000"
OTHER_FINGERPRINT = "cccc000000000000"
TAMPERED = "dddd000000000000"


@dataclass(frozen=True)
class Spaces:
    """What is in the repository: v3 is the real encoder, v2 and v1 are turned from it."""

    repository: Path
    v3: Bundle
    v2: Bundle  # "turned", 256 dimensions
    v1: Bundle  # "older", 128 dimensions
    to_v2: np.ndarray
    to_v1: np.ndarray
    by_states: np.ndarray
    shifts: np.ndarray

    @property
    def space(self) -> str:
        """The real encoder's own."""
        return self.v3.manifest.space


def make(minilm_repository: Path, repository: Path) -> Spaces:
    """The encoders, and every adapter but that of inner states."""
    v3 = made.copied(minilm_repository / NAME / "1", repository)
    to_v2, to_v1 = made.rotation(384, 256, 1), made.rotation(256, 128, 2)
    v2 = made.turned(v3, repository, "turned", to_v2)
    v1 = made.turned(v2, repository, "older", to_v1)
    rng = np.random.default_rng(5)
    states = v3.manifest.variants[0].states
    assert states is not None
    spaces = Spaces(
        repository, v3, v2, v1, to_v2, to_v1,
        by_states=rng.normal(size=(384 + states.width, 32)).astype(np.float32),
        shifts=np.concatenate([np.zeros((1, 384)), rng.normal(size=(2, 384))]).astype(np.float32) / 8,
    )  # fmt: skip
    new, turned, older = (made.end(each.manifest) for each in (v3, v2, v1))
    made.adapter(repository, "to-turned", new, turned, made.linear(to_v2))
    made.adapter(repository, "to-older", turned, older, made.linear(to_v1), verdict="cascade")
    made.adapter(repository, "to-gone", new, gone(), made.linear(np.eye(384)), provisional=True)
    made.adapter(
        repository, "grouped", new, gone(space=GROUPED), made.linear(np.eye(384), spaces.shifts),
        groups=("de", "fr"),
    )  # fmt: skip
    for name, space, verdict in (("refused", REFUSED, "re-index"), ("staying", STAYING, "stay")):
        made.adapter(
            repository, name, new, gone(space=space), made.linear(np.eye(384)), verdict=verdict,
            reasons=("Recall@10 fell to .31", "50 texts are too few"),
        )  # fmt: skip
    # Fitted for another export under the same name and version.
    other = made.end(v3.manifest, space=OTHER_FINGERPRINT)
    made.adapter(repository, "misfit", other, gone(space=OTHER_FINGERPRINT[::-1]), made.linear(np.eye(384)))
    tampered = made.adapter(repository, "tampered", new, gone(space=TAMPERED), made.linear(np.eye(384)))
    graph = tampered / "adapter.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x00")
    return spaces


def add_states_adapter(spaces: Spaces, name: str = "by-states") -> None:
    """An adapter that reads inner states appears."""
    made.adapter(
        spaces.repository, name, made.end(spaces.v3.manifest), gone(space=BY_STATES, dimensions=32),
        made.linear(spaces.by_states), reads="states",
    )  # fmt: skip


def gone(space: str = GONE, dimensions: int = 384) -> Endpoint:
    """An end of which there is no encoder any more."""
    return Endpoint(encoder="gone", version=7, space=space, dimensions=dimensions)


def states_rows(spaces: Spaces, texts: list[str]) -> np.ndarray:
    """The rows of the graph with inner states, one text at a time, by ONNX Runtime alone."""
    import tokenizers

    manifest = spaces.v3.manifest
    states = manifest.variants[0].states
    assert states is not None
    session = ort.InferenceSession(spaces.v3.file(states.file), providers=["CPUExecutionProvider"])
    tokenizer = tokenizers.Tokenizer.from_file(str(spaces.v3.file(manifest.tokenizer)))
    tokenizer.enable_truncation(manifest.max_tokens)
    rows = []
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        rows.append(session.run(["embeddings"], {k: feeds[k] for k in manifest.variants[0].inputs})[0][0])
    return np.array(rows)


def unit(rows: np.ndarray) -> np.ndarray:
    """Brought to length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
