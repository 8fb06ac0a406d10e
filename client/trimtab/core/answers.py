"""What the SDK gives: plain, frozen data, no protobuf."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts.adapter import Calibrator, Endpoint
from trimtab.artifacts.cards import Fidelity
from trimtab.kinds import Dtype, Reads, Verdict

Vectors: TypeAlias = NDArray[Any]  # its dtype follows the request: float32, float16, int8 or uint8


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request to the server may hold; 0 where the server names no limit.

    The SDK splits requests that exceed `max_texts` or `max_message_bytes`; a single text above
    `max_text_bytes` (in UTF-8) is refused.
    """

    max_texts: int
    max_text_bytes: int
    max_message_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One graph of an encoder's bundle: the encoder itself, or a smaller or faster one.

    `space` is its own, `dimensions` the length of its vectors, `layers` how many it computes (0: unknown).
    Requests may name it if it is `loaded`. `fidelity` says how much of the encoder's quality it keeps and
    what it gains, as measured at export; None for the encoder itself.
    """

    name: str
    space: str
    dimensions: int
    precision: str
    layers: int
    loaded: bool
    fidelity: Fidelity | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """One version of an encoder that a server serves.

    `space` names the coordinate system of its vectors: vectors may be compared only where it is the same.
    `similarity` is the measure made for them: cosine, dot, euclidean or manhattan. `dimensions` is the
    number of components of a full vector; `normalized` says that vectors have length 1. At most `max_tokens`
    tokens of a text are read, special tokens included. The server prepends the prompts. A version on trial
    answers a `canary_share` of the requests that name no version, or is shown a `shadow_share` of the texts
    without answering. `variants` are those of its bundle, the encoder itself first.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Where the time went inside the server, in seconds; the stages follow one another.

    If a call was split into several requests, each stage is their sum.
    """

    tokenize: float = 0.0
    queue: float = 0.0
    compute: float = 0.0
    output: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embeddings:
    """Vectors, and how they were made.

    vectors: (n, d), one row a text, in the order of the texts; the caller's own, writable. Of float32,
        float16, int8, or uint8 for dtype "ubinary", where d is the number of bytes.
    token_counts: (n,) uint32, the tokens the encoder read of each text, special tokens included.
    encoder, version, space: what made them; all rows are of this one space.
    adapters: ENCODER/NAME of the adapters that were applied, in order; none: the vectors are the variant's
        own. If an adapter was replaced during a call that was split, both are named.
    scale: for int8, what one step is worth: `vectors * scale`; otherwise 0.
    times: where the time went inside the server.
    variant: the variant of the encoder that computed them.
    browned_out: the server was overloaded, and `variant` answered some or all rows instead of the encoder
        itself: use them to search an index of their space, not to fill one.
    reach, suspicious: if the server checks passages (role "passage") before they are indexed: (n,) float32,
        the share of its sentinel queries that would show each among the first ten results, NaN for those
        not checked; and (n,) bool, whether that is far more than ordinary passages reach. None if none was
        checked.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter of a server's repository: a map from the space of one encoder into that of an older one.

    `encoder` and `name` locate it in the repository; answers call it `encoder/name`. `source` and `target`
    are its two ends, `rung` the kind of map, `groups` those it knows. `verdict` and `reasons` are how it was
    judged; "bridge" and "cascade" are served, and `provisional` says that there was no relevance data to
    judge by. `calibrator` maps scores of adapted queries onto the scale of the target's own, so that an
    application's thresholds keep their meaning. `problem` says why requests cannot use it; it is empty if
    they can.
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
