"""Client of Troupe over its ZeroMQ link: `Client` and `AsyncClient`."""

from .aio import AsyncClient, AsyncStream
from .client import Client, Stream
from .codec import FrameError
from .common import Answer, Finished, Keys, RequestFailed, Tokens, default_endpoint, endpoint_in

__all__ = ["Answer", "AsyncClient", "AsyncStream", "Client", "Finished", "FrameError", "Keys", "RequestFailed", "Stream", "Tokens",
           "default_endpoint", "endpoint_in"]
__version__ = "0.1.0"
