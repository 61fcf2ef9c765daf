"""A language model behind an OpenAI-compatible server: where it is asked, and how patiently."""

from ctxft.config import ServerConfig
from ctxft.extras.server.client import Counts, Reply, Server, ServerError

__all__ = ["Counts", "Reply", "Server", "ServerConfig", "ServerError"]
