"""tests/api/conftest.py - fixtures: one company for all tests of a module."""

import concurrent.futures

import pytest

from company import STUB, ask, company


@pytest.fixture(scope="module")
def tiny():
    """Served by every actor, as `troupe up` starts it: EP2 prefill and EP2 decode."""
    with company() as running:
        yield running


@pytest.fixture(scope="module")
def client(tiny):
    import openai  # here, for it takes a second, and most files do without

    with openai.OpenAI(base_url=tiny.url + "/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def model(client):
    return client.models.list().data[0].id


@pytest.fixture(scope="module")
def stub():
    with company(STUB) as running:
        yield running


@pytest.fixture(scope="module")
def expected(stub):
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        return dict(enumerate(pool.map(lambda seed: ask(stub, seed), range(12))))
