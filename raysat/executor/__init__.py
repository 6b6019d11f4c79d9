"""Where jobs run: in this process, or on a Ray cluster. The only package that imports Ray.

Both executors take plain jobs and a function, and hand each outcome to the caller as it comes. Ray Tune schedules; it
decides nothing about science, keeps no results and resumes nothing: that is the store's part.
"""

from raysat.executor.bookkeeping import RETRIES
from raysat.executor.cluster import OnRay
from raysat.executor.jobs import ExecutorDied, InProcess, JobCallbacks, Outcome, Source
from raysat.executor.server import Talker, with_server

__all__ = [
    "RETRIES",
    "ExecutorDied",
    "InProcess",
    "JobCallbacks",
    "OnRay",
    "Outcome",
    "Source",
    "Talker",
    "with_server",
]
