"""`trimtab` itself: the commands that it finds, and how it fails."""

import sys
from importlib import metadata
from types import ModuleType

import pytest

from trimtab import cli
from trimtab.errors import InvalidArgument


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A command `fake`, beside one whose part is not there."""
    module = ModuleType("fake_command")
    module.__doc__ = "What it does."
    module.SUMMARY = "does it"  # type: ignore[attr-defined]
    module.EXTRA = "server"  # type: ignore[attr-defined]
    module.configure = lambda parser: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_command", module)
    entries = [
        metadata.EntryPoint("fake", "fake_command", "trimtab.commands"),
        metadata.EntryPoint("gone", "taken_out.cli", "trimtab.commands"),
    ]
    monkeypatch.setattr(metadata, "entry_points", lambda group: entries)
    return module


def raising(error: Exception) -> object:
    def run(options: object) -> int:
        raise error

    return run


def test_the_base_brings_its_commands() -> None:
    assert {"embed", "info"} <= set(cli.find_commands())


def test_a_part_that_is_not_there_does_not_break_the_others(command: ModuleType) -> None:
    assert list(cli.find_commands()) == ["fake"]


def test_a_part_that_lacks_a_package_is_not_hidden(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'fake'", name="fake")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(ModuleNotFoundError):
        cli.find_commands()


def test_an_error_of_ours_is_one_line(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    command.run = raising(InvalidArgument("a bad text"))  # type: ignore[attr-defined]
    assert cli.main(["fake"]) == 1
    assert capsys.readouterr().err == "trimtab fake: a bad text\n"


def test_a_missing_package_names_the_extra(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    command.run = raising(ModuleNotFoundError(name="onnxruntime"))  # type: ignore[attr-defined]
    assert cli.main(["fake"]) == 1
    assert "pip install 'trimtab[server]'" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"trimtab {metadata.version('trimtab')}\n"
