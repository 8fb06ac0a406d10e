"""Token pooling: fewer vectors of a document, each the mean of similar ones.

Clavié, Chaffin and Adams 2024, "Reducing the Footprint of Multi-Vector Retrieval with Minimal Performance
Impact via Token Pooling" (arXiv:2409.14683): the vectors of a document are clustered by Ward's method, over
1 - cosine, and each cluster becomes its mean. The first vector, which stands for the whole text, is kept.

The memory and time for that grow with the square of the vectors and more, so long documents are halved first,
segment by segment, until they are one segment long.
"""

from collections.abc import Generator, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Rows: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.int64]  # the cluster of each row

# How many vectors are clustered together, at most.
SEGMENT = 256
# How many clusters are joined in one piece of work: some tenths of a millisecond.
JOINS = 4
# How many numbers are added up in one piece, about as quickly.
NUMBERS = 1 << 16


def pooled(rows: Rows, most: int, *, unit: bool) -> Iterator[Rows | None]:
    """The rows, float32 (n, width), as at most `most` rows, in the order of their first members.

    The work is done in pieces: yields None after each, and the result at the end. The same rows give the same
    result. `unit`: rows are of length 1, and so are the means.
    """
    kept = min(1, most - 1)
    rest, wanted = rows[kept:], most - kept
    if len(rest) <= wanted:
        yield rows
        return
    labels = np.arange(len(rest))
    while (many := int(labels.max()) + 1) > wanted:
        fewer = wanted if many <= SEGMENT else max(wanted, many // 2)
        sums, sizes = (yield from _sums(rest, labels)), np.bincount(labels)
        joined = np.empty(many, np.int64)
        segments = -(-many // SEGMENT)
        for segment in range(segments):
            start, end = (many * each // segments for each in (segment, segment + 1))
            first, last = fewer * start // many, fewer * end // many
            for found in _clustered(sums[start:end], sizes[start:end], last - first):
                if found is None:
                    yield None
                else:
                    joined[start:end] = first + found
        labels = joined[labels]
        labels = np.unique(labels, return_inverse=True)[1]
    sums = yield from _sums(rest, labels)
    # The length of a mean of unit vectors is below 1; for others, the sum is divided by its members.
    lengths = np.linalg.norm(sums, axis=1) if unit else np.bincount(labels)
    means = sums / np.maximum(lengths, 1e-12)[:, None]
    first_members = np.unique(labels, return_index=True)[1]
    yield np.concatenate([rows[:kept], means[np.argsort(first_members)].astype(np.float32)])


def _sums(rows: Rows, labels: Labels) -> Generator[None, None, NDArray[np.float64]]:
    """The sum of the rows of each cluster, float64 (clusters, width): yields None after each piece, and
    returns them."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))  # there is no cluster without rows
    width = rows.shape[1]
    sums = np.empty((len(starts), width), np.float64)
    step = max(1, NUMBERS // len(rows))
    for start in range(0, width, step):
        part = rows[order, start : start + step].astype(np.float64)
        sums[:, start : start + step] = np.add.reduceat(part, starts, axis=0)
        if start + step < width:
            yield None
    return sums


def _clustered(sums: NDArray[np.float64], sizes: Labels, most: int) -> Iterator[Labels | None]:
    """The new cluster of each of some clusters, numbered from 0, in pieces as above.

    Ward's method: the nearest two are joined, again and again; of several pairs as near, the first.
    """
    many = len(sums)
    unit = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    far = (1 - unit @ unit.T) ** 2  # Ward's update is of squared distances (Lance and Williams 1967)
    np.fill_diagonal(far, np.inf)
    labels, size = np.arange(many), sizes.astype(np.float64)
    for joins in range(1, many - most + 1):
        one, other = divmod(int(far.argmin()), many)
        a, b = size[one], size[other]
        update = (a + size) * far[one] + (b + size) * far[other] - size * far[one, other]
        update /= a + b + size
        update[[one, other]] = np.inf
        far[one] = far[:, one] = update
        far[other] = far[:, other] = np.inf
        labels[labels == other] = one
        size[one] += b
        if joins % JOINS == 0:
            yield None
    yield np.unique(labels, return_inverse=True)[1]
