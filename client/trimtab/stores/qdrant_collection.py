"""A Qdrant collection: how it is made, what it says of its vectors, and how each kind of output looks there.

Dense and multi-vectors are vectors of the collection, sparse ones have a list of their own. A collection of a
single output keeps it without a name, unless the address gives one. With more outputs, each vector has its
output's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.errors import ConfigError, FailedPrecondition, NotFound
from trimtab.kinds import Similarity
from trimtab.stores import catalogue
from trimtab.stores.base import DENSE, Form
from trimtab.stores.checks import space_of

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_SPACE, _OUTPUTS = "trimtab_space", "trimtab_outputs"  # keys of the collection's metadata
_DISTANCES: dict[str, Similarity] = {
    "Cosine": "cosine",
    "Dot": "dot",
    "Euclid": "euclidean",
    "Manhattan": "manhattan",
}


@dataclass(frozen=True, slots=True)
class Described:
    """What a collection says of its vectors.

    vectors: the name of each output's vector, the first output first; "" for a vector without a name.
    outputs: their forms. beside: what else there is.
    """

    vectors: Mapping[str, str]
    outputs: Mapping[str, Form]
    beside: list[str]


def create(
    client: "QdrantClient", collection: str, store: str, outputs: Mapping[str, Form], using: str | None
) -> None:
    """Make the collection. using: the first vector's name, if the address gives one."""
    from qdrant_client import models

    first = next(iter(outputs))
    names = {name: name for name in outputs}
    if len(outputs) == 1 or using is not None:
        names[first] = using or ""
    if len(set(names.values())) < len(names):
        raise ConfigError(f"{store}: vector={using} is the name of another output; name another")
    dense = {names[name]: _parameters(form) for name, form in outputs.items() if form.kind != "sparse"}
    sparse = {name: models.SparseVectorParams() for name, form in outputs.items() if form.kind == "sparse"}
    recorded = catalogue.record(outputs)
    metadata = {_SPACE: outputs[first].space, **({_OUTPUTS: recorded} if recorded else {})}
    client.create_collection(
        collection,
        vectors_config=dense.get("", dense),
        sparse_vectors_config=sparse or None,
        metadata=metadata,
    )
    if _metadata(client.get_collection(collection)) != metadata:
        client.delete_collection(collection)
        raise FailedPrecondition(
            f"{store}: this Qdrant keeps no metadata of a collection, and so cannot name the space "
            "of its vectors; use 1.16 or later"
        )


def describe(
    client: "QdrantClient", collection: str, store: str, using: str | None, claimed: str | None
) -> Described:
    """What the collection says.

    using, claimed: the first vector's name and space, if the address gives them.
    """
    if not client.collection_exists(collection):
        raise NotFound(f"{store} does not exist")
    told = client.get_collection(collection)
    recorded = catalogue.read(_metadata(told).get(_OUTPUTS), store)
    first, *others = recorded or [DENSE]
    vectors, there = told.config.params.vectors, _parts(told)
    if isinstance(vectors, dict) and using is None and len(recorded) > 1:
        using = first
    if isinstance(vectors, dict):
        if using not in vectors:
            names = ", ".join(sorted(vectors)) or "none"
            raise ConfigError(f"{store} has named vectors ({names}); say which: #{collection}?vector=NAME")
    elif using is not None:
        raise ConfigError(f"{store} has no named vectors; leave out vector={using}")
    form = there[using or ""]
    if form is None or form.kind != DENSE:
        raise ConfigError(
            f"{store} keeps several vectors a point, or vectors of whole numbers (uint8); "
            "Trimtab needs one vector of floats a document"
        )
    for name in others:
        if (found := there.get(name)) is None or not _same(found, recorded[name]):
            raise ConfigError(
                f"{store} records the output {name!r}, and has no such vector: was it replaced?"
            )
    space = space_of(_metadata(told).get(_SPACE), claimed, store)
    indexes = [f"the payload index on {key}" for key in sorted(told.payload_schema)]
    return Described(
        vectors={first: using or "", **{name: name for name in others}},
        outputs={
            first: Form(space=space, dimensions=form.dimensions, similarity=form.similarity),
            **{name: recorded[name] for name in others},
        },
        beside=[*(name for name in there if name not in {using or "", *others}), *indexes],
    )


def written(form: Form, item: Any) -> Any:
    """A document's value, as a point has it."""
    from qdrant_client import models

    if form.kind != "sparse":
        return item.tolist()
    return models.SparseVector(indices=item[0].tolist(), values=item[1].tolist())


def read(form: Form, found: Any) -> Any:
    """The value of a point, for `Column.assembled`; None if it has none."""
    if not found:
        return None
    return (found.indices, found.values) if form.kind == "sparse" else found


def _parameters(form: Form) -> Any:
    from qdrant_client import models

    several = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    # Multi-vectors are compared by their products as they are: for rows of length 1, these are cosines.
    similarity = form.similarity if form.kind == DENSE else "dot"
    distance = next(name for name, known in _DISTANCES.items() if known == similarity)
    return models.VectorParams(
        size=form.dimensions,
        distance=models.Distance(distance),
        multivector_config=None if form.kind == DENSE else several,
    )


def _parts(told: Any) -> dict[str, Form | None]:
    """The forms of all vectors by name, without spaces; None for vectors that Trimtab cannot use."""
    from qdrant_client import models

    parameters = told.config.params.vectors
    named = parameters if isinstance(parameters, dict) else {"": parameters}
    found: dict[str, Form | None] = {}
    for name, each in named.items():
        usable = each.datatype != models.Datatype.UINT8
        kind = DENSE if each.multivector_config is None else "multi_vector"
        similarity = _DISTANCES[each.distance.value]
        form = Form(space=None, dimensions=each.size, similarity=similarity, kind=kind)
        found[name] = form if usable else None
    for name in sorted(told.config.params.sparse_vectors or {}):
        found[name] = Form(space=None, dimensions=0, similarity="dot", kind="sparse")
    return found


def _same(found: Form, recorded: Form) -> bool:
    """Whether a vector of this form can be the output that is recorded.

    Qdrant knows no dimensions of sparse vectors.
    """
    sized = found.kind == "sparse" or found.dimensions == recorded.dimensions
    compared = found.kind != DENSE or found.similarity == recorded.similarity  # others: by products
    return found.kind == recorded.kind and sized and compared


def _metadata(told: Any) -> dict[str, Any]:
    return told.config.metadata or {}
