"""What the package shows, and what it brings along."""

import inspect
import subprocess
import sys
from typing import Any

import pytest

import trimtab
from trimtab.sdk.base import BaseClient


def test_exported_names() -> None:
    assert trimtab.__all__ == [
        "Adapter",
        "AdapterError",
        "AsyncClient",
        "AsyncEmbeddingStream",
        "AsyncHalfMigrated",
        "AsyncHybridSearch",
        "BundleError",
        "Calibrator",
        "Cancelled",
        "Client",
        "ConfigError",
        "DamagedError",
        "DeadlineExceeded",
        "Dtype",
        "EmbedOptions",
        "EmbeddingStream",
        "Embeddings",
        "Encoder",
        "EncoderOutput",
        "Endpoint",
        "ExportError",
        "FailedPrecondition",
        "Fidelity",
        "HalfMigrated",
        "HybridSearch",
        "InternalError",
        "InvalidArgument",
        "Limits",
        "MultiVectors",
        "NotFound",
        "Outputs",
        "PermissionDenied",
        "Priority",
        "Ranked",
        "Ranking",
        "ResourceExhausted",
        "Role",
        "SparseVectors",
        "StageTimes",
        "TrimtabError",
        "Truncate",
        "Unauthenticated",
        "Unavailable",
        "Unimplemented",
        "Variant",
        "read_vocabulary",
    ]


def test_every_error_of_the_tree_is_exported() -> None:
    tree = [trimtab.TrimtabError]
    for error in tree:
        tree.extend(error.__subclasses__())
    # Where other tests of this process have imported the server, the tree has its own errors, too.
    own = {error.__name__ for error in tree if error.__module__.startswith("trimtab.")}
    assert own <= set(trimtab.__all__)


def operations(client: type) -> dict[str, Any]:
    return {
        name: member
        for name, member in inspect.getmembers(client, inspect.isfunction)
        if name == "__init__" or not name.startswith("_")
    }


def test_both_clients_offer_the_same() -> None:
    sync, asynchronous = operations(trimtab.Client), operations(trimtab.AsyncClient)
    assert sync.keys() == asynchronous.keys() == operations(BaseClient).keys()
    wider = {("embed_stream", "texts"), ("rescore", "texts")}  # of AsyncClient, which takes async ones, too
    for name, member in sync.items():
        ours, theirs = inspect.signature(member).parameters, inspect.signature(asynchronous[name]).parameters
        assert list(ours) == list(theirs), name
        for parameter, mine in ours.items():
            other = theirs[parameter]
            assert (mine.kind, mine.default) == (other.kind, other.default), (name, parameter)
            assert (mine.annotation == other.annotation) != ((name, parameter) in wider), (name, parameter)
        assert inspect.getdoc(member) == inspect.getdoc(asynchronous[name]), name


def test_both_streams_tell_the_same() -> None:
    def told(stream: type) -> dict[str, str | None]:
        members = inspect.getmembers(stream, lambda member: isinstance(member, property))
        return {name: inspect.getdoc(member) for name, member in members if not name.startswith("_")}

    sync, asynchronous = told(trimtab.EmbeddingStream), told(trimtab.AsyncEmbeddingStream)
    assert sync.keys() == asynchronous.keys() and all(sync.values())


def test_what_is_public_is_documented() -> None:
    for name in set(trimtab.__all__) - {"Dtype", "Priority", "Role", "Truncate"}:
        member = getattr(trimtab, name)
        assert inspect.getdoc(member), name
        for method, function in inspect.getmembers(member, inspect.isfunction):
            if not method.startswith("_") and function.__module__.startswith("trimtab"):
                assert inspect.getdoc(function), f"{name}.{method}"


def test_the_import_brings_only_what_the_base_requires() -> None:
    script = (
        "import sys; before = set(sys.modules); import trimtab\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(loaded - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    packages = {"trimtab", "grpc", "google", "numpy", "msgspec"}
    # grpc brings typing_extensions, and shows those of its siblings that happen to be installed.
    siblings = {"typing_extensions", "grpc_health", "grpc_reflection", "grpc_tools", "grpc_status"}
    loaded = {name for name in done.stdout.split() if "cython" not in name}
    assert loaded - siblings <= packages


ALONE = [
    "artifacts.bundle",
    "artifacts.signatures",
    "core.exchange",
    "errors",
    "inputs",
    "kinds",
    "values.dense",
]


@pytest.mark.parametrize("module", ALONE)
def test_a_module_alone_brings_no_more_than_it_needs(module: str) -> None:
    """A device's own process reads some of these, and must not load gRPC."""
    unwanted = {"grpc", "tokenizers", "trimtab.public"}
    script = f"import sys, trimtab.{module}; assert not {unwanted} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


FIRST = ["artifacts.adapter", "artifacts.bundle", "core.answers", "kinds", "public", "sdk.client", "tokens"]


@pytest.mark.parametrize("first", FIRST)
def test_any_module_may_be_imported_first(first: str) -> None:
    script = (
        f"import trimtab.{first}, trimtab; assert set(trimtab.__all__) <= set(dir(trimtab)); trimtab.Client"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    room = first.partition(".")[0]
    script = f"from trimtab import {room}, AsyncClient; from trimtab import *; Client"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_is_not_there_is_told_as_usual() -> None:
    with pytest.raises(AttributeError, match="module 'trimtab' has no attribute 'Nothing'"):
        trimtab.Nothing  # noqa: B018
