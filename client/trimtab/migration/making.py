"""What an encoder makes of documents for a store: dense vectors, and other outputs that the store keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.core.answers import Encoder, EncoderOutput
from trimtab.core.options import Options
from trimtab.errors import FailedPrecondition, NotFound
from trimtab.kinds import Similarity
from trimtab.sdk.client import Client
from trimtab.stores.base import DENSE, KINDS, Form, Kind, Matrix, Store, Values
from trimtab.stores.checks import check_outputs
from trimtab.stores.columns import column, similarity_of
from trimtab.values.similarity import normalised

# The same text by the same encoder on any device: fp16 storage costs about 1e-6.
SAME_COSINE = 0.999
SAME_LENGTH = 0.01


def target_outputs(
    encoder: Encoder, names: Sequence[str] | None = None, kinds: Sequence[Kind] = KINDS
) -> dict[str, Form]:
    """The forms of a store for an encoder's outputs, by their names, a dense one first.

    names: which of them; by default all of these kinds. NotFound if the encoder lacks one, FailedPrecondition
    if none is dense.
    """
    given = {output.name: output for output in encoder.outputs} or {DENSE: _only(encoder)}
    for name in names or ():
        if name not in given:
            raise NotFound(
                f"{encoder.name} {encoder.version} has no output {name!r}; it has {', '.join(given)}"
            )
    chosen = [output for output in given.values() if output.form in kinds] if names is None else [
        given[name] for name in names
    ]  # fmt: skip
    forms = {output.name: _form(output) for output in chosen}
    if not any(form.kind == DENSE for form in forms.values()):
        all_given = ", ".join(f"{output.name} ({output.form})" for output in given.values())
        raise FailedPrecondition(
            f"a store keeps dense vectors first, and of {encoder.name} {encoder.version} it would get "
            f"{', '.join(forms) or 'none'}; it gives {all_given}"
        )
    return dict(sorted(forms.items(), key=lambda named: named[1].kind != DENSE))


def _only(encoder: Encoder) -> EncoderOutput:
    """The output of an encoder whose server names none."""
    return EncoderOutput(
        name=DENSE,
        kind=DENSE,
        form=DENSE,
        space=encoder.space,
        dimensions=encoder.dimensions,
        similarity=encoder.similarity,
        normalized=encoder.normalized,
    )


def _form(output: EncoderOutput) -> Form:
    kind = next((known for known in KINDS if known == output.form), None)
    if kind is None:
        raise FailedPrecondition(
            f"no store keeps the output {output.name!r}, which is {output.form}; leave it out"
        )
    similarity = similarity_of(kind, output.similarity)
    if similarity is None:
        raise FailedPrecondition(
            f"the output {output.name!r}, which is {output.form}, is compared by {output.similarity}, as no "
            "store does; leave it out"
        )
    return Form(space=output.space, dimensions=output.dimensions, similarity=similarity, kind=kind)


@dataclass(frozen=True, slots=True)
class Making:
    """How one version of an encoder makes what a store keeps.

    store: its name. forms: of its outputs. names: the encoder's name of each. first: whether that is only
    what it gives if no output is named, so that streams and `embed` give it.
    """

    store: str
    forms: Mapping[str, Form]
    names: Mapping[str, str]
    first: bool

    @classmethod
    def of(cls, encoder: Encoder, store: Store) -> "Making":
        """For all outputs of a store; FailedPrecondition if they are not this encoder's."""
        first, *others = wanted = outputs_for(encoder, store)
        given = target_outputs(encoder, wanted)
        check_outputs(store, {name: given[name] for name in wanted})
        names = {store.output: first, **{name: name for name in others}}
        return cls(
            store.name, store.outputs, names, not store.others and _gives(encoder) == names[store.output]
        )

    def embed(self, client: Client, texts: Sequence[str], options: Options) -> dict[str, Values]:
        """The values of each output, by the store's names."""
        if self.first:
            return {name: client.embed(texts, **options.values) for name in self.names}
        found = client.embed_outputs(texts, list(self.names.values()), **options.values)
        self.check(
            found.encoder, found.version, {name: found.spaces[self.names[name]] for name in self.names}
        )
        return {name: found[theirs] for name, theirs in self.names.items()}

    def check(self, encoder: str, version: str, spaces: Mapping[str, str]) -> None:
        """FailedPrecondition if vectors are of other spaces by now than those that the store keeps."""
        for name, space in spaces.items():
            if space != self.forms[name].space:
                raise FailedPrecondition(
                    f"{encoder} {version} makes vectors of space {space} by now, and {self.store} holds "
                    f"those of space {self.forms[name].space}; name another store"
                )


def same(left: Values, right: Values, form: Form) -> NDArray[np.bool_]:
    """Which items of two values are the same, within the error of storage and devices: (n,)."""
    if form.kind == DENSE:
        return same_rows(left, right, form.similarity)  # type: ignore[arg-type]
    kept = column(form)
    pairs = zip(kept.items(left), kept.items(kept.plain(right)), strict=True)
    alike = _same_sparse if form.kind == "sparse" else _same_rows_of_one
    return np.array([alike(mine, theirs, form.similarity) for mine, theirs in pairs], np.bool_)


def same_rows(left: Matrix, right: Matrix, similarity: Similarity) -> NDArray[np.bool_]:
    """Which rows hold the same vector."""
    found: NDArray[np.bool_] = cosines(left, right) >= SAME_COSINE
    if similarity != "cosine":  # for cosine, a store may keep directions only
        lengths = np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
        found &= np.abs(lengths - 1) <= SAME_LENGTH
    return found


def cosines(left: Matrix, right: Matrix) -> NDArray[np.float32]:
    """The cosine of each row of one matrix with that of the other: (n,)."""
    found: NDArray[np.float32] = (normalised(left) * normalised(right)).sum(axis=1)
    return found


def _same_sparse(left: Any, right: Any, similarity: Similarity) -> bool:
    places = np.union1d(left[0], right[0])
    if not len(places):
        return True
    pair = np.zeros((2, len(places)), np.float32)
    for row, (indices, numbers) in zip(pair, (left, right), strict=True):
        row[np.searchsorted(places, indices)] = numbers
    if not pair.any(axis=1).all():
        return False
    return bool(same_rows(pair[:1], pair[1:], similarity).all())


def _same_rows_of_one(left: Matrix, right: Matrix, similarity: Similarity) -> bool:
    return left.shape == right.shape and bool(same_rows(left, right, similarity).all())


def _gives(encoder: Encoder) -> str:
    """The output that an encoder gives if none is named."""
    return encoder.outputs[0].name if encoder.outputs else DENSE


def outputs_for(encoder: Encoder, store: Store) -> list[str]:
    """An encoder's names of what a store keeps: for its first output, the one of its space, or else the first
    dense one; the others have the same names."""
    dense = [output for output in encoder.outputs if output.form == DENSE]
    same_space = [output.name for output in dense if output.space == store.form.space]
    return [next(iter([*same_space, *(output.name for output in dense), DENSE])), *store.others]
