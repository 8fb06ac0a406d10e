"""Which version answers what names none, while others come."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.server.calls import call
from trimtab.errors import BundleError, FailedPrecondition
from trimtab_server.callers.access import SERVER
from trimtab_server.catalog.repository import Repository
from trimtab_server.config import TrialSettings
from trimtab_server.policies.canary import Canary
from trimtab_server.policies.trials import Trials
from trimtab_server.tasks.plan import EmbedRequest, Plan


@dataclass(eq=False)
class Version:
    """As much of an encoder as the repository looks at."""

    name: str
    version: int
    manifest: Any = field(default_factory=lambda: SimpleNamespace(space="a space"))
    default: Any = None
    states_width: int = 0

    def graphs(self) -> tuple["Version", ...]:
        return ()


class World:
    """Opener and adapters in one: version 3 is loaded until `fails`, and then cannot be."""

    def __init__(self) -> None:
        self.loading, self.fails = asyncio.Event(), asyncio.Event()

    async def open(self, name: str, version: int, path: Path) -> Any:
        if version == 3:
            self.loading.set()
            await self.fails.wait()
            raise BundleError("it is broken")
        return Version(name, version)

    async def compare(self, *of: object) -> None:
        pass

    close = compare

    async def read(self, *of: object) -> tuple[()]:
        return ()

    def of(self, *of: object) -> tuple[()]:
        return ()

    def put(self, *of: object) -> None:
        pass

    publish = put

    def wants_states(self, manifest: object) -> bool:
        return False


async def test_trials_of_encoders_that_are_not_there_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a" / "1").mkdir(parents=True)
    world: Any = World()
    trial = TrialSettings(share=1.0)
    trials = Trials({"a": trial, "mistyped": trial}, {"another": trial})
    configured = trials.configured
    await Repository(tmp_path, world, world, lambda entry: None, configured=configured).load_all()
    told = [line for line in caplog.text.splitlines() if "no such encoder" in line]
    assert len(told) == 2 and "[canary.mistyped]" in told[0] and "[shadow.another]" in told[1]


@pytest.mark.parametrize("version", ["newest", 2])
async def test_a_version_is_on_trial_until_a_newer_one_is_there(tmp_path: Path, version: Any) -> None:
    for number in (1, 2):
        (tmp_path / "a" / str(number)).mkdir(parents=True)
    world: Any = World()
    trials = Trials({"a": TrialSettings(version=version, share=1.0)}, {})
    repository = Repository(tmp_path, world, world, lambda entry: None, on_trial=trials.versions)
    await repository.load_all()

    def answer() -> tuple[int, int]:
        found: Any = repository.find(SERVER, "a")
        plan = Plan(EmbedRequest("a", "", ["text"]), found, found, ())
        canary = Canary(repository, trials, world, lambda *counted: None)
        return found.version, canary.plan(call(), plan).version.version

    assert answer() == (1, 2)
    (tmp_path / "a" / "3").mkdir()
    load = asyncio.create_task(repository.load(SERVER, "a"))
    await world.loading.wait()
    assert answer() == (1, 2)
    world.fails.set()
    await load
    assert answer() == (1, 2)


async def test_a_broken_version_does_not_take_the_place_of_one_that_is_served(tmp_path: Path) -> None:
    """With versions.newest, at a load and at a start; the next good one does."""
    world: Any = World()
    world.fails.set()

    def put(*versions: int) -> None:
        for version in versions:
            (tmp_path / "a" / str(version)).mkdir(parents=True)

    def states(repository: Repository) -> dict[int, str]:
        return {each.version: each.state for each in repository.index(SERVER) if not each.retired}

    def repository() -> Repository:
        return Repository(tmp_path, world, world, lambda entry: None, newest=1)

    put(1, 2)
    running = repository()
    await running.load_all()
    assert states(running) == {2: "READY"}
    put(3)
    await running.load(SERVER, "a")
    assert states(running) == {2: "READY", 3: "UNAVAILABLE"}
    assert running.find(SERVER, "a").version == 2
    started = repository()
    await started.load_all()
    assert states(started) == {2: "READY", 3: "UNAVAILABLE"}
    put(4)
    await running.load(SERVER, "a")
    assert states(running) == {4: "READY"}


async def test_a_folder_that_cannot_be_read_keeps_no_other_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At a start, and at a load; and what was served of it stays."""
    for name in ("a", "b", "closed"):
        (tmp_path / name / "1").mkdir(parents=True)
    world: Any = World()
    before = Repository(tmp_path, world, world, lambda entry: None)
    await before.load_all()
    iterdir = Path.iterdir

    def closed(path: Path) -> Any:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(
        FailedPrecondition, match=r"closed cannot be read: Permission denied\. What is served"
    ):
        await before.load(SERVER, "closed")
    assert before.find(SERVER, "closed").version == 1
    repository = Repository(tmp_path, world, world, lambda entry: None)
    await repository.load_all()
    assert [each.name for each in repository.encoders(SERVER)] == ["a", "b"]
    assert "closed cannot be read: Permission denied" in caplog.text
    (tmp_path / "a" / "2").mkdir()
    await repository.load(SERVER, "a")
    assert repository.find(SERVER, "a").version == 2
