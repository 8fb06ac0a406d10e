"""The callers (callers.py) in a process of their own, and their counts so far."""

import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from bench import processes


class CallersProcess:
    """A process of callers, and its latest counts."""

    def __init__(
        self, url: str, requests: int, *, first: int = 0, tls: Path | None = None, several: bool = False
    ) -> None:
        command = [processes.PYTHON, "-m", "bench.chaos.callers", url, "--requests", str(requests)]
        command += ["--first", str(first), *(["--tls", str(tls)] if tls else [])]
        command += ["--several"] if several else []
        self.process = subprocess.Popen(
            command, cwd=processes.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.told: dict[str, Any] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def sent(self) -> int:
        """Requests so far."""
        return int(self.told.get("sent", 0))

    def answered(self) -> int:
        """Right answers so far, among those that were compared."""
        return int(self.told.get("checked", 0))

    def until_answered(self, more: int, seconds: float = 60) -> None:
        """Wait until this many more are answered."""
        least, until = self.answered() + more, time.monotonic() + seconds
        while self.answered() < least:
            if time.monotonic() > until or self.process.poll() is not None:
                raise RuntimeError("the callers are not answered any more")
            time.sleep(0.05)

    def finish(self, seconds: float = 900) -> dict[str, Any]:
        """Close their standard input, and wait until everything is sent and answered."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(seconds)
        self._reader.join()
        return self.told

    def kill(self) -> None:
        """Vanish, with requests in flight."""
        self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told = json.loads(line)
