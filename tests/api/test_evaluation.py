"""tests/api/test_evaluation.py - served text must be what the reference implementation writes (200 conversations).

The expected texts are transformers' greedy output in float32; see tests/golden/tiny/evaluation.jsonl.
"""

import concurrent.futures
import json

import openai
import pytest

from company import ROOT, company

CASES = [json.loads(line) for line in (ROOT / "tests/golden/tiny/evaluation.jsonl").read_text().splitlines()]


def misses(client, model, concurrent_requests):
    def text(case):
        message = client.chat.completions.create(model=model, messages=case["messages"], temperature=0).choices[0].message
        return (message.reasoning_content or "") + "</think>" + (message.content or "")
    with concurrent.futures.ThreadPoolExecutor(concurrent_requests) as threads:
        answers = list(threads.map(text, CASES))
    return [(case["output"], answer) for case, answer in zip(CASES, answers) if case["output"] != answer]


@pytest.mark.parametrize("ep", [1, 2])
@pytest.mark.parametrize("concurrent_requests", [1, 32])
def test_evaluation_served_text_equals_the_reference(ep, concurrent_requests):
    assert len(CASES) == 200
    with company({"company": {"prefill_ep": ep, "decode_ep": ep}}) as running:
        client = openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0, timeout=600)
        wrong = misses(client, client.models.list().data[0].id, concurrent_requests)
    assert len(wrong) <= 1, (len(wrong), wrong[:3])
