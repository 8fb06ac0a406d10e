"""Adapters read from a repository: which can be used, and what is wrong with the others."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from prometheus_client import CollectorRegistry

from tests import adapters_made as made
from trimtab.artifacts import adapter as adapters
from trimtab.artifacts.adapter import Endpoint
from trimtab.errors import PermissionDenied
from trimtab.v1 import encoder_pb2 as pb
from trimtab_server.callers.access import SERVER, Caller
from trimtab_server.fronts.grpc.native import NativeServicer
from trimtab_server.spaces.adapters import Adapters
from trimtab_server.spaces.route import LoadedAdapter
from trimtab_server.spaces.watching import DriftMonitor

NEW = Endpoint(encoder="new", version=2, space="a" * 16, dimensions=6)
OLD = Endpoint(encoder="old", version=1, space="b" * 16, dimensions=4)
GRAPH = made.linear(made.rotation(6, 4, 1))


@pytest.fixture
def mapped() -> Iterator[Adapters]:
    watch = DriftMonitor(CollectorRegistry())
    yield Adapters(watch)
    watch.stop()


def read(mapped: Adapters, repository: Path) -> dict[str, LoadedAdapter]:
    mapped.put("new", asyncio.run(mapped.read(repository, "new")))
    mapped.publish(())
    return {loaded.name: loaded for loaded in mapped.all(SERVER)}


def renamed(graph: onnx.ModelProto, before: str, after: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    for each in (*copy.graph.input, *copy.graph.output):
        each.name = each.name.replace(before, after)
    for node in copy.graph.node:
        node.input[:] = [name.replace(before, after) for name in node.input]
        node.output[:] = [name.replace(before, after) for name in node.output]
    return copy


def cut(path: Path) -> None:
    (path / "adapter.onnx").write_bytes(b"short")


WRONG: list[tuple[str, dict, Callable[[Path], None] | None, str]] = [
    ("cut off", {}, cut, "bytes"),
    ("no graph", {"graph": b"no graph"}, None, "cannot be loaded"),
    ("input", {"graph": renamed(GRAPH, "vectors", "rows")}, None, "takes 'rows'"),
    ("output", {"graph": renamed(GRAPH, "adapted", "result")}, None, "gives 'adapted'"),
    ("groups", {"groups": ("de",)}, None, "takes 'group' tensor"),
    ("width", {"graph": made.linear(np.eye(5, 4))}, None, "vectors of 5 components"),
    ("states", {"reads": "states"}, None, "reads the states"),
    ("embeddings", {"graph": made.linear(np.eye(9, 4))}, None, "reads the embeddings"),
    ("target", {"graph": made.linear(np.eye(6, 3))}, None, r"float32 \(32, 3\) instead of"),
    ("folder", {"folder": "new", "source": OLD}, None, "maps vectors of old.*Move it"),
    ("queries", {"queries": np.ones((60, 5))}, None, r"float16 \(60, 5\)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "harm", "match"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
)
def test_what_is_wrong_is_said_and_harms_no_other(
    mapped: Adapters, tmp_path: Path, changes: dict, harm: Callable[[Path], None] | None, match: str
) -> None:
    made.adapter(tmp_path / "models", "good", NEW, OLD, GRAPH)
    settings = {"source": NEW, "target": OLD, "graph": GRAPH, **changes}
    path = made.adapter(tmp_path / "models", "bad", **settings)
    if harm is not None:
        harm(path)
    found = read(mapped, tmp_path / "models")
    assert found["new/good"].problem == "" and found["new/good"].session is not None
    bad = found["new/bad"]
    assert bad.session is None
    with pytest.raises(AssertionError, match=match):
        raise AssertionError(bad.problem)


def test_a_folder_without_a_manifest_that_can_be_read_is_left_out(mapped: Adapters, tmp_path: Path) -> None:
    made.adapter(tmp_path, "good", NEW, OLD, GRAPH)
    path = made.adapter(tmp_path, "bad", NEW, OLD, GRAPH)
    (path / adapters.MANIFEST).write_text("{")
    (path.parent / "empty").mkdir()
    assert list(read(mapped, tmp_path)) == ["new/good"]


def test_a_link_that_leads_out_of_the_repository_is_not_followed(mapped: Adapters, tmp_path: Path) -> None:
    path = made.adapter(tmp_path / "models", "good", NEW, OLD, GRAPH)
    outside = made.adapter(tmp_path / "elsewhere", "linked", NEW, OLD, GRAPH)
    (path.parent / "linked").symlink_to(outside)
    assert list(read(mapped, tmp_path / "models")) == ["new/good"]


def test_what_has_not_changed_is_not_opened_again(mapped: Adapters, tmp_path: Path) -> None:
    made.adapter(tmp_path, "one", NEW, OLD, GRAPH)
    made.adapter(tmp_path, "other", NEW, OLD, GRAPH)
    before = read(mapped, tmp_path)
    made.adapter(tmp_path, "other", NEW, OLD, made.linear(made.rotation(6, 4, 2)))
    after = read(mapped, tmp_path)
    assert after["new/one"].session is before["new/one"].session
    assert after["new/other"].session is not before["new/other"].session


def test_too_few_queries_are_no_hindrance(mapped: Adapters, tmp_path: Path) -> None:
    made.adapter(tmp_path, "few", NEW, OLD, GRAPH, queries=np.ones((7, 6)))
    made.adapter(tmp_path, "many", NEW, OLD, GRAPH, queries=np.eye(6)[[0, 1, 2] * 20])
    found = read(mapped, tmp_path)
    assert found["new/few"].problem == "" and found["new/few"].watched is None
    assert found["new/many"].watched is not None


async def test_callers_see_the_adapters_of_their_encoders(mapped: Adapters, tmp_path: Path) -> None:
    made.adapter(tmp_path, "to-old", NEW, OLD, GRAPH)
    mapped.put("new", await mapped.read(tmp_path, "new"))
    mapped.publish(())
    pipeline = SimpleNamespace(repository=SimpleNamespace(adapters=mapped))
    servicer = NativeServicer(pipeline, None, None, None, None)  # type: ignore[arg-type]

    async def listed(encoders: tuple[str, ...], asked: str) -> list[str]:
        opened: Any = SimpleNamespace(caller=Caller("somebody", encoders))
        answer = await servicer.ListAdapters(pb.ListAdaptersRequest(encoder=asked), opened)
        return [adapter.name for adapter in answer.adapters]

    assert await listed(("new",), "") == await listed(("n*",), "new") == ["to-old"]
    assert await listed(("other",), "") == []
    with pytest.raises(PermissionDenied):
        await listed(("other",), "new")
