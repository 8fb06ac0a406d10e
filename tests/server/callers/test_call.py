"""Who calls is an argument of every room, and nothing stands in for it where it is missing."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import trimtab_server
from tests.server.calls import call
from trimtab.errors import PermissionDenied
from trimtab_server.callers.access import ANYONE, SERVER, Caller

SOURCES = sorted(Path(trimtab_server.__path__[0]).rglob("*.py"))


def defaults(tree: ast.AST) -> Iterator[str]:
    """Parameters of functions and fields of classes that are a caller or a call, and may be left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            positional = [*node.posonlyargs, *node.args]
            given = list(zip(positional[::-1], node.defaults[::-1], strict=False))
            given += zip(node.kwonlyargs, node.kw_defaults, strict=True)
            pairs = [(each.annotation, default) for each, default in given]
        elif isinstance(node, ast.ClassDef):
            fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
            pairs = [(each.annotation, each.value) for each in fields]
        else:
            continue
        for annotation, default in pairs:
            if default is not None and annotation is not None:
                names = {each.id for each in ast.walk(annotation) if isinstance(each, ast.Name)}
                if names & {"Caller", "Call"}:
                    yield f"line {annotation.lineno}: {ast.unparse(annotation)}"


def test_no_room_has_a_caller_of_its_own() -> None:
    """No default caller, and no context variable but the one that lines of the log are written with."""
    for path in SOURCES:
        text = path.read_text()
        assert not list(defaults(ast.parse(text))), path
        assert "ContextVar" not in text or path.name == "logs.py", path


def test_such_a_default_would_be_found() -> None:
    for text in (
        "def f(a: int, caller: Caller = ANYONE): ...",
        "def f(*, call: Call | None = None): ...",
        "class A:\n    caller: Caller = ANYONE",
    ):
        assert list(defaults(ast.parse(text)))


@pytest.mark.parametrize("caller", [ANYONE, SERVER])
def test_whoever_may_do_everything_is_named(caller: Caller) -> None:
    caller.check_admin()
    caller.check_encoder("any")


def test_what_a_caller_may_do() -> None:
    caller = Caller("search", ("news-*", "mail"))
    for name in ("news-de", "mail"):
        caller.check_encoder(name)
    for name in ("news", "mail2", "*"):
        with pytest.raises(PermissionDenied, match="search may not use encoder"):
            caller.check_encoder(name)
    with pytest.raises(PermissionDenied, match="search may not load or unload"):
        caller.check_admin()


def test_a_message_makes_its_call_urgent_and_less_urgent() -> None:
    given = call(seconds=10.0)
    assert given.deadline is not None
    assert given.asking("interactive") is given
    assert given.asking("bulk").priority == "bulk" and given.asking("bulk").deadline == given.deadline
    assert given.asking("bulk", 1.0).deadline == given.arrived + 1.0
    assert given.asking("interactive", 100.0).deadline == given.deadline
    assert call().asking("interactive", 2.0).deadline is not None
