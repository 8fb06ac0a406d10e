"""The cost of authentication and observability: the server's CPU time per call, by what is enabled.

    python -m bench.observing models

The encoder costs nothing, so that small differences show. Servers of all kinds run at the same time and take
turns; the lowest of several rounds counts, since other load only adds. Two servers have nothing switched on:
the difference between them shows the noise. Also measured: a scrape of /metrics, and counting a call in them.
"""

import argparse
import asyncio
import hashlib
import secrets
import sys
import threading
import time
import timeit
import urllib.request
from collections.abc import Callable
from concurrent import futures
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from prometheus_client import CollectorRegistry

from bench import data, processes
from bench.report import append
from trimtab.v1 import encoder_pb2 as pb
from trimtab_server.observing.metrics import Metrics

IN_FLIGHT = 16
SCRAPES = 100
COUNTS = 2000
ISSUER = "bench"


class SpanCounter(trace_service_pb2_grpc.TraceServiceServicer):
    """A collector that counts spans."""

    def __init__(self) -> None:
        self.spans = 0
        self._lock = threading.Lock()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Count them."""
        with self._lock:
            self.spans += sum(
                len(scope.spans) for each in request.resource_spans for scope in each.scope_spans
            )
        return trace_service_pb2.ExportTraceServiceResponse()


def configurations(folder: Path, collector: str) -> dict[str, tuple[str, str]]:
    """What is switched on, by name: a configuration, and the credentials of the caller."""
    key, signer = secrets.token_urlsafe(32), ec.generate_private_key(ec.SECP256R1())
    digest = hashlib.sha256(key.encode()).hexdigest()
    keys, public = folder / "keys.toml", folder / "public.pem"
    keys.write_text(f'[[key]]\nname = "bench"\nsha256 = "{digest}"\nencoders = ["*"]\n')
    public.write_bytes(
        signer.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    claims = {"sub": "bench", "iss": ISSUER, "aud": ISSUER, "exp": time.time() + 86400}
    token = jwt.encode(claims | {"trimtab_encoders": ["*"]}, signer, "ES256")
    tokens = f'[auth.jwt]\nkeys = "{public}"\nissuer = "{ISSUER}"\naudience = "{ISSUER}"\n'
    traces = f'[tracing]\nendpoint = "{collector}"\nshare = '
    return {
        "nothing": ("", ""),
        "nothing, again": ("", ""),
        "API key": (f'[auth]\nkeys = "{keys}"\n', key),
        "token": (tokens, token),
        "traces of 1%": (f"{traces}0.01\n", ""),
        "traces of all": (f"{traces}1.0\n", ""),
        "JSON lines of all": ('[logging]\nformat = "json"\ncalls = true\n', ""),
    }


async def load(url: str, authorization: str, texts: list[str]) -> None:
    """Calls of one text each, with a fixed number in flight."""
    metadata = (("authorization", f"Bearer {authorization}"),) if authorization else ()
    async with grpc.aio.insecure_channel(url) as channel:
        embed: Any = channel.unary_unary("/trimtab.v1.EncoderService/Embed")
        waiting = iter(texts)

        async def worker() -> None:
            for text in waiting:
                await embed(pb.EmbedRequest(texts=[text]).SerializeToString(), metadata=metadata)

        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))


def scrapes(url: str, cpu_seconds: Callable[[], float]) -> dict[str, float]:
    """One scrape of /metrics: the server's CPU time, the duration, and the size."""
    size, begun, before = 0, time.perf_counter(), cpu_seconds()
    for _ in range(SCRAPES):
        with urllib.request.urlopen(url, timeout=10) as response:
            size = len(response.read())
    cpu, wall = cpu_seconds() - before, time.perf_counter() - begun
    return {
        "server_ms": round(cpu / SCRAPES * 1e3, 3),
        "wall_ms": round(wall / SCRAPES * 1e3, 3),
        "bytes": size,
        # Of one core's time, at Prometheus's usual interval.
        "share_every_15_s": round(cpu / SCRAPES / 15, 6),
    }


def counting() -> float:
    """Milliseconds that all metrics of one call of one text take, including those of its run."""
    metrics = Metrics(CollectorRegistry())

    def count() -> None:
        metrics.began("a", 1, "trimtab.v1")
        metrics.batch("a", 1, "cpu", size=1, tokens=16, computed=16, seconds=0.01)
        metrics.ended("a", 1, "trimtab.v1")
        metrics.answered(
            "a", 1, "trimtab.v1",
            texts=1, tokens=16, tokenize=0.001, queue=0.01, compute=0.01, output=0.001, total=0.02, now_ms=0,
        )  # fmt: skip
        metrics.computed_by("a", 1, "fp32", 1, browned_out=False)

    return min(timeit.repeat(count, number=COUNTS, repeat=5)) / COUNTS * 1e3


def main() -> None:
    """Measure, print, append to the history."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("--calls", type=int, default=3000, help="of a round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    texts = data.mix("short", options.calls)
    cores = processes.cores()
    processes.LOGS.mkdir(exist_ok=True)
    collector, receiver = SpanCounter(), grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, receiver)  # type: ignore[no-untyped-call]
    port = receiver.add_insecure_port("127.0.0.1:0")
    receiver.start()
    spent: dict[str, list[float]] = {}
    with ExitStack() as stack:
        stack.callback(receiver.stop, None)
        servers = {}
        for number, (name, (text, credentials)) in enumerate(
            configurations(processes.LOGS, f"http://127.0.0.1:{port}").items()
        ):
            config = processes.LOGS / f"observing-{number}.toml"
            config.write_text(text)
            command = [processes.PYTHON, "-m", "bench.fake_server", str(options.repository)]
            command += ["--config", str(config)]
            starting = processes.serve(f"observing-{number}", command, cores.server, processes.said_ready)
            servers[name] = (stack.enter_context(starting), credentials)
        for running, credentials in servers.values():
            asyncio.run(load(running.url, credentials, texts))
        for _ in range(options.rounds):
            for name, (running, credentials) in servers.items():
                before = running.cpu_seconds()
                asyncio.run(load(running.url, credentials, texts))
                spent.setdefault(name, []).append((running.cpu_seconds() - before) / len(texts) * 1e3)
        scrape = scrapes(servers["nothing"][0].metrics_url, servers["nothing"][0].cpu_seconds)
    plain = min(spent["nothing"] + spent["nothing, again"])
    figures = {
        name: {"server_ms": round(min(each), 4), "more": round(min(each) / plain - 1, 4)}
        for name, each in spent.items()
    }
    for name, row in figures.items():
        sys.stdout.write(f"{name:<20}{row['server_ms']:8.3f} ms a call  {row['more']:+7.1%}\n")
    sys.stdout.write("a scrape" + "".join(f"  {name} {value:g}" for name, value in scrape.items()) + "\n")
    metrics = counting()
    sys.stdout.write(f"the metrics of a call  {metrics:.4f} ms, {metrics / plain:.1%} of it\n")
    append(
        "observing",
        scrape=scrape,
        metrics={"ms": round(metrics, 4), "share": round(metrics / plain, 4)},
        calls=options.calls,
        rounds=options.rounds,
        spans=collector.spans,
        costs=figures,
    )


if __name__ == "__main__":
    main()
