"""The server's own cost: with encoders that cost nothing or only sleep, and for a single call."""

from pathlib import Path

from bench import processes
from bench.processes import Cores, Running, counters, program

# Tokens per second of a simulated device: some 70 queries.
SECONDS_PER_TOKEN = 1e-3
DEVICES = 8
IN_FLIGHT_PER_DEVICE = 16
# Texts per request, to find the most that one process can feed.
SIZES = (8, 32, 128)


def fake(
    repository: Path, core: int, devices: int, seconds_per_token: float, *, front_ends: int = 1
) -> processes.Serving:
    """A server of simulated devices."""
    command = [processes.PYTHON, "-m", "bench.fake_server", str(repository), "--devices", str(devices)]
    command += ["--seconds-per-token", str(seconds_per_token), "--front-ends", str(front_ends)]
    return processes.serve(f"fake-{devices}-{front_ends}", command, core, processes.said_ready)


def echo(core: int) -> processes.Serving:
    """A server that answers each call with the same bytes: the least that grpc.aio costs."""
    command = [processes.PYTHON, "-m", "bench.echo_server"]
    return processes.serve("echo", command, core, processes.said_ready)


def calls(repository: Path, cores: Cores, count: int) -> dict[str, dict[str, float]]:
    """Calls of one short text with an encoder that costs nothing, by kind of client.

    `rate` is the measured rate, which the client may limit. `server_ms` is the server's CPU time per call;
    1000 / `server_ms` is what its core could do. `to_echo` is that time over a bare echo's, measured
    before and after each.
    """
    rows = {}
    with fake(repository, cores.server, 1, 0.0) as server, echo(cores.server) as least:
        before = timed(least, cores, "raw", 64, count)
        for kind in ("raw", "sdk", "triton", "stream"):
            row = timed(server, cores, kind, 64 if kind != "stream" else 256, count)
            after = timed(least, cores, "raw", 64, count)
            row["to_echo"] = 2 * row["server_ms"] / (before["server_ms"] + after["server_ms"])
            rows[f"{kind} 64"], rows["echo 64"] = row, after
            before = after
        rows["sdk 1"] = timed(server, cores, "sdk", 1, count // 4)
        for size in SIZES:
            rows[f"{size} a request"] = _grouped(server, cores, size, count)
    return rows


def timed(server: Running, cores: Cores, kind: str, concurrency: int, count: int) -> dict[str, float]:
    """A load of so many short texts, and the server's CPU time for each."""
    before = server.cpu_seconds()
    figures = program(
        "bench.load", server.url, "--core", cores.client, "--kind", kind, "--mix", "short",
        "--texts", count, "--concurrency", concurrency,
    )  # fmt: skip
    spent = server.cpu_seconds() - before
    # The warm-up's calls cost the server too.
    server_ms = spent / (count + 32) * 1e3
    return {**figures, "server_ms": server_ms, "server_busy": server_ms / 1e3 * figures["rate"]}


def _grouped(server: Running, cores: Cores, size: int, count: int) -> dict[str, float]:
    before = server.cpu_seconds()
    figures = program(
        "bench.grouped", server.url, "--core", cores.client, "--texts", count * 2, "--size", size
    )
    return {**figures, "server_ms": (server.cpu_seconds() - before) / (count * 2) * 1e3}


def devices(repository: Path, cores: Cores, count: int) -> dict[str, dict[str, float]]:
    """Eight simulated devices against one, with the same number of calls in flight per device.

    The ratio is of tokens per second, since eight devices get more texts, and texts differ in length.
    """
    rows = {}
    for number in (1, DEVICES):
        with fake(repository, cores.server, number, SECONDS_PER_TOKEN) as server:
            concurrency = IN_FLIGHT_PER_DEVICE * number
            figures = timed(server, cores, "raw", concurrency, count * number)
            tokens = counters(server)["trimtab_tokens_total"] / (count * number + 32)
            rows[str(number)] = {**figures, "tokens_rate": figures["rate"] * tokens}
    rows[str(DEVICES)]["ratio"] = rows[str(DEVICES)]["tokens_rate"] / rows["1"]["tokens_rate"]
    return rows


def alone(server: Running, bundle: Path, cores: Cores, count: int) -> dict[str, dict[str, float]]:
    """A single call against the bare session, by client."""
    options = ("--server-core", cores.server, "--client-core", cores.client, "--calls", count)
    return {
        client: program("bench.alone", server.url, bundle, "--client", client, *options)
        for client in ("sync", "async")
    }
