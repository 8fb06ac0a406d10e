"""A server with an old and a new encoder and an adapter between them, and stores of either."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import trimtab
from tests import adapters_made as made
from tests.server.server_process import serve
from trimtab.stores import Document, Form, Id, Rows, create_store

OLD = Form(space="the-old-space", dimensions=16)


class World:
    """Where the server is, and the names of its encoders."""

    def __init__(self, url: str, old: str, new: str) -> None:
        self.url, self.old, self.new = url, old, new


@contextlib.contextmanager
def two_encoders(minilm_repository: Path, folder: Path) -> Iterator[World]:
    """The old vectors are the new ones, turned and cut to 64 dimensions.

    So an adapter for them is exact, and yet scores of the two spaces differ.
    """
    repository = folder / "repository"
    new = made.copied(minilm_repository / "all-minilm-l6-v2" / "1", repository)
    matrix = made.rotation(new.manifest.dimensions, 64, seed=1)
    old = made.turned(new, repository, "turned", matrix)
    made.adapter(repository, "to-old", made.end(new.manifest), made.end(old.manifest), made.linear(matrix))
    with serve(repository, folder) as server:
        yield World(server.url, "turned", new.manifest.name)


def form_of(client: trimtab.Client, name: str) -> Form:
    """The form of a store for an encoder's vectors."""
    encoder = client.encoder(name)
    return Form(space=encoder.space, dimensions=encoder.dimensions)


def fill(
    url: str,
    ids: Sequence[Id],
    texts: Sequence[str],
    form: Form = OLD,
    vectors: np.ndarray | None = None,
) -> None:
    """Make a store of documents; without vectors, of random ones."""
    if vectors is None:
        vectors = np.random.default_rng(0).standard_normal((len(ids), form.dimensions)).astype(np.float32)
    documents = [Document(id, text) for id, text in zip(ids, texts, strict=True)]
    with create_store(url, form, example=ids[0]) as store:
        store.upsert(Rows(documents, vectors))


def halves(world: World, folder: Path) -> None:
    """faiss:old with three documents in `folder`, and faiss:new with one of them."""
    texts = ["a trim tab cancels drift", "so nobody has to hold the wheel", "the cat sat on the mat"]
    with trimtab.Client(world.url, timeout=100) as client:
        for name, encoder, count in (("old", world.old, 3), ("new", world.new, 1)):
            vectors = client.embed(texts[:count], encoder=encoder)
            fill(f"faiss:{folder / name}", range(count), texts[:count], form_of(client, encoder), vectors)
