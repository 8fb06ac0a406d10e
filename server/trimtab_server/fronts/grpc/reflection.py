"""gRPC's reflection under both of its names: newer tools ask for v1, older ones for v1alpha.

The two have the same messages, byte for byte; the package (1.81) knows v1alpha alone.
"""

from collections.abc import Sequence

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

SERVICES = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)
V1_FILE = "grpc/reflection/v1/reflection.proto"


def add_to(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Let `server` describe these services, and reflection itself."""
    _declare_v1()
    servicer = reflection.aio.ReflectionServicer((*services, *SERVICES))
    handlers = {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
    }
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(service, handlers) for service in SERVICES)
    )


def _declare_v1() -> None:
    """Describe v1, for tools that ask for its description: v1alpha's file under the other name."""
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(V1_FILE)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
        renamed = text_format.MessageToString(file).replace("v1alpha", "v1")
        pool.Add(text_format.Parse(renamed, descriptor_pb2.FileDescriptorProto()))
