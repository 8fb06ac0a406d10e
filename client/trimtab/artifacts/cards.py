"""Report cards: the measurements of a variant when it was made, kept in the manifest."""

from trimtab.artifacts import ranges
from trimtab.artifacts.artifact import Interval, Struct
from trimtab.kinds import JudgedBy


class Speed(Struct, frozen=True):
    """Milliseconds for one run of a graph on `batch` texts of `length` tokens each; the median of several."""

    batch: ranges.Some
    length: ranges.Tokens
    milliseconds: ranges.Duration


class Parity(Struct, frozen=True):
    """How near the graph's vectors are to the source's, over real texts in both roles."""

    texts: ranges.Count
    max_abs_diff: ranges.Difference
    min_cosine: ranges.Cosine
    batch_max_abs_diff: ranges.Difference  # a text alone against the same text padded among longer neighbours


class Speedup(Struct, frozen=True):
    """The source graph's time divided by the variant's, on one thread, run in turns, at one shape."""

    batch: ranges.Some
    length: ranges.Tokens
    factor: ranges.Factor


class Packed(Struct, frozen=True):
    """How much of the first variant's nDCG@10 vectors keep as bytes, and as bits (by Hamming distance)."""

    int8_limit: ranges.Limit  # the absolute component that becomes 127; larger ones are clipped
    int8_ndcg: ranges.Kept
    ubinary_ndcg: ranges.Kept
    ubinary_documents_ndcg: ranges.Kept  # float32 queries and documents in bits


class Kept(Struct, frozen=True):
    """How much of the first variant's nDCG@10 a variant keeps, over one set of queries and documents."""

    name: str
    kind: JudgedBy
    languages: tuple[str, ...]  # of the queries, as ISO 639-1 codes; none: unknown
    queries: ranges.Count
    documents: ranges.Count
    source_ndcg: ranges.Quality  # of the first variant itself
    ndcg: Interval
    query_only_ndcg: Interval


class Fidelity(Struct, frozen=True):
    """How much of the first variant's quality a variant keeps, over held-out queries and their documents.

    The four retentions are the variant's quality divided by the first variant's. Either the variant embeds
    both sides (its own index), or only the queries, which search the first variant's index. Each retention is
    that of the worst of `sets`; the set that is named is the worst by nDCG.
    """

    retrieval: str  # the set of pairs
    queries: ranges.Count
    documents: ranges.Count
    source_ndcg: ranges.Quality  # nDCG@10 and R@10 of the first variant itself
    source_recall: ranges.Quality
    ndcg: Interval
    recall: Interval
    query_only_ndcg: Interval
    query_only_recall: Interval
    cosine: ranges.Cosine  # with the first variant's vectors: the mean, the lowest
    min_cosine: ranges.Cosine
    batch_min_cosine: ranges.Cosine  # a text alone against the same text among longer ones
    speedup: tuple[Speedup, ...]
    bytes: ranges.Bytes  # of the variant's files
    packed: Packed | None = None  # None: made before this was measured
    sets: tuple[Kept, ...] = ()  # the sets that judged; none: made before there were several
    compared: ranges.Some = (
        1  # variants that this one was chosen among; the intervals are as wide as it takes
    )

    @property
    def provisional(self) -> bool:
        """Whether nothing may rely on these figures: no kind of text was left out of making the variant."""
        return all(each.kind != "left out" for each in self.sets)


# Why a report card is provisional, and the cure.
TRAINED_ON = (
    "judged by the kind of text that it was made on, and on other kinds it keeps less; export it again where "
    "there are more kinds (`trimtab export --list-texts`)"
)


class Cell(Struct, frozen=True):
    """How much of the first variant's nDCG@10 so many layers and dimensions keep, as in `Fidelity`."""

    layers: ranges.Layer
    dimensions: ranges.Dimensions
    ndcg: ranges.Kept
    query_only_ndcg: ranges.Kept


class ReportCard(Struct, frozen=True):
    """What was measured when the bundle was made, and on which machine."""

    parity: Parity
    speed: tuple[Speed, ...]
    machine: str
    fidelity: Fidelity | None = None  # None for the first variant, with which the others are compared
    cells: tuple[Cell, ...] = ()  # only of the first variant: each depth and width
