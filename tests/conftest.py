"""What all tests share."""

import os

import pytest
import torch
from hypothesis import settings

from raysat.spec import Cell, Initialization, Model, Stepsize

settings.register_profile("raysat", deadline=None, derandomize=True)
settings.load_profile("raysat")


@pytest.fixture(autouse=True)
def one_thread():
    """Rounding on a CPU depends on the number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data():
    """The folder of the original data sets; tests that need them are skipped where there is none."""
    folder = os.environ.get("RAYSAT_DATA")
    if not folder:
        pytest.skip("RAYSAT_DATA does not name a folder with the original data sets")
    return folder


@pytest.fixture
def make_cell():
    """A small cell on digits, any part of which can be replaced."""

    def make(**changes) -> Cell:
        init = {
            "dataset": "digits",
            "preprocessing": "center",
            "n": 100,
            "n_test": 50,
            "model": Model("mlp", (("activation", "relu"), ("depth", 1))),
            "width": 16,
            "seed": 0,
            "dtype": "float64",
            "k_samples": 100,
            "k_tolerance": 1e-6,
            "loss": "mse",
        }
        cell = {
            "batch_size": 8,
            "stepsize": Stepsize("theory", 1.0),
            "iterations": 50,
            "sampling": "without_replacement",
            "evaluations": 8,
            "target_loss": None,
            "ntk_at": (),
        }
        init |= {key: value for key, value in changes.items() if key in init}
        cell |= {key: value for key, value in changes.items() if key in cell}
        assert set(changes) <= {*init, *cell}
        return Cell(Initialization(**init), **cell)

    return make
