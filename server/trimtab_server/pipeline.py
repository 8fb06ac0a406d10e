"""A request's way through the server, the same for every protocol: in order, in one function."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from trimtab.errors import DeadlineExceeded, InvalidArgument, TrimtabError
from trimtab.vectors import Dtype
from trimtab_server import outputs
from trimtab_server.admission import Admission
from trimtab_server.batch import Priority
from trimtab_server.config import Limits
from trimtab_server.engine import Engine
from trimtab_server.metrics import Metrics
from trimtab_server.outputs import Output
from trimtab_server.repository import Encoder, Repository
from trimtab_server.tokenization import Tokenization, Truncate

Role = Literal["query", "passage"]

# A text that waits also holds memory: so many of its characters are charged as a token.
CHARACTERS_A_TOKEN = 64


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """What a caller asks for, whatever the protocol it came by. `dimensions` 0: all of them."""

    encoder: str
    version: str
    texts: Sequence[str]
    role: Role | None = None
    truncate: Truncate = "end"
    dimensions: int = 0
    dtype: Dtype = "float32"
    deadline: float | None = None  # on time.monotonic's clock
    tenant: str = ""
    priority: Priority = "interactive"


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds spent in each stage."""

    tokenize: float
    queue: float
    compute: float
    output: float


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """The answer: row i of the output is the vector of texts[i]."""

    encoder: Encoder
    output: Output
    token_counts: list[int]
    times: Times


class Pipeline:
    """Checks, admits, tokenises, computes and finishes requests."""

    def __init__(
        self,
        limits: Limits,
        repository: Repository,
        admission: Admission,
        tokenization: Tokenization,
        engine: Engine,
        metrics: Metrics,
        answered: Callable[[str, EmbedResult], None] | None = None,
    ) -> None:
        self.limits = limits
        self.repository = repository
        self._admission = admission
        self._tokenization = tokenization
        self._engine = engine
        self._metrics = metrics
        self._answered = answered  # told of each answer, with its protocol; None: nobody is

    async def embed(self, protocol: str, parse: Callable[[], EmbedRequest]) -> EmbedResult:
        """Answer the request that `parse` reads off the wire, or raise one of trimtab.errors.

        Parsing is part of it, so that a request that cannot be read is counted like any that fails.
        """
        begun = time.monotonic()
        name, version = "", None
        reason = "INTERNAL"
        try:
            request = parse()
            async with self.repository.use(request.encoder, request.version) as encoder:
                name, version = encoder.name, encoder.version
                self._check(encoder, request)
                self._metrics.began(name, version, protocol)
                try:
                    async with asyncio.timeout_at(request.deadline):
                        result = await self._embed(encoder, request, protocol, begun)
                finally:
                    self._metrics.ended(name, version, protocol)
            reason = ""
            if self._answered is not None:
                self._answered(protocol, result)
            return result
        except TimeoutError:
            reason = "DEADLINE_EXCEEDED"
            raise DeadlineExceeded("the deadline passed before the vectors were there") from None
        except TrimtabError as error:
            reason = error.code.name
            raise
        except asyncio.CancelledError:
            reason = "CANCELLED"
            raise
        finally:
            if reason:
                self._metrics.failed(name, version, protocol, reason, time.monotonic() - begun)

    async def _embed(
        self, encoder: Encoder, request: EmbedRequest, protocol: str, begun: float
    ) -> EmbedResult:
        manifest, model = encoder.manifest, encoder.model
        prompt = ""
        if request.role is not None:
            prompt = manifest.prompts.query if request.role == "query" else manifest.prompts.passage
        texts = [prompt + text for text in request.texts] if prompt else request.texts
        held = sum(map(len, texts)) // CHARACTERS_A_TOKEN
        estimate = held + sum(min(_most_tokens(text), manifest.max_tokens) for text in texts)
        with self._admission.admit(estimate, lambda: self._engine.backlog_seconds(model)) as share:
            ids = await self._tokenization.encode(encoder.tokenizer, texts, request.truncate)
            tokenized = time.monotonic()
            counts = [len(each) for each in ids]
            share.settle(held + sum(counts))
            computed = await self._engine.compute(
                model, ids, request.deadline, tenant=request.tenant, priority=request.priority
            )
            arrived = time.monotonic()
            output = outputs.finish(
                computed.vectors,
                dimensions=request.dimensions or manifest.dimensions,
                normalized=manifest.normalized,
                dtype=request.dtype,
                int8_limit=manifest.int8_limit,
            )
        ended = time.monotonic()
        times = Times(tokenized - begun, computed.queue_seconds, computed.compute_seconds, ended - arrived)
        self._metrics.answered(
            encoder.name, encoder.version, protocol,
            texts=len(counts), tokens=sum(counts),
            tokenize=times.tokenize, queue=times.queue, compute=times.compute, output=times.output,
            total=ended - begun, now_ms=int(time.time() * 1000),
        )  # fmt: skip
        return EmbedResult(encoder, output, counts, times)

    def _check(self, encoder: Encoder, request: EmbedRequest) -> None:
        """Refuse what the encoder or the limits do not allow, naming the element and the cure."""
        manifest, limits = encoder.manifest, self.limits
        if not request.texts:
            raise InvalidArgument("the request has no texts: send at least one")
        if len(request.texts) > limits.max_texts:
            raise InvalidArgument(
                f"the request has {len(request.texts)} texts, this server takes {limits.max_texts} "
                "in one request: split it, or use a stream"
            )
        for row, text in enumerate(request.texts):
            # A character has one to four bytes: only texts near the limit have to be encoded.
            if 4 * len(text) > limits.max_text_bytes and len(text.encode()) > limits.max_text_bytes:
                raise InvalidArgument(
                    f"texts[{row}] has {len(text.encode())} bytes, this server takes "
                    f"{limits.max_text_bytes}: cut it; the encoder reads only {manifest.max_tokens} "
                    "tokens of it anyway"
                )
        if request.role is None and (manifest.prompts.query or manifest.prompts.passage):
            raise InvalidArgument(
                f"encoder {encoder.name} embeds queries and passages differently: say which these texts are "
                "(role in trimtab.v1, parameter input_type in KServe: query or passage)"
            )
        if request.dimensions > manifest.dimensions:
            raise InvalidArgument(
                f"dimensions is {request.dimensions}, encoder {encoder.name} has {manifest.dimensions}: "
                "ask for that many or fewer"
            )
        if request.dtype == "ubinary" and (request.dimensions or manifest.dimensions) % 8:
            raise InvalidArgument(
                f"ubinary packs 8 dimensions into a byte: dimensions must be a multiple of 8, not "
                f"{request.dimensions or manifest.dimensions}"
            )


def _most_tokens(text: str) -> int:
    """More tokens than a text can have: one a byte, four bytes a character, and the special ones."""
    return (1 if text.isascii() else 4) * len(text) + 4
