"""A language model behind an OpenAI-compatible server: where it is asked, and how patiently."""

from ctxft.extras.server.client import Counts, Reply, Server, ServerError
from ctxft.extras.server.config import ServerConfig

__all__ = ["Counts", "Reply", "Server", "ServerConfig", "ServerError"]
