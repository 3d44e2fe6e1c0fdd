"""tests/api/test_openai_more.py - the official clients further: asyncio, headers, time limits, rare options, every error."""

import asyncio
import concurrent.futures
import os
import pathlib
import signal

import openai
import pytest

from company import company, wait_until

QUESTION = [{"role": "user", "content": "What is 946 - 23?"}]


def ask(client, model, messages=QUESTION, **options):
    return client.chat.completions.create(model=model, messages=messages, **{"temperature": 0, **options})


def text_of(answer):
    message = answer.choices[0].message
    return (getattr(message, "reasoning_content", None) or "") + (message.content or "")


def ids_of(running, text):
    return running.post("/tokenize", {"prompt": text})[1]["tokens"]


# ---- asyncio

def test_async_client_streams_many_at_once(tiny, model):
    async def one(client, n):
        question = [{"role": "user", "content": f"What is {n} + {n}?"}]
        content, ends = "", 0
        async for chunk in await client.chat.completions.create(model=model, messages=question, temperature=0, stream=True):
            for choice in chunk.choices:
                content += choice.delta.content or ""
                ends += choice.finish_reason is not None
        whole = await client.chat.completions.create(model=model, messages=question, temperature=0)
        assert ends == 1 and whole.choices[0].message.content == content
        return content

    async def run():
        async with openai.AsyncOpenAI(base_url=tiny.url + "/v1", api_key="none", max_retries=0, timeout=60) as client:
            return await asyncio.gather(*(one(client, n) for n in range(5, 17)))

    contents = asyncio.run(run())
    assert sum(str(2 * n) in content for n, content in zip(range(5, 17), contents)) >= 9, contents


def test_async_errors_and_closed_streams(tiny, model):
    async def run():
        async with openai.AsyncOpenAI(base_url=tiny.url + "/v1", api_key="none", max_retries=0, timeout=60) as client:
            with pytest.raises(openai.BadRequestError) as bad:
                await client.completions.create(model=model, prompt="x", top_p=2)
            assert bad.value.body["param"] == "top_p"
            stream = await client.completions.create(model=model, prompt="The", max_tokens=3000, stream=True,
                                                     extra_body={"ignore_eos": True})
            async for _ in stream:
                break
            await stream.close()
    asyncio.run(run())
    wait_until(lambda: tiny.metrics()["requests_running", "ingress", "0"] == 0, 5, "a closed stream ends its work")


# ---- headers and time limits

def test_raw_response_has_the_headers_that_clients_read(client, model):
    raw = client.chat.completions.with_raw_response.create(model=model, messages=QUESTION, max_tokens=4, temperature=0)
    assert raw.status_code == 200 and raw.headers["content-type"].startswith("application/json")
    parsed = raw.parse()
    assert parsed.usage.completion_tokens == 4
    assert raw.headers["x-request-id"] and raw.headers["x-request-id"] in parsed.id
    assert client.completions.create(model=model, prompt="x", max_tokens=1)._request_id
    streamed = client.chat.completions.with_raw_response.create(model=model, messages=QUESTION, max_tokens=4, stream=True)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert len(list(streamed.parse())) >= 4


def test_client_that_gives_up_stops_the_work():
    slow = {"engine": {"kind": "stub", "stub_token_us": 20000}}
    with company(slow) as running:
        client = openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0)
        name = client.models.list().data[0].id
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.5).completions.create(model=name, prompt="x", max_tokens=2000)

        def is_at_rest():
            metrics = running.metrics()
            held = [key for key, value in metrics.items() if key[0] in ("requests_running", "kv_blocks_used") and value
                    and key[1] != "kv_store"]
            return not held and metrics["requests_cancelled_total", "ingress", "0"] == 1
        wait_until(is_at_rest, 6, "the request is cancelled and nothing is held")
        assert running.metrics()["generation_tokens_total", "ingress", "0"] < 500


# ---- options

def test_stream_of_two_choices_counts_both(client, model):
    usage, ends, last = None, {}, None
    for chunk in client.chat.completions.create(model=model, messages=QUESTION, n=2, seed=5, temperature=1.0, max_tokens=9,
                                                stream=True, stream_options={"include_usage": True}):
        last = chunk
        if chunk.usage:
            usage = chunk.usage
        for choice in chunk.choices:
            if choice.finish_reason:
                assert choice.index not in ends
                ends[choice.index] = choice.finish_reason
    assert sorted(ends) == [0, 1] and last.choices == [] and last.usage == usage
    whole = client.chat.completions.create(model=model, messages=QUESTION, n=2, seed=5, temperature=1.0, max_tokens=9)
    assert usage.completion_tokens == whole.usage.completion_tokens and usage.prompt_tokens == whole.usage.prompt_tokens


def test_first_of_several_stops_ends_it(client, model):
    whole = text_of(ask(client, model))
    first, second = whole[10:13], whole[20:24]
    assert whole.index(first) < whole.index(second)
    answer = ask(client, model, stop=[second, first, "never seen"])
    assert answer.choices[0].finish_reason == "stop"
    assert text_of(answer) == whole[:whole.index(first)]


def test_logit_bias_forces_and_forbids_a_token(tiny, client, model):
    token = ids_of(tiny, " the")[-1]
    forced = client.completions.create(model=model, prompt="A", max_tokens=5, temperature=0, logit_bias={str(token): 100})
    text = tiny.post("/detokenize", {"tokens": [token] * 5})[1]["prompt"]
    assert forced.choices[0].text == text
    plain = client.completions.create(model=model, prompt="What is the", max_tokens=1, temperature=0)
    likeliest = ids_of(tiny, plain.choices[0].text)
    assert len(likeliest) == 1
    other = client.completions.create(model=model, prompt="What is the", max_tokens=1, temperature=0,
                                      logit_bias={str(likeliest[0]): -100})
    assert other.choices[0].text != plain.choices[0].text


@pytest.mark.parametrize("penalty", [{"frequency_penalty": 2}, {"presence_penalty": 2}, {"extra_body": {"repetition_penalty": 2}}],
                         ids=["frequency", "presence", "repetition"])
def test_penalties_reduce_repetition(client, model, penalty):
    """This prompt leads the tiny model into a loop; each penalty must lead it out."""
    def different(options):
        extra = {"ignore_eos": True, **options.get("extra_body", {})}
        answer = client.completions.create(model=model, prompt=" ".join(["the"] * 8), max_tokens=100, temperature=0, logprobs=0,
                                           **{**options, "extra_body": extra})
        return len(set(answer.choices[0].logprobs.tokens))
    assert different(penalty) > 10 * different({})


def test_max_completion_tokens_is_max_tokens(client, model):
    answer = ask(client, model, max_completion_tokens=5)
    assert answer.usage.completion_tokens == 5 and answer.choices[0].finish_reason == "length"


def test_logprobs_without_alternatives(client, model):
    answer = ask(client, model, logprobs=True, top_logprobs=0, max_tokens=4)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == 4 and all(entry.top_logprobs == [] and entry.logprob <= 0 and entry.bytes for entry in entries)
    choice = client.completions.create(model=model, prompt="The", max_tokens=3, temperature=0, logprobs=0).choices[0]
    assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == 3
    assert "".join(choice.logprobs.tokens) == choice.text


def test_content_parts_and_roles(tiny, client, model):
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "946 - 23?"}]}]
    assert text_of(ask(client, model, parts)) == text_of(ask(client, model))
    system = [{"role": "system", "content": "Be brief."}, *QUESTION]
    developer = [{"role": "developer", "content": "Be brief."}, *QUESTION]
    first, second = ask(client, model, system, max_tokens=8), ask(client, model, developer, max_tokens=8)
    assert text_of(first) == text_of(second) and first.usage.prompt_tokens == second.usage.prompt_tokens
    assert first.usage.prompt_tokens > ask(client, model, max_tokens=1).usage.prompt_tokens
    talk = [*QUESTION, {"role": "assistant", "content": "923"}, {"role": "user", "content": "And 5 + 5?"}]
    assert ask(client, model, talk).usage.prompt_tokens > 15


def test_last_message_is_continued(tiny, client, model):
    begun = [*QUESTION, {"role": "assistant", "content": "The answer is 92"}]
    prefix = [begun[0], {**begun[1], "prefix": True}]
    first = ask(client, model, prefix, max_tokens=6)
    second = ask(client, model, begun, max_tokens=6,
                 extra_body={"continue_final_message": True, "add_generation_prompt": False})
    assert first.choices[0].message.content == second.choices[0].message.content != ""
    assert not getattr(first.choices[0].message, "reasoning_content", None), "the reasoning is over where an answer is continued"
    asked = tiny.post("/tokenize", {"messages": prefix})[1]["tokens"]
    exact = client.completions.create(model=model, prompt=asked, max_tokens=6, temperature=0)
    assert exact.choices[0].text == first.choices[0].message.content


def test_seed_of_64_bits_is_not_rounded(client, model):
    def text(seed):
        return client.completions.create(model=model, prompt="The", max_tokens=24, temperature=1.8, seed=seed).choices[0].text
    assert len({text(2 ** 53 + n) for n in range(4)}) > 2


# ---- every error as its own exception

def test_each_refusal_is_its_own_exception(client, model):
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=model, input="x")
    for field, value in {"temperature": 3, "n": 0, "logit_bias": {"x": 1}, "max_tokens": 0, "stop": ["a"] * 17, "seed": 1.5}.items():
        with pytest.raises(openai.BadRequestError) as bad:
            ask(client, model, **{field: value})
        assert bad.value.body["param"] == field and field in bad.value.body["message"]
    for field, value in {"response_format": {"type": "json_object"}, "modalities": ["audio"], "tool_choice": "required"}.items():
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            ask(client, model, **{field: value})
        assert refused.value.body["param"] == field
    with pytest.raises(openai.APIStatusError) as large:
        ask(client, model, [{"role": "user", "content": "x" * (9 << 20)}])
    assert large.value.status_code == 413


def test_no_key_where_one_is_asked_for_is_401():
    with company({"engine": {"kind": "stub"}, "http": {"api_keys": ["sesame"]}}) as running:
        for key in ("wrong", "sesam", "sesame1"):
            with pytest.raises(openai.AuthenticationError):
                openai.OpenAI(base_url=running.url + "/v1", api_key=key, max_retries=0).chat.completions.create(
                    model="tiny", messages=QUESTION, max_tokens=1)


def signal_role(running, role, which):
    pids = [pid for pid in running.children()
            if role.encode() in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    assert pids, f"no process is {role}"
    for pid in pids:
        os.kill(pid, which)


def test_short_fault_is_not_seen_and_a_long_one_is_503():
    """Every prefill worker stops: what comes within the bound waits; past it 503 says when to come again."""
    with company({"engine": {"kind": "stub"}}) as running:
        client = openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0, timeout=60)
        name = client.models.list().data[0].id

        def one():
            return client.completions.create(model=name, prompt="x", max_tokens=4).usage.completion_tokens
        assert one() == 4
        signal_role(running, "prefill_worker", signal.SIGSTOP)
        try:
            with pytest.raises(openai.InternalServerError) as refused:
                one()
        finally:
            signal_role(running, "prefill_worker", signal.SIGCONT)
        assert refused.value.status_code == 503 and int(refused.value.response.headers["retry-after"]) >= 1
        assert refused.value.body["code"] == "unavailable"
        assert one() == 4
        signal_role(running, "prefill_worker", signal.SIGSTOP)
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(one)
            wait_until(lambda: "prefill_worker" in running.get("/health")[1], 10, "the stop is noticed")
            signal_role(running, "prefill_worker", signal.SIGCONT)
            assert waiting.result(30) == 4


def test_balancer_that_is_killed_is_not_seen_by_clients():
    """The supervisor restarts it within the bound: requests of that moment wait, none fails."""
    with company({"engine": {"kind": "stub"}}) as running:
        client = openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0, timeout=60)
        name = client.models.list().data[0].id

        def one(_):
            return client.completions.create(model=name, prompt="x", max_tokens=4).usage.completion_tokens
        signal_role(running, "prefill_lb", signal.SIGKILL)
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            assert set(threads.map(one, range(32))) == {4}
        wait_until(lambda: running.get("/ready")[0] == 200, 20, "ready again")


def test_text_longer_than_a_pool_is_refused_and_the_longest_one_served():
    """Else it would wait for blocks that no worker has, until its deadline."""
    for prefill, decode in ((2, 3), (3, 2)):
        with company({"prefill": {"kv_blocks": prefill}, "decode": {"kv_blocks": decode}}) as running:
            assert "INGRESS-CONTEXT" in running.log.read_text()
            assert running.get("/v1/models")[1].count('"max_model_len":128') == 1
            for prompt, tokens, wanted in ((127, 1, 200), (100, 28, 200), (100, 29, 400), (128, 1, 400)):
                body = {"prompt": [5 + i % 50 for i in range(prompt)], "max_tokens": tokens, "ignore_eos": True}
                status, answer = running.post("/v1/completions", body, timeout=20)
                assert status == wanted, answer
                if status == 200:
                    assert answer["usage"]["completion_tokens"] == tokens
                else:
                    assert answer["error"]["code"] == "context_length_exceeded" and "128 tokens" in answer["error"]["message"]


def test_largest_bodies_leave_ingress_small(tiny):
    def resident_megabytes():
        for pid in tiny.children():
            if b"ingress" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
        raise AssertionError("no ingress")
    for prompt in ("a" * 7900000, "hello world " * 600000, [5] * 300000):
        status, answer = tiny.post("/v1/completions", {"prompt": prompt, "max_tokens": 1})
        assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
    assert resident_megabytes() < 64
