"""What the worker's integration tests share."""

from tests.integration.worker.process import start
from tests.tiny import tiny_cache, tiny_repository

__all__ = ["start", "tiny_cache", "tiny_repository"]
