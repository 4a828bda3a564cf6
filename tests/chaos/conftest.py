"""Fixtures for tests that run whole workers."""

from tests.worker.bench import bench

__all__ = ["bench"]
