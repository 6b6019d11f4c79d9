"""Executors, which run jobs in this process or on a Ray cluster. The only package that imports Ray.

Both executors take plain jobs and a function, and pass each outcome to the caller when it arrives. Ray Tune only
schedules: it selects no cells, keeps no results and resumes nothing. The store does that.
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
