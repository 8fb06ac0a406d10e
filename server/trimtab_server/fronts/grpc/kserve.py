"""inference.GRPCInferenceService: the KServe v2 / Triton protocol, so that tritonclient works unchanged.

Source: the Open Inference Protocol (KServe v2) with Triton's extensions, by tritonclient's own stubs.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from importlib import metadata
from typing import Any

from tritonclient.grpc import model_config_pb2 as mc
from tritonclient.grpc import service_pb2 as pb

from trimtab.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import LoadedEncoder
from trimtab_server.fronts.grpc.intake import OpenCall
from trimtab_server.fronts.grpc.kserve_messages import (
    COUNT,
    TRITON_DTYPE,
    forms,
    inputs,
    parse,
    respond,
    rows,
)
from trimtab_server.fronts.grpc.statuses import as_trimtab_error, shorten
from trimtab_server.fronts.grpc.stream import Streams
from trimtab_server.observing.metrics import Count
from trimtab_server.tasks.embed import Embedder, EmbedResult
from trimtab_server.tasks.pipeline import Pipeline

PROTOCOL = "kserve"
EXTENSIONS = ("model_repository", "model_configuration", "statistics", "parameters")


class KServeServicer:
    """Translates the messages of inference.GRPCInferenceService; the tasks do the work.

    The boundary calls each method with its message, or with the messages of a stream, and with the open call.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        embedder: Embedder,
        streams: Streams,
        serving: Callable[[], bool],
    ) -> None:
        self._pipeline = pipeline
        self._embedder = embedder
        self._max_texts = pipeline.limits.max_texts
        self._repository = pipeline.repository
        self._streams = streams
        self._serving = serving

    # -- state ---------------------------------------------------------------------------------------

    async def ServerLive(self, request: Any, opened: OpenCall) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, opened: OpenCall) -> Any:
        return pb.ServerReadyResponse(ready=self._serving())

    async def ModelReady(self, request: Any, opened: OpenCall) -> Any:
        named = [
            encoder for encoder in self._repository.encoders(opened.caller) if encoder.name == request.name
        ]
        ready = self._serving() and any(request.version in ("", str(encoder.version)) for encoder in named)
        return pb.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, request: Any, opened: OpenCall) -> Any:
        return pb.ServerMetadataResponse(
            name="trimtab", version=metadata.version("trimtab"), extensions=EXTENSIONS
        )

    async def ModelMetadata(self, request: Any, opened: OpenCall) -> Any:
        encoder = self._repository.find(opened.caller, request.name, request.version)
        versions = [
            str(each.version)
            for each in self._repository.encoders(opened.caller)
            if each.name == encoder.name
        ]
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=encoder.name,
            versions=versions,
            platform="trimtab",
            inputs=[tensor(name=name, datatype="BYTES", shape=[-1, 1]) for name in inputs(encoder)],
            outputs=[
                *(
                    tensor(name=form.name, datatype=TRITON_DTYPE[form.dtype], shape=form.shape)
                    for each in forms(encoder).values()
                    for form in each
                ),
                tensor(name=COUNT, datatype="INT32", shape=[-1, 1]),
            ],
        )

    async def ModelConfig(self, request: Any, opened: OpenCall) -> Any:
        encoder = self._repository.find(opened.caller, request.name, request.version)
        manifest = encoder.manifest
        parameters = {
            "space": manifest.space,
            "variants": ",".join(each.variant.name for each in encoder.graphs()),
            "similarity": encoder.output.kind.similarity(encoder.own),
            "max_tokens": str(manifest.max_tokens),
            "query_prompt": manifest.prompts.query,
            "passage_prompt": manifest.prompts.passage,
        }
        config = mc.ModelConfig(
            name=encoder.name,
            backend="trimtab",
            platform="trimtab",
            max_batch_size=self._pipeline.limits.max_texts,
            input=[mc.ModelInput(name=name, data_type=mc.TYPE_STRING, dims=[1]) for name in inputs(encoder)],
            output=[
                *(
                    mc.ModelOutput(
                        name=form.name,
                        data_type=mc.DataType.Value(f"TYPE_{TRITON_DTYPE[form.dtype]}"),
                        dims=form.shape[1:] or [-1],  # without the axis of the batch
                    )
                    for each in forms(encoder).values()
                    for form in each
                ),
                mc.ModelOutput(name=COUNT, data_type=mc.TYPE_INT32, dims=[1]),
            ],
            dynamic_batching=mc.ModelDynamicBatching(),
            parameters={key: mc.ModelParameter(string_value=value) for key, value in parameters.items()},
        )
        return pb.ModelConfigResponse(config=config)

    async def ModelStatistics(self, request: Any, opened: OpenCall) -> Any:
        if request.name:
            self._repository.find(opened.caller, request.name, request.version)
        chosen = [
            encoder
            for encoder in self._repository.encoders(opened.caller)
            if request.name in ("", encoder.name) and request.version in ("", str(encoder.version))
        ]
        return pb.ModelStatisticsResponse(model_stats=[await self._statistics(each) for each in chosen])

    # -- the model repository ------------------------------------------------------------------------

    async def RepositoryIndex(self, request: Any, opened: OpenCall) -> Any:
        self._check_repository(request.repository_name)
        index = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(
            models=[
                index(name=entry.name, version=str(entry.version), state=entry.state, reason=entry.reason)
                for entry in self._repository.index(opened.caller)
                if entry.state == "READY" or not request.ready
            ]
        )

    async def RepositoryModelLoad(self, request: Any, opened: OpenCall) -> Any:
        self._check_repository(request.repository_name)
        if request.parameters:
            raise InvalidArgument(
                f"load parameter {next(iter(request.parameters))!r} is not supported: a bundle is "
                "immutable and comes only from the repository"
            )
        await self._repository.load(opened.caller, request.model_name)
        entries = [
            entry for entry in self._repository.index(opened.caller) if entry.name == request.model_name
        ]
        ready = [str(entry.version) for entry in entries if entry.state == "READY"]
        problems = self._repository.problems(request.model_name)
        if not ready:
            self._repository.find(opened.caller, request.model_name)  # says why
        if problems:
            raise FailedPrecondition(
                f"{request.model_name} version {', '.join(ready)} is served, but not {', '.join(problems)}: "
                + "; ".join(problems.values())
            )
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, opened: OpenCall) -> Any:
        self._check_repository(request.repository_name)
        for name in request.parameters:
            if name != "unload_dependents":  # no encoder has dependents: nothing to do
                raise InvalidArgument(f"unload parameter {name!r} is not supported")
        await self._repository.unload(opened.caller, request.model_name)
        return pb.RepositoryModelUnloadResponse()

    # -- inference -----------------------------------------------------------------------------------

    async def ModelInfer(self, request: Any, opened: OpenCall) -> Any:
        return await self._infer(opened.request(PROTOCOL), request, respond)

    async def ModelStreamInfer(self, messages: AsyncIterator[Any], opened: OpenCall) -> None:
        """Answers in the order of the requests, as Triton does for models like these."""

        async def answer(message: Any) -> bytes:
            try:
                outcome = await self._infer(opened.request(PROTOCOL), message, _streamed)
                if isinstance(outcome, bytes):
                    return outcome
            except Exception as error:
                outcome = pb.ModelStreamInferResponse(
                    error_message=shorten(str(as_trimtab_error(error))),
                    infer_response=pb.ModelInferResponse(
                        id=message.id, model_name=message.model_name, model_version=message.model_version
                    ),
                )
            serialized: bytes = outcome.SerializeToString()
            return serialized

        await self._streams.serve(messages, opened, self._texts, answer, in_order=True)

    async def _infer(self, call: Call, request: Any, make: Callable[[Any, EmbedResult], Any]) -> Any:
        """The answer that `make` makes of a result; serialised, if it is large."""
        find = partial(self._repository.find, call.caller)
        call, asked = self._pipeline.read(call, parse, request, self._max_texts, find)
        result = await self._embedder.embed(call, asked)
        if result.large:
            return await asyncio.to_thread(lambda: make(request, result).SerializeToString())
        return await self._pipeline.made(call, len(result.token_counts), make, request, result)

    def _texts(self, request: Any) -> int:
        return min(rows(request), self._max_texts)

    # -- what this server does not offer --------------------------------------------------------------

    async def SystemSharedMemoryStatus(self, request: Any, opened: OpenCall) -> Any:
        return pb.SystemSharedMemoryStatusResponse()  # no region can be registered, so there is none

    async def SystemSharedMemoryRegister(self, request: Any, opened: OpenCall) -> Any:
        raise Unimplemented("shared memory is not offered: send tensors in the request")

    async def SystemSharedMemoryUnregister(self, request: Any, opened: OpenCall) -> Any:
        return pb.SystemSharedMemoryUnregisterResponse()  # as Triton for what is not registered

    async def CudaSharedMemoryStatus(self, request: Any, opened: OpenCall) -> Any:
        return pb.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryRegister(self, request: Any, opened: OpenCall) -> Any:
        raise Unimplemented("shared memory is not offered: send tensors in the request")

    async def CudaSharedMemoryUnregister(self, request: Any, opened: OpenCall) -> Any:
        return pb.CudaSharedMemoryUnregisterResponse()

    async def TraceSetting(self, request: Any, opened: OpenCall) -> Any:
        raise Unimplemented("this server does not write Triton's traces")

    async def LogSettings(self, request: Any, opened: OpenCall) -> Any:
        raise Unimplemented("log settings cannot be changed over the network")

    # -- helpers -------------------------------------------------------------------------------------

    def _check_repository(self, name: str) -> None:
        if name:
            raise NotFound(f"repository {name!r} is not known: this server has one, which has no name")

    async def _statistics(self, encoder: LoadedEncoder) -> Any:
        counted = await self._pipeline.statistics(encoder)

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


def _streamed(request: Any, result: EmbedResult) -> Any:
    """The ModelStreamInferResponse to a request."""
    outcome = pb.ModelStreamInferResponse(infer_response=respond(request, result))
    final = request.parameters.get("triton_enable_empty_final_response")
    if final is not None and final.bool_param:
        outcome.infer_response.parameters["triton_final_response"].bool_param = True
    return outcome
