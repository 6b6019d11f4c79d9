import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.cluster_utils import Cluster

from raysat import data, mlp, models
from raysat.executor import OnRay
from raysat.losses import LOSSES
from raysat.trial.job import Job
from raysat.trial.packing import CONTEXT, FILLED, MOST, measure, share, trials_at_once

GIB = 1 << 30
MEASURED = {
    **{"parameters": 1_000_000, "data_bytes": GIB // 4, "sample_bytes": 1 << 20, "device_bytes": 80 * GIB},
    **{"launch_seconds": 1e-3, "sample_seconds": 1e-6},
}


@given(
    b=st.integers(1, 100),
    sample=st.integers(1, 10 * GIB),
    launch=st.floats(0, 1),
    each=st.floats(0, 1e-2),
)
def test_trials_that_share_a_gpu_fit_in_it_and_do_not_overload_it(make_cell, b, sample, launch, each):
    measured = MEASURED | {"sample_bytes": sample, "launch_seconds": launch, "sample_seconds": each}
    count = trials_at_once(make_cell(batch_size=b), measured)
    assert 1 <= count <= MOST
    if count > 1:
        assert count * (CONTEXT + sample * b + GIB // 4) <= FILLED * 80 * GIB
        assert count * b * each <= (launch + b * each) * (1 + 1e-9)


def test_a_gpu_that_waits_for_launches_is_shared_and_a_busy_one_is_not(make_cell):
    assert trials_at_once(make_cell(batch_size=1), MEASURED) == MOST
    busy = MEASURED | {"sample_seconds": 1e-3}
    assert trials_at_once(make_cell(batch_size=100), busy) == 1
    assert trials_at_once(make_cell(batch_size=1), MEASURED | {"sample_seconds": 0.0}) == MOST
    # 0.5 + 0.25 GiB and the weights, 16 MB, of 72 % of 4 GiB: four times
    assert trials_at_once(make_cell(batch_size=1), MEASURED | {"device_bytes": 4 * GIB}) == 4


@pytest.mark.parametrize("unknown", [None, math.nan])
def test_what_was_not_measured_has_a_gpu_of_its_own(make_cell, unknown):
    cell = make_cell(batch_size=1)
    assert share(cell, {}) == 1
    assert share(cell, MEASURED | {"sample_bytes": unknown}) == 1
    assert share(cell, MEASURED) == 1 / MOST


def test_what_a_cpu_tells_is_memory_alone():
    dataset = data.load("digits", n_train=100, n_test=50, preprocessing="none", dtype="float32")
    network = models.build(mlp(1), 16, dataset.input_shape, dataset.outputs, seed=0)
    measured = measure(network, dataset, LOSSES["mse"], "auto")
    assert measured["data_bytes"] == 150 * (64 + 10) * 4
    assert measured["sample_bytes"] >= (64 + 16 + 10) * 4  # each layer's input and the residual
    assert {name for name, value in measured.items() if value is None} == {
        "device_bytes",
        "launch_seconds",
        "sample_seconds",
    }


def job_of(measured, cell):
    return Job("s", cell.init, cell, statistics=measured)


def where_it_runs(job):
    return job.cell.batch_size, job.gpus, os.environ["CUDA_VISIBLE_DEVICES"]


class JobCallbacks(list):
    """Collects what jobs returned."""

    def on_start(self, job):
        pass

    def on_progress(self, job, iteration, losses):
        pass

    def on_tick(self):
        pass

    def on_end(self, outcome):
        assert not outcome.error
        self.append(outcome.value)


@pytest.mark.slow
def test_trials_are_scheduled_by_their_share(make_cell, tmp_path):
    """On a pretended GPU: small batches wait for launches and share it, the large one has it alone."""
    cells = iter([make_cell(batch_size=b) for b in (1, 2, 100)])
    measured = MEASURED | {"sample_seconds": 1e-4}
    found = JobCallbacks()

    class Source:
        shared = Job("s", make_cell().init)
        waiting = property(lambda self: len(found) < 3)

        def next(self):
            cell = next(cells, None)
            return cell and job_of(measured, cell)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
    try:
        with OnRay(tmp_path / "tune", address=cluster.address) as executor:
            executor.run(Source(), where_it_runs, found)
    finally:
        cluster.shutdown()
    assert sorted(found) == [(1, 0.125, "0"), (2, 0.1666, "0"), (100, 1.0, "0")]
