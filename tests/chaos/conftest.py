"""Fixtures for tests that run whole workers."""

from tests.worker.bench import bench, shared_bench

__all__ = ["bench", "shared_bench"]
