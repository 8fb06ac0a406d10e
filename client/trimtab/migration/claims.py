"""Checks that a store's vectors are of the space it claims, by embedding a sample of its texts again."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trimtab.core.answers import Encoder, Limits
from trimtab.core.options import Options
from trimtab.core.requests import unfit
from trimtab.errors import FailedPrecondition, InvalidArgument
from trimtab.kinds import Role, Similarity, Truncate
from trimtab.sdk.client import Client
from trimtab.stores.base import Document, Matrix, Rows, Store
from trimtab.stores.ids import Id
from trimtab.values.similarity import normalised

SAMPLE = 64
# The same text by the same encoder on any device: fp16 storage costs about 1e-6.
SAME_COSINE = 0.999
SAME_LENGTH = 0.01
# Another build of the encoder may have filled a store, and a few texts may have changed since.
CLAIMED_COSINE = 0.98


def bulk(encoder: Encoder, role: Role | None = None, truncate: Truncate = "end") -> Options:
    """The options for documents: low priority and, if the encoder has prompts, role passage by default."""
    if role is None and (encoder.query_prompt or encoder.passage_prompt):
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
    encoder = next((each for each in client.encoders() if each.space == claimed), None)
    if encoder is None:
        return f"no encoder of space {claimed} is served, so the vectors of {source.name} were not checked"
    rows = _with_texts(rows, finite, texts, encoder.limits)
    if not len(rows):
        return f"{source.name} is empty, or has no text that could be embedded again"
    again = client.embed([document.text or "" for document in rows.documents], **bulk(encoder).values)
    if again.shape != rows.vectors.shape:
        raise FailedPrecondition(
            f"{source.name} claims space {claimed}, whose vectors have {again.shape[1]} dimensions, "
            f"and holds vectors of {rows.vectors.shape[1]}; correct its claim"
        )
    cosines = _cosines(rows.vectors, again)
    if np.median(cosines) < CLAIMED_COSINE:
        raise FailedPrecondition(
            f"{source.name} claims space {claimed}, but {int((cosines < CLAIMED_COSINE).sum())} of "
            f"{len(cosines)} sampled vectors are not what {encoder.name} {encoder.version} makes of their "
            f"texts (median cosine {np.median(cosines):.3f}). Correct its claim; or were prompts left "
            "out when it was filled, or texts changed since?"
        )
    besides = f"; {bad} more hold NaN or infinity" if bad else ""
    return (
        f"{len(cosines)} sampled vectors of {source.name} are of the space it claims "
        f"(median cosine {np.median(cosines):.4f}){besides}{_ranked(source, encoder, rows.vectors, again)}"
    )


def _ranked(source: Store, encoder: Encoder, stored: Matrix, again: Matrix) -> str:
    """Why the store's ranking differs from the encoder's similarity; "" if it does not.

    stored, again: (n, d). At length 1, cosine, dot product and Euclidean distance rank alike.
    """
    kept, meant = source.form.similarity, encoder.similarity
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


def verify(client: Client, store: Store, options: Options, limits: Limits, sample: int = SAMPLE) -> int:
    """Embed a sample of a store's texts again, and compare; returns how many were compared.

    Documents without a text, or with one that the server refuses, are skipped. FailedPrecondition if a
    document has another vector.
    """
    check_sample(sample)
    rows = store.get(store.sample(sample))
    rows = _with_texts(rows, np.ones(len(rows), np.bool_), None, limits)
    wrong: list[Id] = []
    checked = 0
    for part in _embedded(client, rows, options):
        same = _same(part[0].vectors, part[1], store.form.similarity)
        checked += len(same)
        wrong += [id for id, right in zip(part[0].ids, same, strict=True) if not right]
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


def _with_texts(
    rows: Rows, usable: NDArray[np.bool_], texts: Mapping[Id, str] | None, limits: Limits
) -> Rows:
    """The usable rows whose texts can be embedded, with texts from `texts` if given."""
    documents = [
        document if texts is None else Document(document.id, texts.get(document.id))
        for document in rows.documents
    ]
    kept = [place for place in np.flatnonzero(usable).tolist() if not unfit(documents[place].text, limits)]
    return Rows([documents[place] for place in kept], rows.vectors[kept])


def _embedded(client: Client, rows: Rows, options: Options) -> list[tuple[Rows, Matrix]]:
    """The rows with their texts' embeddings, without those that the server refuses."""
    if not len(rows):
        return []
    try:
        texts = [document.text or "" for document in rows.documents]
        return [(rows, client.embed(texts, **options.values))]
    except InvalidArgument:  # for example with truncate none, if another document is too long
        if len(rows) == 1:
            return []
        half = len(rows) // 2
        parts = (Rows(rows.documents[cut], rows.vectors[cut]) for cut in (slice(half), slice(half, None)))
        return [found for part in parts for found in _embedded(client, part, options)]


def _cosines(left: Matrix, right: Matrix) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (normalised(left) * normalised(right)).sum(axis=1)
    return found


def _same(left: Matrix, right: Matrix, similarity: Similarity) -> NDArray[np.bool_]:
    """Which rows hold the same vector, within the error of storage and devices."""
    same: NDArray[np.bool_] = _cosines(left, right) >= SAME_COSINE
    if similarity != "cosine":  # for cosine, a store may keep directions only
        lengths = np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
        same &= np.abs(lengths - 1) <= SAME_LENGTH
    return same
