"""A small, real gRPC server: vectors made from the texts alone, and faults on demand."""

import hashlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
import numpy as np

from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1.encoder_pb2_grpc import EncoderServiceServicer, add_EncoderServiceServicer_to_server
from trimtab.values.dense import FROM_PROTO, STORAGE, pack
from trimtab.values.multi_vector import MultiVectors
from trimtab.values.multi_vector import write as write_multi
from trimtab.values.sparse import SparseVectors
from trimtab.values.sparse import write as write_sparse

DIMENSIONS = 32
OUTPUTS = ("dense", "sparse", "multi_vector")
SIMILARITIES = {"dense": "cosine", "sparse": "dot", "multi_vector": "maxsim"}
SCALE = 1 / 127


class Abort(NamedTuple):
    """How a call is to fail."""

    code: grpc.StatusCode
    message: str = "as the test wants it"
    pushback_ms: int | None = None


def vector(text: str, version: str = "1", role: int = 0) -> np.ndarray:
    """The float32 vector of a text, of length 1, the same wherever and whenever it is made."""
    digest = hashlib.sha256(f"{version}/{role}/{text}".encode()).digest()
    raw = np.frombuffer(digest, np.uint8).astype(np.float32) - 127.5
    return raw / np.linalg.norm(raw)


def vectors(texts: list[str], version: str = "1", role: int = 0) -> np.ndarray:
    return np.array([vector(text, version, role) for text in texts], np.float32).reshape(-1, DIMENSIONS)


def sparse_of(matrix: np.ndarray) -> SparseVectors:
    """The components above 0."""
    rows, places = np.nonzero(matrix > 0)
    indptr = np.searchsorted(rows, np.arange(len(matrix) + 1))
    return SparseVectors(indptr, places.astype(np.int32), matrix[rows, places], DIMENSIONS)


def space_of(output: str, version: str) -> str:
    """The space of an output."""
    return f"space-{version}" if output == "dense" else f"{output}-{version}"


def words_of(texts: list[str], version: str = "1", role: int = 0) -> MultiVectors:
    """The vector of each word."""
    words = [text.split() or [""] for text in texts]
    offsets = np.cumsum([0, *map(len, words)])
    return MultiVectors(vectors([word for text in words for word in text], version, role), offsets)


def pack_as(matrix: np.ndarray, dtype: str) -> pb.Matrix:
    """As the real server's outputs, in the small."""
    if dtype == "int8":
        return pack(np.rint(matrix / SCALE).astype(np.int8), "int8", SCALE)
    if dtype == "ubinary":
        return pack(np.packbits(matrix > 0, axis=1), "ubinary")
    return pack(matrix.astype(STORAGE[dtype]), dtype)


@dataclass
class Faults:
    """What goes wrong, each once and in turn; empty, nothing does."""

    embeds: deque[Abort | None] = field(default_factory=deque)  # one for each call of Embed
    rescores: deque[Abort | None] = field(default_factory=deque)  # one for each call of Rescore
    describes: deque[Abort | None] = field(default_factory=deque)  # one for each call of GetEncoder
    breaks: deque[tuple[int, Abort | None]] = field(
        default_factory=deque
    )  # a stream's: after so many answers
    refusals: dict[str, deque[pb.Error]] = field(default_factory=dict)  # of a request that holds this text
    gate: Callable[[list[str]], None] | None = None  # called before texts are answered; may block
    tamper: Callable[[pb.EmbedResponse], None] | None = None  # changes an answer
    tamper_scores: Callable[[pb.RescoreResponse], None] | None = None  # changes an answer of Rescore
    shuffle: bool = False  # streams answer what they have in reverse order


class FakeServer(EncoderServiceServicer):
    """Serves the encoder `fake`, versions 1 and 2; the newest is `newest`."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.newest = "1"
        self.outputs: tuple[str, ...] = ("dense",)  # as it is described; it gives whatever is asked for
        self.loaded = {"1", "2"}
        self.limits = pb.Limits(max_texts=64, max_text_bytes=10_000, max_message_bytes=4_000_000)
        self.requests: list[pb.EmbedRequest] = []  # of Embed and EmbedStream
        self.deadlines: list[float] = []  # seconds that Embed's callers would wait
        self.metadata: list[dict[str, Any]] = []
        self.rescores: list[pb.RescoreRequest] = []
        self.remembered: dict[str, str] = {}  # texts of Rescore's candidates, by id
        self.memory = 1000  # how many of them are kept after a call
        self.describes = 0
        self.ended: queue.Queue[str] = queue.Queue()  # how each stream ended: "done", "cancelled"
        self._server: grpc.Server | None = None

    def start(self, address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None) -> str:
        # A stream keeps a thread; an idle pool costs nothing.
        self._server = grpc.server(
            futures.ThreadPoolExecutor(32, thread_name_prefix="fake"),
            options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)],
        )
        add_EncoderServiceServicer_to_server(self, self._server)
        if credentials is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, credentials)
        self._server.start()
        return f"{address.rpartition(':')[0]}:{port}"

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None

    def texts(self) -> list[str]:
        """Every text that was asked for, in the order in which it came."""
        return [text for request in self.requests for text in request.texts]

    def describe(self, version: str) -> pb.Encoder:
        return pb.Encoder(
            name="fake",
            version=version,
            space=f"space-{version}",
            dimensions=DIMENSIONS,
            max_tokens=128,
            similarity="cosine",
            pooling="mean",
            normalized=True,
            query_prompt="query: ",
            dtypes=[1, 2, 3, 4, 77],
            limits=self.limits,
            outputs=[
                pb.EncoderOutput(
                    name=name,
                    kind=name,
                    form=name,
                    space=space_of(name, version),
                    dimensions=DIMENSIONS,
                    similarity=SIMILARITIES[name],
                    normalized=name != "sparse",
                )
                for name in self.outputs
            ],
        )

    def answer(self, request: pb.EmbedRequest) -> pb.EmbedResponse | pb.Error:
        self.requests.append(request)
        version = request.version or self.newest
        if request.encoder not in {"", "fake"} or version not in self.loaded:
            return pb.Error(code=5, message=f"{request.encoder} {version} is not served")
        if not request.texts:
            return pb.Error(code=3, message="texts is empty")
        if len(request.texts) > (self.limits.max_texts or len(request.texts)):
            return pb.Error(
                code=3, message=f"{len(request.texts)} texts, the limit is {self.limits.max_texts}"
            )
        for text in request.texts:
            if refusals := self.faults.refusals.get(text):
                return refusals.popleft()
            if len(text.encode()) > self.limits.max_text_bytes:
                return pb.Error(code=3, message=f"a text of {len(text.encode())} bytes is too long")
        if self.faults.gate:
            self.faults.gate(list(request.texts))
        matrix = vectors(list(request.texts), version, request.role)
        response = pb.EmbedResponse(
            embeddings=[
                pb.Embeddings(
                    vectors=pack_as(
                        self.into(space, matrix)[:, : request.dimensions or None], FROM_PROTO[request.dtype]
                    ),
                    space=space or f"space-{version}",
                    adapters=[f"fake/to-{space}"] if space not in {"", f"space-{version}"} else [],
                )
                for space in request.spaces or [""]
            ],
            token_counts=[len(text.split()) + 2 for text in request.texts],
            encoder="fake",
            version=version,
            times=pb.StageTimes(tokenize=1_000_000, queue=2_000_000, compute=3_000_000, output=4_000_000),
        )
        if request.outputs:
            del response.embeddings[:]
            for name in request.outputs:
                output = response.outputs.add(name=name, kind=name, space=space_of(name, version))
                if name == "sparse":
                    write_sparse(output.sparse, sparse_of(matrix))
                elif name == "multi_vector":
                    write_multi(output.multi_vector, words_of(list(request.texts), version, request.role))
                else:
                    output.dense.CopyFrom(pack_as(matrix, FROM_PROTO[request.dtype]))
        if self.faults.tamper:
            self.faults.tamper(response)
        return response

    def into(self, space: str, matrix: np.ndarray) -> np.ndarray:
        """The adapter into a space that is called reversed turns the components round."""
        return matrix[:, ::-1] if space == "reversed" else matrix

    def Embed(self, request, context):
        self.metadata.append(dict(context.invocation_metadata()))
        self.deadlines.append(context.time_remaining())
        fail(context, self.faults.embeds)
        answer = self.answer(request)
        if isinstance(answer, pb.Error):
            context.abort(STATUS[answer.code], answer.message)
        return answer

    def EmbedStream(self, request_iterator, context):
        self.metadata.append(dict(context.invocation_metadata()))
        # Only gRPC knows: to the handler, a call that is cancelled may look like one that was read out.
        state = context._state
        context.add_callback(
            lambda: self.ended.put("cancelled" if state.client == grpc._server._CANCELLED else "done")
        )
        answers, broken = self.faults.breaks.popleft() if self.faults.breaks else (-1, None)
        if answers == 0:
            leave(context, broken)
            return
        for message in self._read(request_iterator):
            outcome = self.answer(message.request)
            if isinstance(outcome, pb.Error):
                yield pb.EmbedStreamResponse(id=message.id, error=outcome)
            else:
                yield pb.EmbedStreamResponse(id=message.id, response=outcome)
            answers -= 1
            if answers == 0:
                leave(context, broken)
                return

    def _read(self, messages: Iterator[pb.EmbedStreamRequest]) -> Iterator[pb.EmbedStreamRequest]:
        if not self.faults.shuffle:
            yield from messages
            return
        arrived: queue.Queue[pb.EmbedStreamRequest | None] = queue.Queue()

        def read() -> None:
            try:
                for message in messages:
                    arrived.put(message)
            except Exception:  # the call was cancelled
                pass
            arrived.put(None)

        threading.Thread(target=read, daemon=True).start()
        while (message := arrived.get()) is not None:
            some = [message]
            while len(some) < 4:
                try:
                    following = arrived.get(timeout=0.05)
                except queue.Empty:
                    break
                if following is None:
                    arrived.put(None)
                    break
                some.append(following)
            yield from reversed(some)

    def Rescore(self, request, context):
        self.rescores.append(request)
        fail(context, self.faults.rescores)
        version = request.version or self.newest
        for candidate in request.candidates:
            if candidate.id and candidate.HasField("text"):
                self.remembered[candidate.id] = candidate.text
        texts: list[str | None] = []
        for each in request.candidates:
            text = each.text if each.HasField("text") else self.remembered.get(each.id)
            digest = hashlib.sha256((text or "").encode()).digest()[:16]
            texts.append(None if each.digest not in (b"", digest) else text)
        response = pb.RescoreResponse(encoder="fake", version=version, space=f"space-{version}")
        response.missing.extend(place for place, text in enumerate(texts) if text is None)
        if not response.missing:
            scores = vectors(texts, version, pb.ROLE_PASSAGE) @ vector(request.query, version, pb.ROLE_QUERY)
            response.scores = scores.astype("<f4").tobytes()
        for id in list(self.remembered)[: -self.memory]:  # the oldest go
            del self.remembered[id]
        if self.faults.tamper_scores:
            self.faults.tamper_scores(response)
        return response

    def ListAdapters(self, request, context):
        ends = {
            name: pb.Endpoint(
                encoder="fake", version=version, space=f"space-{version}", dimensions=DIMENSIONS
            )
            for name, version in (("source", "2"), ("target", "1"))
        }
        calibrator = pb.Calibrator(adapted=[0.0, 1.0], target=[0.5, 0.75])
        good = pb.Adapter(
            encoder="fake", name="good", rung="ridge", reads="embeddings", groups=["de"], verdict="cascade",
            provisional=True, reasons=["it will do"], calibrator=calibrator, **ends,
        )  # fmt: skip
        bad = pb.Adapter(encoder="other", name="bad", verdict="stay", problem="it will not do", **ends)
        return pb.ListAdaptersResponse(
            adapters=[each for each in (good, bad) if request.encoder in ("", each.encoder)]
        )

    def ListEncoders(self, request, context):
        return pb.ListEncodersResponse(
            encoders=[self.describe(version) for version in sorted(self.loaded, reverse=True)]
        )

    def GetEncoder(self, request, context):
        self.describes += 1
        fail(context, self.faults.describes)
        version = request.version or self.newest
        if request.encoder not in {"", "fake"} or version not in self.loaded:
            context.abort(grpc.StatusCode.NOT_FOUND, f"{request.encoder} {version} is not served")
        return self.describe(version)


STATUS = {status.value[0]: status for status in grpc.StatusCode}


def fail(context: grpc.ServicerContext, faults: "deque[Abort | None]") -> None:
    if faults and (fault := faults.popleft()) is not None:
        leave(context, fault)


def leave(context: grpc.ServicerContext, fault: Abort | None) -> None:
    """End the call as the fault says; without one, end it well."""
    if fault is None:
        if context.is_active():  # the client closed its half; it did not leave
            context.set_code(grpc.StatusCode.OK)
        return
    if fault.pushback_ms is not None:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", str(fault.pushback_ms)),))
    context.abort(fault.code, fault.message)
