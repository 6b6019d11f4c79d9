"""Stub."""

from contextlib import contextmanager


@contextmanager
def frozen_batch_norm(network, x, memory=1 << 30):
    yield ()
