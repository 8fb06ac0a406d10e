"""inference.GRPCInferenceService: the KServe v2 / Triton protocol, so that tritonclient works unchanged.

Source: the Open Inference Protocol (KServe v2) with Triton's extensions, by tritonclient's own stubs.
Texts come in as `text`, BYTES (n,) or (n, 1); `embeddings` (n, d) and `token_count` (n, 1) go out, always
as raw_output_contents.
"""

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import metadata
from typing import Any, get_args

import numpy as np
from tritonclient.grpc import model_config_pb2 as mc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from trimtab.errors import InvalidArgument, NotFound, Unavailable, Unimplemented
from trimtab.vectors import DTYPES, STORAGE, check_dtype
from trimtab_server.encoders.encoder import Encoder
from trimtab_server.observing.metrics import Count, Metrics
from trimtab_server.pipeline import EmbedRequest, EmbedResult, Pipeline, Role
from trimtab_server.rpc.boundary import (
    BYTES_A_TEXT,
    Context,
    Tenants,
    Window,
    as_trimtab_error,
    deadline_of,
    shorten,
)
from trimtab_server.rpc.unread import Unread
from trimtab_server.tokenization import Truncate

PROTOCOL = "kserve"
EXTENSIONS = ("model_repository", "model_configuration", "statistics", "parameters")
TRITON_DTYPE = {"float32": "FP32", "float16": "FP16", "int8": "INT8", "ubinary": "UINT8"}
DIGITS = 18  # of a whole number that comes as a string
OUTPUTS = ("embeddings", "token_count")
PARAMETERS = (
    "input_type", "truncate", "dimensions", "embedding_type", "timeout", "priority", "space", "group",
    "variant", "layers", "allow_brownout",
)  # fmt: skip


class KServeServicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Translates messages; the pipeline does the work."""

    def __init__(
        self,
        pipeline: Pipeline,
        metrics: Metrics,
        tenants: Tenants,
        unread: Unread,
        serving: Callable[[], bool],
    ) -> None:
        self._pipeline = pipeline
        self._repository = pipeline.repository
        self._metrics = metrics
        self._tenants = tenants
        self._unread = unread
        self._serving = serving
        self._readers: set[asyncio.Task[None]] = set()

    # -- state ---------------------------------------------------------------------------------------

    async def ServerLive(self, request: Any, context: Context) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Context) -> Any:
        return pb.ServerReadyResponse(ready=self._serving())

    async def ModelReady(self, request: Any, context: Context) -> Any:
        named = [encoder for encoder in self._repository.encoders() if encoder.name == request.name]
        ready = self._serving() and any(request.version in ("", str(encoder.version)) for encoder in named)
        return pb.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, request: Any, context: Context) -> Any:
        return pb.ServerMetadataResponse(
            name="trimtab", version=metadata.version("trimtab"), extensions=EXTENSIONS
        )

    async def ModelMetadata(self, request: Any, context: Context) -> Any:
        encoder = self._repository.find(request.name, request.version)
        versions = [str(each.version) for each in self._repository.encoders() if each.name == encoder.name]
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=encoder.name,
            versions=versions,
            platform="trimtab",
            inputs=[tensor(name="text", datatype="BYTES", shape=[-1, 1])],
            outputs=[
                tensor(name="embeddings", datatype="FP32", shape=[-1, encoder.manifest.dimensions]),
                tensor(name="token_count", datatype="INT32", shape=[-1, 1]),
            ],
        )

    async def ModelConfig(self, request: Any, context: Context) -> Any:
        encoder = self._repository.find(request.name, request.version)
        manifest = encoder.manifest
        parameters = {
            "space": manifest.space,
            "variants": ",".join(each.variant.name for each in encoder.graphs()),
            "similarity": manifest.similarity,
            "max_tokens": str(manifest.max_tokens),
            "query_prompt": manifest.prompts.query,
            "passage_prompt": manifest.prompts.passage,
        }
        config = mc.ModelConfig(
            name=encoder.name,
            backend="trimtab",
            platform="trimtab",
            max_batch_size=self._pipeline.limits.max_texts,
            input=[mc.ModelInput(name="text", data_type=mc.TYPE_STRING, dims=[1])],
            output=[
                mc.ModelOutput(name="embeddings", data_type=mc.TYPE_FP32, dims=[manifest.dimensions]),
                mc.ModelOutput(name="token_count", data_type=mc.TYPE_INT32, dims=[1]),
            ],
            dynamic_batching=mc.ModelDynamicBatching(),
            parameters={key: mc.ModelParameter(string_value=value) for key, value in parameters.items()},
        )
        return pb.ModelConfigResponse(config=config)

    async def ModelStatistics(self, request: Any, context: Context) -> Any:
        if request.name:
            self._repository.find(request.name, request.version)
        chosen = [
            encoder
            for encoder in self._repository.encoders()
            if request.name in ("", encoder.name) and request.version in ("", str(encoder.version))
        ]
        return pb.ModelStatisticsResponse(model_stats=[self._statistics(encoder) for encoder in chosen])

    # -- the model repository ------------------------------------------------------------------------

    async def RepositoryIndex(self, request: Any, context: Context) -> Any:
        self._check_repository(request.repository_name)
        index = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(
            models=[
                index(name=entry.name, version=str(entry.version), state=entry.state, reason=entry.reason)
                for entry in self._repository.index()
                if entry.state == "READY" or not request.ready
            ]
        )

    async def RepositoryModelLoad(self, request: Any, context: Context) -> Any:
        self._check_repository(request.repository_name)
        if request.parameters:
            raise InvalidArgument(
                f"load parameter {next(iter(request.parameters))!r} is not supported: a bundle is "
                "immutable and comes from the repository alone"
            )
        await self._repository.load(request.model_name)
        entries = [entry for entry in self._repository.index() if entry.name == request.model_name]
        if not any(entry.state == "READY" for entry in entries):
            self._repository.find(request.model_name)  # says why
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Context) -> Any:
        self._check_repository(request.repository_name)
        for name in request.parameters:
            if name != "unload_dependents":  # no encoder has dependents: nothing to do
                raise InvalidArgument(f"unload parameter {name!r} is not supported")
        await self._repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    # -- inference -----------------------------------------------------------------------------------

    async def ModelInfer(self, request: Any, context: Context) -> Any:
        return await self._infer(request, deadline_of(context), self._tenants.of(context))

    async def ModelStreamInfer(self, request_iterator: AsyncIterator[Any], context: Context) -> None:
        """Answers in the order of the requests, as Triton does for models like these."""
        deadline, tenant = deadline_of(context), self._tenants.of(context)
        window = Window(self._pipeline.limits.max_stream_texts)
        account = self._unread.account(context.peer())
        answers: asyncio.Queue[tuple[asyncio.Task[Any], int] | None] = asyncio.Queue()

        async def answer(message: Any) -> Any:
            outcome = await infer(message)
            account.add(outcome.ByteSize())
            return outcome

        async def infer(message: Any) -> Any:
            try:
                response = await self._infer(message, deadline, tenant)
                final = message.parameters.get("triton_enable_empty_final_response")
                if final is not None and final.bool_param:
                    response.parameters["triton_final_response"].bool_param = True
                return pb.ModelStreamInferResponse(infer_response=response)
            except Exception as error:
                return pb.ModelStreamInferResponse(
                    error_message=shorten(str(as_trimtab_error(error))),
                    infer_response=pb.ModelInferResponse(
                        id=message.id, model_name=message.model_name, model_version=message.model_version
                    ),
                )

        async def read(tasks: asyncio.TaskGroup) -> None:
            try:
                async for message in request_iterator:
                    weight = max(1, message.ByteSize() // BYTES_A_TEXT)
                    await window.enter(weight)
                    answers.put_nowait((tasks.create_task(answer(message)), weight))
            finally:
                answers.put_nowait(None)

        async def write() -> None:
            while (next_answer := await answers.get()) is not None:
                task, weight = next_answer
                outcome = await task
                await context.write(outcome)
                account.remove(outcome.ByteSize())
                window.leave(weight)

        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(read(tasks))
                self._readers.add(reader)
                reader.add_done_callback(self._readers.discard)
                tasks.create_task(write())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            account.close()
        if reader.cancelled():
            raise Unavailable("the server is draining: send what was not answered to another one")

    def drain(self) -> None:
        """Read no more from any stream; each ends when what it has read is answered."""
        for reader in list(self._readers):
            reader.cancel()

    async def _infer(self, request: Any, deadline: float | None, tenant: str) -> Any:
        result = await self._pipeline.embed(PROTOCOL, lambda: _parse(request, deadline, tenant))
        return _response(request, result)

    # -- what this server has not --------------------------------------------------------------------

    async def SystemSharedMemoryStatus(self, request: Any, context: Context) -> Any:
        return pb.SystemSharedMemoryStatusResponse()  # no region can be registered, so there is none

    async def SystemSharedMemoryRegister(self, request: Any, context: Context) -> Any:
        raise Unimplemented("shared memory is not offered: send tensors in the request")

    async def SystemSharedMemoryUnregister(self, request: Any, context: Context) -> Any:
        return pb.SystemSharedMemoryUnregisterResponse()  # as Triton for what is not registered

    async def CudaSharedMemoryStatus(self, request: Any, context: Context) -> Any:
        return pb.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryRegister(self, request: Any, context: Context) -> Any:
        raise Unimplemented("shared memory is not offered: send tensors in the request")

    async def CudaSharedMemoryUnregister(self, request: Any, context: Context) -> Any:
        return pb.CudaSharedMemoryUnregisterResponse()

    async def TraceSetting(self, request: Any, context: Context) -> Any:
        raise Unimplemented("this server does not write Triton's traces")

    async def LogSettings(self, request: Any, context: Context) -> Any:
        raise Unimplemented("log settings cannot be changed over the network")

    # -- helpers -------------------------------------------------------------------------------------

    def _check_repository(self, name: str) -> None:
        if name:
            raise NotFound(f"repository {name!r} is not known: this server has one, which has no name")

    def _statistics(self, encoder: Encoder) -> Any:
        counted = self._metrics.statistics[encoder.name, encoder.version]

        def duration(count: Count) -> Any:
            return pb.StatisticDuration(count=count.count, ns=count.ns)

        batches = sorted(counted.batches.items())
        return pb.ModelStatistics(
            name=encoder.name,
            version=str(encoder.version),
            last_inference=counted.last_ms,
            inference_count=counted.texts,
            execution_count=sum(count.count for _, count in batches),
            inference_stats=pb.InferStatistics(
                success=duration(counted.success),
                fail=duration(counted.fail),
                queue=duration(counted.queue),
                compute_input=duration(counted.tokenize),
                compute_infer=duration(counted.compute),
                compute_output=duration(counted.output),
            ),
            batch_stats=[
                pb.InferBatchStatistics(batch_size=size, compute_infer=duration(count))
                for size, count in batches
            ],
        )


class Parameters:
    """A request's parameters, typed; one that is not known is refused."""

    def __init__(self, parameters: Any) -> None:
        self._values: dict[str, Any] = {}
        for name, value in parameters.items():
            if name == "triton_enable_empty_final_response":  # a stream's own; see ModelStreamInfer
                continue
            if name not in PARAMETERS:
                raise InvalidArgument(
                    f"parameter {name!r} is not known; this server takes {', '.join(PARAMETERS)}"
                )
            kind = value.WhichOneof("parameter_choice")
            self._values[name] = getattr(value, kind) if kind else None

    def choice(self, name: str, choices: tuple[str, ...]) -> Any:
        """A string out of `choices`, in either case; None where it is absent."""
        if name not in self._values:
            return None
        value = self._values[name]
        if not isinstance(value, str) or value.lower() not in choices:
            raise InvalidArgument(f"parameter {name} is {value!r}; choose one of {', '.join(choices)}")
        return value.lower()

    def string(self, name: str) -> str:
        """Any string; "" where it is absent."""
        value = self._values.get(name, "")
        if not isinstance(value, str):
            raise InvalidArgument(f"parameter {name} is {value!r}; it must be a string")
        return value

    def boolean(self, name: str, default: bool) -> bool:
        """True or false; the default where it is absent."""
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            raise InvalidArgument(f"parameter {name} is {value!r}; it must be true or false")
        return value

    def integer(self, name: str) -> int:
        """A whole number from 1, also as a string; 0 where it is absent."""
        if name not in self._values:
            return 0
        value = self._values[name]
        if isinstance(value, str) and value.isdecimal() and len(value) <= DIGITS:
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidArgument(f"parameter {name} is {value!r}; it must be a whole number from 1")
        return value


def _parse(request: Any, deadline: float | None, tenant: str) -> EmbedRequest:
    parameters = Parameters(request.parameters)
    _wanted(request)
    timeout = parameters.integer("timeout")  # microseconds, as Triton's
    space = parameters.string("space")
    own = time.monotonic() + timeout / 1e6 if timeout else None
    return EmbedRequest(
        encoder=request.model_name,
        version=request.model_version,
        texts=_texts(request),
        role=parameters.choice("input_type", get_args(Role)),
        truncate=parameters.choice("truncate", get_args(Truncate)) or "end",
        dimensions=parameters.integer("dimensions"),
        dtype=check_dtype(parameters.choice("embedding_type", DTYPES) or "float32"),
        deadline=min((each for each in (deadline, own) if each is not None), default=None),
        tenant=tenant,
        # Triton's priorities: 1 is the highest, and what is left out is the default.
        priority="bulk" if parameters.integer("priority") > 1 else "interactive",
        spaces=(space,) if space else (),
        group=parameters.string("group"),
        variant=parameters.string("variant"),
        layers=parameters.integer("layers"),
        refuse_brownout=not parameters.boolean("allow_brownout", True),
    )


def _texts(request: Any) -> list[str]:
    """The request's texts; InvalidArgument names what is wrong with which tensor or element."""
    if len(request.inputs) != 1 or request.inputs[0].name != "text":
        names = ", ".join(repr(tensor.name) for tensor in request.inputs) or "none"
        raise InvalidArgument(f"the request has the inputs {names}; this encoder takes one, 'text'")
    tensor = request.inputs[0]
    if tensor.datatype != "BYTES":
        raise InvalidArgument(f"input 'text' is {tensor.datatype}; it must be BYTES")
    for name in tensor.parameters:
        if name == "binary_data_size":  # KServe's client repeats what the content itself tells
            continue
        raise InvalidArgument(f"input parameter {name!r} is not supported: send the texts in the request")
    shape = list(tensor.shape)
    if len(shape) not in (1, 2) or shape[1:] not in ([], [1]) or shape[0] < 0:
        raise InvalidArgument(f"input 'text' has the shape {shape}; it must be [n] or [n, 1]")
    if request.raw_input_contents:
        if len(request.raw_input_contents) != 1:
            raise InvalidArgument(
                f"raw_input_contents has {len(request.raw_input_contents)} entries for one input"
            )
        elements = list(_elements(request.raw_input_contents[0]))
    else:
        elements = list(tensor.contents.bytes_contents)
    if len(elements) != shape[0]:
        raise InvalidArgument(f"input 'text' has {len(elements)} elements, its shape {shape} says {shape[0]}")
    return [_decode(element, row) for row, element in enumerate(elements)]


def _elements(data: bytes) -> Iterator[bytes]:
    """The elements of a raw BYTES tensor: each with its length before it, four bytes little-endian."""
    position, row = 0, 0
    while position < len(data):
        start = position + 4
        end = start + struct.unpack_from("<I", data, position)[0] if start <= len(data) else -1
        if not start <= end <= len(data):
            raise InvalidArgument(f"input 'text': element {row} is cut off at byte {len(data)} of the tensor")
        yield data[start:end]
        position, row = end, row + 1


def _decode(element: bytes, row: int) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"text[{row}] is not UTF-8: {error.reason} at byte {error.start}") from None


def _wanted(request: Any) -> list[str]:
    """The names of the outputs asked for; all where none is named."""
    if len(request.outputs) > len({output.name for output in request.outputs}):
        # Each would be a copy of all vectors: a message of megabytes could ask for terabytes.
        raise InvalidArgument("an output is named twice: name each of them once")
    for output in request.outputs:
        if output.name not in OUTPUTS:
            raise InvalidArgument(f"output {output.name!r} is not known; there are {', '.join(OUTPUTS)}")
        if output.parameters:
            name = next(iter(output.parameters))
            raise InvalidArgument(f"output parameter {name!r} is not supported")
    return [output.name for output in request.outputs] or list(OUTPUTS)


def _response(request: Any, result: EmbedResult) -> Any:
    ((route, output),) = result.outputs
    tensors = {
        "embeddings": (TRITON_DTYPE[output.dtype], output.matrix.astype(STORAGE[output.dtype], copy=False)),
        "token_count": ("INT32", np.array(result.token_counts, "<i4")[:, None]),
    }
    response = pb.ModelInferResponse(
        id=request.id,
        model_name=result.encoder.name,
        model_version=str(result.encoder.version),
    )
    for name in _wanted(request):
        datatype, array = tensors[name]
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
    response.parameters["space"].string_param = route.space
    response.parameters["variant"].string_param = result.encoder.variant.name
    if result.browned_out:
        response.parameters["browned_out"].bool_param = True
    if route.hops:
        response.parameters["adapters"].string_param = ",".join(route.names)
    if output.dtype == "int8":
        response.parameters["scale"].double_param = output.scale
    for stage in ("tokenize", "queue", "compute", "output"):
        response.parameters[f"{stage}_ns"].int64_param = round(getattr(result.times, stage) * 1e9)
    return response
