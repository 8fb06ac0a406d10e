"""What the SDK returns: plain, frozen data, without protobuf."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts.adapter import Calibrator, Endpoint
from trimtab.artifacts.cards import Fidelity
from trimtab.kinds import Dtype, Reads, Verdict

Vectors: TypeAlias = NDArray[Any]  # its dtype follows the request: float32, float16, int8 or uint8


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The server's limits for one request; 0 means that the server names no limit.

    The SDK splits requests that exceed `max_texts` or `max_message_bytes`, and refuses a single text longer
    than `max_text_bytes` (in UTF-8).
    """

    max_texts: int
    max_text_bytes: int
    max_message_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One graph of an encoder's bundle: the encoder itself, or a smaller or faster one.

    `space` is its own space, `dimensions` the length of its vectors, `layers` the number of layers it
    computes (0: unknown). `runtime` is what runs it: "onnx" or "openvino"; empty from a server that does not
    say. Requests may name it if it is `loaded`. `fidelity` says how much of the encoder's
    quality it keeps and what it gains, as measured at export; None for the encoder itself.
    """

    name: str
    space: str
    dimensions: int
    precision: str
    layers: int
    loaded: bool
    fidelity: Fidelity | None
    runtime: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderOutput:
    """An output that an encoder gives for each text.

    `name` is what requests call it. `kind` says what it is, and `form` how its value is laid out: dense,
    sparse, multi_vector or scores. `space`, `dimensions`, `similarity` and `normalized` are as in `Encoder`.
    `labels` are what the columns of scores mean, in order.
    """

    name: str
    kind: str
    form: str
    space: str
    dimensions: int
    similarity: str
    normalized: bool
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """One version of an encoder that a server serves.

    `space` names the coordinate system of its vectors: only vectors of the same space may be compared.
    `similarity` is how to compare them: cosine, dot, euclidean or manhattan. `dimensions` is the number of
    components of a full vector; `normalized` says that vectors have length 1. At most `max_tokens` tokens of
    a text are read, including special tokens. The server prepends the prompts. A version on trial answers a
    `canary_share` of the requests that name no version, or receives a `shadow_share` of the texts without
    answering. `variants` are those of its bundle, the encoder itself first. `outputs` are all that it gives;
    what is said above of its vectors is said of the first.
    """

    name: str
    version: str
    space: str
    dimensions: int
    max_tokens: int
    similarity: str
    pooling: str
    normalized: bool
    query_prompt: str
    passage_prompt: str
    dtypes: tuple[Dtype, ...]
    limits: Limits
    canary_share: float = 0.0
    shadow_share: float = 0.0
    variants: tuple[Variant, ...] = ()
    outputs: tuple[EncoderOutput, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Where the time went inside the server, in seconds, stage after stage.

    If a call was split into several requests, each stage is the sum over them.
    """

    tokenize: float = 0.0
    queue: float = 0.0
    compute: float = 0.0
    output: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embeddings:
    """Vectors, and how they were made.

    vectors: (n, d), one row per text, in the order of the texts; writable, and the caller's own. The dtype is
        float32, float16 or int8, or uint8 for dtype "ubinary", where d is the number of bytes.
    token_counts: (n,) uint32, the number of tokens the encoder read of each text, including special tokens.
    encoder, version, space: what made the vectors; all rows are of this one space.
    adapters: ENCODER/NAME of each adapter applied, in order; if empty, the vectors are the variant's own. If
        an adapter was replaced during a call that was split, both are named.
    scale: for int8, the value of one step: `vectors * scale`; otherwise 0.
    times: where the time went inside the server.
    variant: the variant of the encoder that computed the vectors.
    browned_out: the server was overloaded, and `variant` answered some or all rows instead of the encoder
        itself. Use these vectors to search an index of their space, not to fill one.
    reach, suspicious: set if the server checks passages (role "passage") before they are indexed. reach is
        (n,) float32, the share of its sentinel queries that would show each passage among the first ten
        results, NaN for passages not checked. suspicious is (n,) bool, whether that is far more than
        ordinary passages reach. Both are None if no passage was checked.
    """

    vectors: Vectors
    token_counts: NDArray[np.uint32]
    encoder: str
    version: str
    space: str
    dtype: Dtype
    scale: float
    times: StageTimes = field(default_factory=StageTimes)
    adapters: tuple[str, ...] = ()
    variant: str = ""
    browned_out: bool = False
    reach: NDArray[np.float32] | None = None
    suspicious: NDArray[np.bool_] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Outputs(Mapping[str, Any]):
    """Several outputs of an encoder, from one pass: a read-only mapping from an output's name to its value.

    What a value is follows from the output's form (`forms`): for "dense" and "scores", an (n, d) array as in
    `Embeddings`; for "sparse", `SparseVectors`. Item i of each value belongs to text i. All are writable, and
    the caller's own.

    spaces: the space of each output.
    scales: for each int8 output, the value of one step; 0 for other outputs.
    adapters: for each output, ENCODER/NAME of each adapter applied, in order.
    token_counts, encoder, version, variant, browned_out, times: as in `Embeddings`.
    """

    by_name: Mapping[str, Any]
    forms: Mapping[str, str]
    spaces: Mapping[str, str]
    scales: Mapping[str, float]
    adapters: Mapping[str, tuple[str, ...]]
    token_counts: NDArray[np.uint32]
    encoder: str
    version: str
    variant: str
    browned_out: bool
    times: StageTimes

    def __getitem__(self, name: str) -> Any:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate of a ranking: its position among the candidates that were given, and its score. It can be
    unpacked like a pair of these."""

    index: int
    score: float

    def __iter__(self) -> Iterator[Any]:
        return iter((self.index, self.score))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking(Sequence[Ranked]):
    """Candidates from the best to the worst, as a sequence. Of equal scores, the earlier candidate comes
    first.

    indices: (m,) int64, the candidates' positions among those given.
    scores: (m,) float32, falling.
    encoder, version: what scored them. similarity: how: "cross-encoder", or how vectors were compared.
    complete: whether all candidates were scored. If not, the deadline cut the work, and `scored` of them are
        ranked.
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    encoder: str
    version: str
    similarity: str
    scored: int
    complete: bool = True

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, place: int) -> Ranked: ...
    @overload
    def __getitem__(self, place: slice) -> list[Ranked]: ...
    def __getitem__(self, place: int | slice) -> Ranked | list[Ranked]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        return Ranked(int(self.indices[place]), float(self.scores[place]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter of a server's repository: a map from the space of one encoder into that of an older one.

    `encoder` and `name` locate it in the repository; answers call it `encoder/name`. `source` and `target`
    are its two ends, `rung` is the kind of map, `groups` are the groups it knows. `verdict` and `reasons`
    say how it was judged; "bridge" and "cascade" are served. `provisional` says that there was no relevance
    data to judge by. `calibrator` maps scores of adapted queries onto the scale of the target's own scores,
    so that an application's thresholds keep their meaning. `problem` says why requests cannot use the
    adapter; it is empty if they can.
    """

    encoder: str
    name: str
    source: Endpoint
    target: Endpoint
    rung: str
    reads: Reads
    groups: tuple[str, ...]
    verdict: Verdict
    provisional: bool
    reasons: tuple[str, ...]
    calibrator: Calibrator | None
    problem: str
