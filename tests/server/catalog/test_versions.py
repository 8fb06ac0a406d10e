"""Versions that come and go on disk are taken up and given up by themselves, and no call fails over it."""

import asyncio
import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.server.misbehaving import running
from tests.server.server_process import NAME
from trimtab.errors import FailedPrecondition, NotFound
from trimtab_server.callers.access import SERVER, Caller
from trimtab_server.catalog import polling
from trimtab_server.catalog.repository import Repository
from trimtab_server.catalog.served import REMEMBERED
from trimtab_server.config import VersionsSettings

SWAPS = 6


def put(repository: Path, to: Path, version: int) -> None:
    """The exported bundle once more, as another version that appears by one rename."""
    stage, target = to.parent / f"stage-{version}", to / NAME / str(version)
    # Not of the bundle that all tests share: onnx reads no weights that have several names.
    first = to / NAME / "1"
    shutil.copytree(
        first if first.exists() else repository / NAME / "1",
        stage,
        copy_function=os.link if first.exists() else shutil.copy2,
    )
    manifest = json.loads((stage / "manifest.json").read_text())
    (stage / "manifest.json").unlink()
    (stage / "manifest.json").write_text(json.dumps(manifest | {"version": version}))
    target.parent.mkdir(parents=True, exist_ok=True)
    stage.rename(target)


def newest(served: Repository, version: int) -> bool:
    return served.find(SERVER, NAME).version == version


async def test_new_versions_take_over_while_calls_go_on(minilm_repository: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    put(minilm_repository, repository, 1)
    versions = VersionsSettings(newest=1, poll_seconds=0.01)
    async with running(repository, "a", versions=versions) as (rig, client):
        assert rig.app is not None
        served = rig.app.repository
        stopping = False
        answered = 0

        async def calls(number: int) -> None:
            nonlocal answered
            while not stopping:
                await client.embed(f"caller {number}", f"after {answered}")
                answered += 2

        load = [asyncio.create_task(calls(number)) for number in range(8)]
        for version in range(2, 2 + SWAPS):
            put(minilm_repository, repository, version)
            await rig.until(partial(newest, served, version))
        await rig.until(lambda: len(served.encoders(SERVER)) == 1)
        stopping = True
        await asyncio.gather(*load)
        assert answered > 0
        # What is not served any more leaves no series behind, or a server would grow with its versions.
        await rig.until(lambda: rig.versions() == {str(1 + SWAPS)})
        with pytest.raises(FailedPrecondition, match=r"versions\.newest"):
            served.find(SERVER, NAME, str(SWAPS))
        with pytest.raises(NotFound):  # the reasons are not remembered for ever
            served.find(SERVER, NAME, "1")
        assert len(served.index(SERVER)) == 1 + REMEMBERED < 1 + SWAPS


async def test_what_a_client_unloaded_stays_so_until_it_changes(
    minilm_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def contents(path: Path) -> dict[str, polling.Contents]:
        nonlocal looks
        looks += 1
        return looked(path)

    looked = polling.contents
    monkeypatch.setattr(polling, "contents", contents)
    repository = tmp_path / "models"
    put(minilm_repository, repository, 1)
    async with running(repository, "a", versions=VersionsSettings(poll_seconds=0.01)) as (rig, _):
        assert rig.app is not None
        served = rig.app.repository
        await served.unload(SERVER, NAME)
        (repository / "not-an-encoder").mkdir()  # a change elsewhere
        before = looks
        await rig.until(lambda: looks > before + 2)
        assert not served.encoders(SERVER)
        put(minilm_repository, repository, 2)
        await rig.until(lambda: [each.version for each in served.encoders(SERVER)] == [2, 1])
        shutil.rmtree(repository / NAME / "2")
        await rig.until(lambda: [each.version for each in served.encoders(SERVER)] == [1])


@pytest.mark.parametrize("emptied", ["", NAME])
async def test_a_mount_point_that_is_emptied_takes_no_encoder_with_it(
    minilm_repository: Path, tmp_path: Path, emptied: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the repository, or of one encoder: neither the looking nor a call to load it unloads anything."""
    repository, away = tmp_path / "models", tmp_path / "away"
    put(minilm_repository, repository, 1)
    mount = repository / emptied
    async with running(repository, "a", versions=VersionsSettings(poll_seconds=0.01)) as (rig, _):
        assert rig.app is not None
        served = rig.app.repository
        mount.rename(away)
        mount.mkdir()
        await rig.until(lambda: "what is served stays" in caplog.text)
        with pytest.raises(FailedPrecondition, match="as if a volume were not mounted"):
            await served.load(SERVER, NAME)
        assert [each.version for each in served.encoders(SERVER)] == [1]
        mount.rmdir()
        away.rename(mount)
        put(minilm_repository, repository, 2)  # it goes on looking
        await rig.until(lambda: [each.version for each in served.encoders(SERVER)] == [2, 1])


async def test_looking_goes_on_after_an_error_that_nobody_foresaw(
    minilm_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models"
    put(minilm_repository, repository, 1)
    failures = 0

    async def load(self: Repository, caller: Caller, name: str) -> None:
        nonlocal failures
        if not failures:
            failures += 1
            raise RecursionError("of a library")
        await loaded(self, caller, name)

    async with running(repository, "a", versions=VersionsSettings(poll_seconds=0.01)) as (rig, _):
        assert rig.app is not None
        loaded = Repository.load
        monkeypatch.setattr(Repository, "load", load)
        put(minilm_repository, repository, 2)
        await rig.until(lambda: failures == 1)
        put(minilm_repository, repository, 3)
        await rig.until(partial(newest, rig.app.repository, 3))
