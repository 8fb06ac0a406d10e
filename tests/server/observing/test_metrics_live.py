"""The metrics of a real server move as they should, by encoder, version and protocol."""

import asyncio
import re
import urllib.request

import grpc
import numpy as np
import pytest
import tritonclient.grpc

import trimtab
from tests.server.server_process import NAME, ServerProcess
from tests.texts import distinct

REQUEST = f'encoder="{NAME}",protocol="%s",version="1"'
BATCH = f'device="cpu",encoder="{NAME}",version="1"'


def test_a_request_is_counted_in_every_stage(server: ServerProcess) -> None:
    with trimtab.Client(server.url, timeout=100) as client:
        client.embed(["warm"])
        before = server.metrics()
        client.embed(["one two three", "four", "five six"])
        after = server.metrics()

    def moved(name: str) -> float:
        return after[name] - before.get(name, 0)

    labels = "{" + REQUEST % "trimtab.v1" + "}"
    for stage in ("request", "tokenize", "queue", "compute"):
        assert moved(f"trimtab_{stage}_seconds_count{labels}") == 1
        assert moved(f"trimtab_{stage}_seconds_sum{labels}") > 0
    assert moved(f"trimtab_texts_total{labels}") == 3
    assert moved(f"trimtab_tokens_total{labels}") == 5 + 3 + 4
    assert moved(f"trimtab_batch_size_sum{{{BATCH}}}") == 3
    batches = moved(f"trimtab_batch_size_count{{{BATCH}}}")
    assert 1 <= batches <= 3
    assert moved(f"trimtab_batch_tokens_sum{{{BATCH}}}") >= 12
    assert moved(f"trimtab_padding_ratio_count{{{BATCH}}}") == batches
    assert moved(f"trimtab_batch_seconds_count{{{BATCH}}}") == batches
    assert after[f"trimtab_requests_in_flight{labels}"] == 0
    assert after["trimtab_queued_texts"] == after["trimtab_queued_tokens"] == 0
    assert after[f'trimtab_encoder_ready{{encoder="{NAME}",version="1"}}'] == 1


def test_failures_are_counted_by_reason_and_protocol(server: ServerProcess) -> None:
    known = REQUEST.replace('version="1"', 'reason="%s",version="1"')
    invalid = f"trimtab_failures_total{{{known % ('trimtab.v1', 'INVALID_ARGUMENT')}}}"
    missing = 'trimtab_failures_total{encoder="",protocol="kserve",reason="NOT_FOUND",version=""}'
    before = server.metrics()
    with trimtab.Client(server.url, timeout=100) as client, pytest.raises(trimtab.InvalidArgument):
        client.embed(["a"], encoder=NAME, dimensions=999)
    tensor = tritonclient.grpc.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"a"], object))
    with tritonclient.grpc.InferenceServerClient(server.url) as triton:
        with pytest.raises(tritonclient.grpc.InferenceServerException):
            triton.infer("a name that somebody made up", [tensor])
    after = server.metrics()
    assert after[invalid] == before.get(invalid, 0) + 1
    # A made-up name becomes no label: nobody can fill the server's memory with them.
    assert after[missing] == before.get(missing, 0) + 1
    assert not any("made up" in name for name in after)


async def test_what_waits_is_seen_and_what_is_cancelled_is_not_computed(server: ServerProcess) -> None:
    """A client that vanishes with its texts queued takes them with it."""
    computed = f"trimtab_batch_size_sum{{{BATCH}}}"
    before = (await asyncio.to_thread(server.metrics))[computed]
    async with trimtab.AsyncClient(server.url, timeout=600) as client:
        texts = distinct(1000, 200)
        calls = [asyncio.create_task(client.embed(texts[n : n + 100])) for n in range(0, 1000, 100)]
        while (await asyncio.to_thread(server.metrics))["trimtab_queued_texts"] < 500:
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        while (seen := await asyncio.to_thread(server.metrics))["trimtab_queued_texts"]:
            await asyncio.sleep(0)
        await client.embed(["the next request is served"])
    labels = "{" + REQUEST % "trimtab.v1" + "}"
    assert seen["trimtab_queued_tokens"] == 0
    assert seen[f"trimtab_requests_in_flight{labels}"] == 0
    assert (await asyncio.to_thread(server.metrics))[computed] - before < 700, "most were never computed"
    cancelled = [
        value for name, value in seen.items() if "trimtab_failures_total" in name and "CANCELLED" in name
    ]
    assert sum(cancelled) >= 10


async def test_a_deadline_takes_its_texts_out_of_the_queue(server: ServerProcess) -> None:
    async with trimtab.AsyncClient(server.url, timeout=100) as client:
        # Behind nothing, it is let in; it is more than can be computed in the time.
        with pytest.raises(trimtab.DeadlineExceeded):
            await client.embed(distinct(1000, 40), timeout=0.5)
        while (await asyncio.to_thread(server.metrics))["trimtab_queued_texts"]:
            await asyncio.sleep(0)


def test_buckets_fit_half_a_millisecond_to_ten_seconds(server: ServerProcess) -> None:
    with urllib.request.urlopen(server.metrics_url) as response:
        text = response.read().decode()
    edges = {float(edge) for edge in re.findall(r'trimtab_request_seconds_bucket\{.*le="([0-9.e+-]+)"', text)}
    assert min(edges) == 0.0005 and max(edges) == 10.0


def test_grpc_and_metrics_do_not_share_a_port(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.url) as channel:
        grpc.channel_ready_future(channel).result(10)
    assert server.url not in server.metrics_url


def test_a_start_is_told_by_its_stages(server: ServerProcess) -> None:
    metrics = server.metrics()
    process, encoders, ready = (
        metrics[f'trimtab_start_seconds{{stage="{stage}"}}'] for stage in ("process", "encoders", "ready")
    )
    assert min(process, encoders) > 0 and ready == pytest.approx(process + encoders)
    stages = [
        metrics[f'trimtab_load_seconds{{encoder="{NAME}",stage="{stage}",version="1"}}']
        for stage in ("read", "tokenizer", "graph")
    ]
    assert 0 < sum(stages) <= encoders
