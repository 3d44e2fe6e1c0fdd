"""tests/api/conftest.py - fixtures: one company with the tiny model for all tests of a module."""

import pytest

from company import company


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
