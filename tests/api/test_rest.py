"""tests/api/test_rest.py - I6: after many requests with cancels at random points nothing is held and memory is flat."""

import asyncio
import json
import pathlib
import random

from company import company, wait_until

HELD = ("kv_blocks_used", "kv_leases", "requests_running", "requests_waiting")


async def one(port: int, rng: random.Random) -> str:
    """A streamed request, cut at a random point in every third case; "done", "cut" or "refused"."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        words = " ".join(str(rng.randrange(1000)) for _ in range(rng.choice([1, 5, 60])))
        body = json.dumps({"prompt": words, "max_tokens": rng.randrange(1, 24), "stream": True}).encode()
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        cut_after = rng.choice([None, None, rng.randrange(0, 3000)])
        received = b""
        while cut_after is None or len(received) < cut_after:
            part = await asyncio.wait_for(reader.read(4096), 60)
            if not part:
                break
            received += part
        else:
            return "cut"
        if received.startswith(b"HTTP/1.1 429"):
            return "refused"
        assert received.startswith(b"HTTP/1.1 200") and b"data: [DONE]" in received, received[-300:]
        return "done"
    finally:
        writer.close()


async def load(port: int, count: int, streams: int, seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    outcomes = {"done": 0, "cut": 0, "refused": 0}

    async def client():
        nonlocal count
        while count > 0:
            count -= 1
            outcomes[await one(port, rng)] += 1
    await asyncio.gather(*(client() for _ in range(streams)))
    return outcomes


def resources(pids: list[int]) -> dict[str, int]:
    total = {"descriptors": 0, "threads": 0, "resident_pages": 0}
    for pid in pids:
        proc = pathlib.Path(f"/proc/{pid}")
        total["descriptors"] += len(list((proc / "fd").iterdir()))
        total["threads"] += len(list((proc / "task").iterdir()))
        total["resident_pages"] += int((proc / "statm").read_text().split()[1])
    return total


def test_rest_after_ten_thousand_requests_nothing_is_held():
    with company({"engine": {"kind": "stub"}}) as running:
        def is_at_rest():
            metrics = running.metrics()
            assert any(key[0] == "kv_blocks_used" and key[1] == "decode_worker" for key in metrics), "no report of a worker"
            return not [key for key, value in metrics.items() if key[0] in HELD and key[1] != "kv_store" and value]

        warm = asyncio.run(load(running.port, 2000, 40, seed=1))
        wait_until(is_at_rest, 10, "at rest after the warm-up")
        pids = running.children()
        before = resources(pids)
        outcomes = asyncio.run(load(running.port, 10000, 40, seed=2))
        wait_until(is_at_rest, 10, "at rest after 10,000 requests")
        assert running.children() == pids, "an actor died on the way"
        after = resources(pids)
        assert outcomes["done"] > 5000 and outcomes["cut"] > 2000, outcomes
        assert after["threads"] == before["threads"]
        assert after["descriptors"] <= before["descriptors"] + 4
        assert after["resident_pages"] <= before["resident_pages"] * 1.05 + 1024, (before, after)
        metrics = running.metrics()
        ended = sum(metrics[f"requests_{how}_total", "ingress", "0"] for how in ("finished", "failed", "cancelled"))
        assert metrics["requests_accepted_total", "ingress", "0"] == ended
        assert metrics["requests_failed_total", "ingress", "0"] == 0
        assert warm["done"] > 0
