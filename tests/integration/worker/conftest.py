"""What the worker's integration tests share."""

from tests.tiny import tiny_cache, tiny_repository

__all__ = ["tiny_cache", "tiny_repository"]
