"""Floods, each ten times what once took a gigabyte or froze the server: what they cost other callers.

Memory is compared with the figure that docs/configuration.md derives from the limits. A well-behaved caller,
with its own connection and key, is timed three times: alone (calm), while another server is flooded
(control), and while its own is (flooded). With two cores, both servers share one and all callers the other,
the flood at lower priority than the well-behaved caller. So flooded / calm is what a flood costs in all,
with the time that it takes from the machine; flooded / control is what it costs through the server.
"""

import hashlib
import json
import os
import secrets
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import processes
from bench.chaos import flooding, known, replicas
from bench.chaos.replicas import Replica
from bench.chaos.table import Bar, PartResult
from trimtab_server.config import LimitSettings
from trimtab_server.tasks.pipeline import BYTES_A_TOKEN

# From one connection, and from ten times as many as once did harm: six that never read, and 300 idle ones
# (3,000 idle ones are more than a server accepts).
ONE, MANY = 1, 10
MANY_OF = {"unread": 60, "idle": 400}
# Credentials: none needed; needed but missing; a tenant's key.
CREDENTIALS = ("open", "refused", "tenant")
MIB = 1 << 20
# The cost of each, from docs/configuration.md.
CONNECTION_BYTES = 100 << 10
CALL_BYTES = 112 << 10
WAITING_CALL_BYTES = 56 << 10
TOKEN_BYTES = 4 * BYTES_A_TOKEN
MOST_MEMORY, MOST_TIME = 1.5, 3.0
# The rest of a server fits into this much.
SERVER_BYTES = 4 << 30


def bound(base: int, limits: LimitSettings, connections: int) -> int:
    """The most memory a server may use with this many connections, if it uses `base` when idle."""
    connections = min(connections, limits.max_connections)
    each = limits.max_calls_per_connection
    calls = min(limits.max_calls, connections * each)
    waiting = 2 * connections * each
    return (
        base
        + connections * CONNECTION_BYTES
        + waiting * WAITING_CALL_BYTES
        + calls * CALL_BYTES
        + 2 * limits.max_received_bytes
        + limits.max_unread_bytes
        + limits.max_tokens_in_flight * TOKEN_BYTES
    )


def _key(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """A key for each name, in folder/keys.toml."""
    keys = {name: secrets.token_urlsafe(32) for name in names}
    entries = (
        f'[[key]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\nencoders = ["*"]\n'
        for name, key in keys.items()
    )
    (folder / "keys.toml").write_text("\n".join(entries))
    return keys


def _well(url: str, seconds: float, token: str) -> "subprocess.Popen[str]":
    """A well-behaved caller, for this long."""
    command = [*_on(1), processes.PYTHON, "-m", "bench.chaos.well", url, str(seconds)]
    command += [token] if token else []
    return subprocess.Popen(command, cwd=processes.ROOT, stdout=subprocess.PIPE, text=True)


def _on(place: int) -> list[str]:
    """Command prefix that pins to the first or second core, if there are two."""
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[place])] if len(cores) > 1 else []


def _heard(process: "subprocess.Popen[str]") -> dict[str, Any]:
    said, _ = process.communicate(timeout=120)
    told: dict[str, Any] = json.loads(said)
    return told


def _beside(
    flood: str, target: Replica, connections: int, token: str, measured: Replica, seconds: float, own: str
) -> tuple[dict[str, Any], dict[str, int]]:
    """Run the well-behaved caller of one server during a flood of the same, or of another; both results."""
    metrics_port = target.metrics_url.partition("://")[2].partition("/")[0].rpartition(":")[2]
    command = [*_on(1), "nice", "-n", "19", processes.PYTHON, "-m", "bench.chaos.flooding", flood]
    command += [str(target.port), metrics_port, str(seconds + 2), str(connections)]
    command += [token] if token else []
    attacker = subprocess.Popen(command, cwd=processes.ROOT, stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    well = _heard(_well(measured.url, seconds, own))
    return well, _heard(attacker)


def _flooded(
    flood: str, replica: Replica, decoy: Replica, connections: int, seconds: float, token: str, own: str
) -> dict[str, Any]:
    """Time the caller during a flood of the decoy, then of its own server. Watch the peak memory of that."""
    control, _ = _beside(flood, decoy, connections, token, replica, seconds, own)
    before, busy = replica.resident(), _cpu_seconds(replica.pid)
    Path(f"/proc/{replica.pid}/clear_refs").write_text("5")  # resets the peak
    well, sent = _beside(flood, replica, connections, token, replica, seconds, own)
    busy = _cpu_seconds(replica.pid) - busy
    time.sleep(0.5)
    return {
        "flood": flood, "connections": connections,
        "before_mb": before // MIB, "peak_mb": replica.peak() // MIB, "after_mb": replica.resident() // MIB,
        "control_ms": control["p99_ms"], "p50_ms": well["p50_ms"], "p99_ms": well["p99_ms"],
        "connect_ms": well["connect_ms"],
        "calls": well["calls"], "refused": well["refused"] + control["refused"], "cpu_s": round(busy, 2),
        "sent": sent,
    }  # fmt: skip


def run(
    folder: Path, seconds: float, only: Sequence[str] = (), shown: Sequence[str] = CREDENTIALS
) -> PartResult:
    """Every flood, or those named, from one connection and from ten, with and without credentials."""
    bundle, repository = known.bundle(), folder / "models"
    repository.mkdir(parents=True)
    replicas.copy_of(bundle, repository)
    keys = _key(folder, ("flood", "well"))
    rows: list[dict[str, Any]] = []
    limits = LimitSettings()
    for credentials in shown:
        auth = "" if credentials == "open" else f'[auth]\nkeys = "{folder / "keys.toml"}"\n'
        config = f'devices = ["cpu"]\n[engine]\ncosts = "{folder / "costs"}"\n{auth}'
        replica, decoy = (
            Replica(name, folder / name, repository, config, under=_on(0))
            for name in (credentials, f"{credentials}-decoy")
        )
        token, own = keys["flood"] if credentials == "tenant" else "", keys["well"] if auth else ""
        with replicas.running(replica, decoy):
            _heard(_well(replica.url, seconds, own))
            base = replica.resident()
            for name in only or flooding.FLOODS:
                calm = _heard(_well(replica.url, seconds, own))
                for times in (ONE, MANY):
                    connections = times if times == ONE else MANY_OF.get(name, times)
                    row = _flooded(name, replica, decoy, connections, seconds, token, own)
                    row |= {"credentials": credentials, "times": times, "calm_ms": calm["p99_ms"]}
                    row["refused"] += calm["refused"]
                    row["bound_mb"] = bound(base, limits, 1 + connections) // MIB
                    rows.append(row)
                    print(_line(row), flush=True)
    return PartResult(
        {"seconds": seconds, "floods": rows, "limit_mb": bound(0, limits, limits.max_connections) // MIB},
        [
            Bar("memory / the limits' figure", max(r["peak_mb"] / r["bound_mb"] for r in rows), MOST_MEMORY),
            Bar("peak memory, MB", max(r["peak_mb"] for r in rows), SERVER_BYTES // MIB),
            Bar("p99 of others / calm, one connection", _worst(rows, ONE, "calm_ms"), MOST_TIME),
            Bar("p99 of others / calm, ten times", _worst(rows, MANY, "calm_ms"), MOST_TIME),
            Bar("p99 of others / control, one connection", _worst(rows, ONE, "control_ms"), MOST_TIME),
            Bar("p99 of others / control, ten times", _worst(rows, MANY, "control_ms"), MOST_TIME),
            Bar("refused of others", sum(r["refused"] for r in rows), 0),
        ],
    )  # fmt: skip


def _cpu_seconds(pid: int) -> float:
    """The user and system CPU time of a process, in seconds."""
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _worst(rows: Sequence[dict[str, Any]], times: int, against: str) -> float:
    ratios = [float(r["p99_ms"]) / float(r[against]) for r in rows if r["times"] == times]
    return round(max(ratios), 2)


def _line(row: dict[str, Any]) -> str:
    calm, control, flooded = row["calm_ms"], row["control_ms"], row["p99_ms"]
    return (
        f"  {row['credentials']:8}{row['flood']:11}x{row['connections']:<3} memory {row['before_mb']:5} "
        f"-> {row['peak_mb']:5} -> {row['after_mb']:5} of {row['bound_mb']:5} MB   "
        f"p99 calm {calm:5.1f}, control {control:5.1f}, flooded {flooded:7.1f} ms: "
        f"{flooded / calm:6.1f}x, {flooded / control:6.1f}x   refused {row['refused']}   "
        f"cpu {row['cpu_s']} s   {row['sent']}"
    )
