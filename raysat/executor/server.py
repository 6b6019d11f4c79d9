"""A server and its clients (talkers), each a Ray actor."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from raysat.executor.bookkeeping import RETRIES


class Talker(Protocol):
    """A client of a server."""

    def work(self, exchange: Callable[..., object]) -> None:
        """Work until the server has no more tasks.

        Args:
            exchange: The server's method of that name.
        """


class _Serving:
    """The process of a server, as a Ray actor."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.server = make()

    def exchange(self, *message: object) -> object:
        return self.server.exchange(*message)

    def result(self) -> object:
        return self.server.result()


class _Talking:
    """The process of a talker, as a Ray actor."""

    def __init__(self, make: Callable[[], Talker]) -> None:
        self.talker = make()

    def process(self) -> int:
        return os.getpid()

    def work(self, server: Any) -> None:
        import ray

        self.talker.work(lambda *message: ray.get(server.exchange.remote(*message)))


def with_server(
    server: Callable[[], Any],
    talker: Callable[[], Talker],
    count: int,
    begun: Callable[[list[int]], None] | None = None,
) -> tuple[Any, int]:
    """Run a server and talkers, each in its own process, on the cluster that this process has joined.

    A talker that dies is restarted up to `RETRIES` times; the others do not wait for it.

    Args:
        server: Makes the server, which has the methods `exchange` and `result`.
        talker: Makes a talker.
        count: Talkers. They share the cluster's CPUs, however few there are.
        begun: Called with the ids of the talkers' processes once they work.

    Returns:
        The server's result, and how many talkers have died.
    """
    import ray
    from ray.exceptions import RayActorError

    serving: Any = ray.remote(_Serving).options(num_cpus=0).remote(server)
    actor = ray.remote(_Talking).options(num_cpus=0, num_gpus=0, max_restarts=RETRIES, max_task_retries=-1)
    actors: list[Any] = [actor.remote(talker) for _ in range(count)]
    before = ray.get([one.process.remote() for one in actors])
    working = [one.work.remote(serving) for one in actors]
    if begun:
        begun(before)
    for work in working:
        with suppress(RayActorError):  # it died more often than it may be restarted
            ray.get(work)
    result, after = ray.get(serving.result.remote()), [None] * count
    for k, one in enumerate(actors):
        with suppress(RayActorError):  # dead for good
            after[k] = ray.get(one.process.remote())
    for one in (*actors, serving):
        ray.kill(one)
    return result, sum(old != new for old, new in zip(before, after, strict=True))
