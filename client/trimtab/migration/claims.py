"""Checks that a store's vectors are of the space it claims, by embedding a sample of its texts again."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trimtab.core.answers import Encoder, EncoderOutput, Limits
from trimtab.core.options import Options
from trimtab.core.requests import unfit
from trimtab.errors import FailedPrecondition, InvalidArgument
from trimtab.kinds import Role, Truncate
from trimtab.migration.making import SAME_LENGTH, Making, cosines, same
from trimtab.sdk.client import Client
from trimtab.stores.base import DENSE, Document, Matrix, Rows, Store, Values
from trimtab.stores.columns import chosen
from trimtab.stores.ids import Id

SAMPLE = 64
# Another build of the encoder may have filled a store, and a few texts may have changed since.
CLAIMED_COSINE = 0.98


def bulk(encoder: Encoder, role: Role | None = None, truncate: Truncate = "end") -> Options:
    """The options for documents: low priority and, if the encoder may read queries otherwise, role passage by
    default."""
    alike = not (encoder.query_prompt or encoder.passage_prompt) and len(encoder.outputs) < 2
    if role is None and not alike:
        role = "passage"
    return Options(role=role, truncate=truncate, priority="bulk").pinned(encoder)


def check_source(
    client: Client, source: Store, texts: Mapping[Id, str] | None = None, *, sample: int = SAMPLE
) -> str:
    """Check that the source's vectors are of the space it claims, if its encoder is served.

    Embeds a sample of its texts again with that encoder. Returns a sentence about the result, and about
    whether the store compares these vectors as intended. Raises FailedPrecondition if the vectors differ, if
    most hold NaN, or if documents share ids.
    """
    check_sample(sample)
    source.check_ids()
    claimed = source.form.space
    rows = source.get(source.sample(sample))
    finite = np.asarray(np.isfinite(rows.vectors).all(axis=1), np.bool_)
    bad = int((~finite).sum())
    if 2 * bad > len(rows):
        raise FailedPrecondition(
            f"{source.name}: the vector of document {rows.ids[int(finite.argmin())]!r} holds NaN or "
            f"infinity, and {bad} of {len(rows)} sampled do; find out where they come from"
        )
    if claimed is None:
        return f"{source.name} does not name the space of its vectors, which were not checked"
    encoder = next((each for each in client.encoders() if claimed in _spaces(each)), None)
    if encoder is None:
        return f"no encoder of space {claimed} is served, so the vectors of {source.name} were not checked"
    places = _usable(rows, finite, texts, encoder.limits)
    if not places:
        return f"{source.name} is empty, or has no text that could be embedded again"
    rows = Rows([_told(rows.documents[place], texts) for place in places], rows.vectors[places])
    output = next((each for each in encoder.outputs if each.space == claimed), None)
    again = _dense(client, rows, bulk(encoder), "" if encoder.space == claimed or not output else output.name)
    if again.shape != rows.vectors.shape:
        raise FailedPrecondition(
            f"{source.name} claims space {claimed}, whose vectors have {again.shape[1]} dimensions, "
            f"and holds vectors of {rows.vectors.shape[1]}; correct its claim"
        )
    near = cosines(rows.vectors, again)
    if np.median(near) < CLAIMED_COSINE:
        raise FailedPrecondition(
            f"{source.name} claims space {claimed}, but {int((near < CLAIMED_COSINE).sum())} of "
            f"{len(near)} sampled vectors are not what {encoder.name} {encoder.version} makes of their "
            f"texts (median cosine {np.median(near):.3f}). Correct its claim; or were prompts left "
            "out when it was filled, or texts changed since?"
        )
    besides = f"; {bad} more hold NaN or infinity" if bad else ""
    ranked = _ranked(source, encoder, output, rows.vectors, again)
    return (
        f"{len(near)} sampled vectors of {source.name} are of the space it claims "
        f"(median cosine {np.median(near):.4f}){besides}{ranked}"
    )


def _spaces(encoder: Encoder) -> set[str]:
    """The spaces of an encoder's dense outputs."""
    return {output.space for output in encoder.outputs if output.form == DENSE} or {encoder.space}


def _dense(client: Client, rows: Rows, options: Options, output: str) -> Matrix:
    """The dense vectors of these texts: the encoder's first output, or the one that is named."""
    texts = [document.text or "" for document in rows.documents]
    found: Matrix = (
        client.embed_outputs(texts, [output], **options.values)[output]
        if output
        else client.embed(texts, **options.values)
    )
    return found


def _ranked(
    source: Store, encoder: Encoder, output: EncoderOutput | None, stored: Matrix, again: Matrix
) -> str:
    """Why the store's ranking differs from the encoder's similarity; "" if it does not.

    stored, again: (n, d). At length 1, cosine, dot product and Euclidean distance rank alike.
    """
    kept, meant = source.form.similarity, output.similarity if output else encoder.similarity
    lengths = np.linalg.norm(again, axis=1)
    ratio = float(np.median(np.linalg.norm(stored, axis=1) / np.where(lengths > 0, lengths, 1)))
    if kept != "cosine" and abs(ratio - 1) > SAME_LENGTH:
        return (
            f"; but they are {ratio:.3g} times as long as {encoder.name}'s, and similarity {kept}, by which "
            f"{source.name} ranks them, looks at lengths"
        )
    unit = bool((np.abs(lengths - 1) <= SAME_LENGTH).all())
    if kept != meant and not (unit and {kept, meant} <= {"cosine", "dot", "euclidean"}):
        return f"; but {source.name} compares them by {kept}, and {encoder.name}'s are made for {meant}"
    return ""


def verify(
    client: Client, store: Store, making: Making, options: Options, limits: Limits, sample: int = SAMPLE
) -> int:
    """Embed a sample of a store's texts again, and compare all outputs; returns how many texts were compared.

    Documents without a text, or with one that the server refuses, are skipped. FailedPrecondition if a
    document has another vector.
    """
    check_sample(sample)
    rows = store.get(store.sample(sample))
    places = _usable(rows, np.ones(len(rows), np.bool_), None, limits)
    rows = chosen(rows, places, store.outputs)
    wrong: list[Id] = []
    checked = 0
    for part, again in _embedded(client, store, rows, making, options):
        kept = {store.output: part.vectors, **part.others}
        alike = [same(kept[name], again[name], form) for name, form in store.outputs.items()]
        right = np.logical_and.reduce(alike)
        checked += len(right)
        wrong += [id for id, fine in zip(part.ids, right, strict=True) if not fine]
    if wrong:
        raise FailedPrecondition(
            f"{store.name}: {len(wrong)} of {checked} sampled vectors are not those of their texts, such as "
            f"that of document {wrong[0]!r}. Was it filled with other prompts, or by another program? "
            "Re-index into a store of another name"
        )
    return checked


def check_sample(sample: int) -> None:
    """InvalidArgument if a sample would verify nothing."""
    if sample < 1:
        raise InvalidArgument(f"sample is {sample}; give at least 1, so that something is verified")


def _told(document: Document, texts: Mapping[Id, str] | None) -> Document:
    """A document with its text from `texts`, if given."""
    return document if texts is None else Document(document.id, texts.get(document.id))


def _usable(
    rows: Rows, sound: NDArray[np.bool_], texts: Mapping[Id, str] | None, limits: Limits
) -> list[int]:
    """The sound rows whose texts can be embedded; those are from `texts`, if given."""
    return [
        place
        for place in np.flatnonzero(sound).tolist()
        if not unfit(_told(rows.documents[place], texts).text, limits)
    ]


def _embedded(
    client: Client, store: Store, rows: Rows, making: Making, options: Options
) -> list[tuple[Rows, dict[str, Values]]]:
    """The rows with what the encoder makes of their texts, without those that the server refuses."""
    if not len(rows):
        return []
    try:
        return [(rows, making.embed(client, [document.text or "" for document in rows.documents], options))]
    except InvalidArgument:  # for example with truncate none, if another document is too long
        if len(rows) == 1:
            return []
        half = len(rows) // 2
        cuts = (range(half), range(half, len(rows)))
        parts = (chosen(rows, cut, store.outputs) for cut in cuts)
        return [found for part in parts for found in _embedded(client, store, part, making, options)]
