"""tests/api/test_openai.py - the official openai client must work unchanged; what breaks here breaks its users."""

import openai
import pytest

from company import company

QUESTION = [{"role": "user", "content": "What is 946 - 23?"}]


def ask(client, model, **options):
    return client.chat.completions.create(model=model, messages=QUESTION, **{"temperature": 0, **options})


def test_chat_whole_answer_is_split_and_counted(client, model):
    answer = ask(client, model)
    choice = answer.choices[0]
    assert "923" in choice.message.content
    assert choice.message.reasoning_content
    assert "</think>" not in choice.message.content + choice.message.reasoning_content
    assert choice.finish_reason == "stop"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens == 15
    assert usage.prompt_cache_hit_tokens + usage.prompt_cache_miss_tokens == usage.prompt_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens


def test_chat_stream_adds_up_to_the_whole_answer(client, model):
    whole = ask(client, model).choices[0].message
    reasoning, content, finish, usage = "", "", None, None
    for chunk in ask(client, model, stream=True, stream_options={"include_usage": True}):
        if chunk.usage:
            usage = chunk.usage
        for choice in chunk.choices:
            assert finish is None, "something follows the end"
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            content += choice.delta.content or ""
            finish = choice.finish_reason
    assert (reasoning, content, finish) == (whole.reasoning_content, whole.content, "stop")
    assert usage.completion_tokens > 0


def test_seed_same_seed_same_text_other_seed_other_text(client, model):
    def text(seed):
        answer = client.completions.create(model=model, prompt="The", max_tokens=24, temperature=1.5, seed=seed)
        return answer.choices[0].text
    assert text(7) == text(7)
    assert len({text(seed) for seed in range(6)}) > 1


def test_n_gives_that_many_choices_of_their_own(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION, n=2, seed=3, temperature=1.2, max_tokens=24)
    assert [choice.index for choice in answer.choices] == [0, 1]
    streamed = {0: "", 1: ""}
    for chunk in client.chat.completions.create(model=model, messages=QUESTION, n=2, seed=3, temperature=1.2,
                                                max_tokens=24, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += (getattr(choice.delta, "reasoning_content", None) or "") + (choice.delta.content or "")
    for choice in answer.choices:
        assert streamed[choice.index] == (choice.message.reasoning_content or "") + (choice.message.content or "")


def test_stop_ends_before_the_string(client, model):
    whole = ask(client, model).choices[0].message.content
    answer = ask(client, model, stop=["923"])
    content = answer.choices[0].message.content or ""
    assert answer.choices[0].finish_reason == "stop"
    assert "923" not in content and whole.startswith(content)


def test_max_tokens_ends_with_length(client, model):
    answer = ask(client, model, max_tokens=3)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3


def test_logprobs_are_those_of_the_chosen_tokens(client, model):
    answer = ask(client, model, logprobs=True, top_logprobs=5)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens or len(entries) == answer.usage.completion_tokens - 1
    for entry in entries:
        assert len(entry.top_logprobs) == 5
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob, abs=1e-5), "greedy takes the likeliest"
        assert all(a.logprob >= b.logprob for a, b in zip(entry.top_logprobs, entry.top_logprobs[1:]))
        assert entry.logprob <= 0


def test_completions_echo_and_logprobs(client, model):
    answer = client.completions.create(model=model, prompt="What is the", max_tokens=4, temperature=0, echo=True, logprobs=2)
    choice = answer.choices[0]
    assert choice.text.startswith("What is the")
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)
    assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert "".join(logprobs.tokens) == choice.text


def test_prefix_reuse_shows_in_usage(client, model):
    notes = "Notes: " + " ".join(f"the box {i} holds {i * 7} coins." for i in range(60))
    messages = [{"role": "user", "content": notes}]
    first = client.chat.completions.create(model=model, messages=messages, max_tokens=2, temperature=0)
    assert first.usage.prompt_tokens > 256
    hits = 0
    for _ in range(20):
        again = client.chat.completions.create(model=model, messages=messages, max_tokens=2, temperature=0)
        assert again.choices[0].message == first.choices[0].message
        hits = again.usage.prompt_cache_hit_tokens
        if hits:
            break
    assert hits >= 64 and hits % 64 == 0


def test_errors_name_what_was_wrong(client, model):
    with pytest.raises(openai.NotFoundError) as lost:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    assert lost.value.body["code"] == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=model, messages=QUESTION, temperature=9)
    assert bad.value.body["param"] == "temperature" and "2" in bad.value.body["message"]
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=model, messages=[])
    assert bad.value.body["param"] == "messages"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "word " * 8000}])
    assert "4096" in bad.value.body["message"]
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.chat.completions.create(model=model, messages=QUESTION,
                                       tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
    assert refused.value.body["param"] == "tools"
    with pytest.raises(openai.APIStatusError) as large:
        client.completions.create(model=model, prompt="x" * (9 << 20))
    assert large.value.status_code == 413


def test_keys_are_asked_for_when_configured():
    stub = {"engine": {"kind": "stub"}, "http": {"api_keys": ["sesame"]}}
    with company(stub) as running:
        good = openai.OpenAI(base_url=running.url + "/v1", api_key="sesame", max_retries=0)
        name = good.models.list().data[0].id
        assert good.completions.create(model=name, prompt="x", max_tokens=2).usage.completion_tokens == 2
        with pytest.raises(openai.AuthenticationError) as refused:
            openai.OpenAI(base_url=running.url + "/v1", api_key="wrong", max_retries=0).models.list()
        assert refused.value.body["code"] == "invalid_api_key"


def test_full_queues_answer_429_with_retry_after_and_lose_nothing():
    """A burst beyond every queue: each request ends, with tokens or with 429, and the company serves on."""
    import concurrent.futures
    small = {
        "engine": {"kind": "stub", "stub_token_us": 5000}, "limits": {"queue_max": 4},
        "company": {"prefill_workers": 1, "prefill_ep": 1, "decode_workers": 1, "decode_ep": 1},
        "prefill": {"requests_max": 2}, "decode": {"batch_max": 2, "kv_blocks": 8},
    }
    with company(small) as running:
        client = openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0, timeout=60)
        name = client.models.list().data[0].id

        def one(_):
            try:
                return client.completions.create(model=name, prompt="x", max_tokens=20).usage.completion_tokens
            except openai.RateLimitError as refused:
                assert int(refused.response.headers["retry-after"]) >= 1
                return "429"
        with concurrent.futures.ThreadPoolExecutor(60) as threads:
            outcomes = list(threads.map(one, range(60)))
        assert set(outcomes) == {20, "429"}, outcomes
        assert one(0) == 20
        # What would never fit, however often it came again, is not told to come again.
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model=name, prompt="x", max_tokens=20, n=7)
        assert refused.value.body["param"] == "n" and "at most 6 requests" in refused.value.body["message"]
        assert client.completions.create(model=name, prompt="x", max_tokens=20, n=6).usage.completion_tokens == 120
