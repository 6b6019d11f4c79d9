"""A new member of a registry comes through everywhere: command line, dry run, rows, page."""

import json
import math
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pytest
import torch
from analysis.test_analysis import analyzed, full, refused_ntk
from torch import nn

import raysat
from raysat import InputError, Sweep, Training, fixed, mlp
from raysat.analysis import summary
from raysat.analysis.predictors import PREDICTORS, Predictor
from raysat.models import architectures
from raysat.models.architectures import ARCHITECTURES, Architecture
from raysat.ntk import NTKStatistics
from raysat.report.configuration import sweep_file
from raysat.report.prediction import predictions
from raysat.sgd import autograd
from raysat.sgd.autograd import AutogradEngine
from raysat.sgd.engine import build, maker
from raysat.sgd.problem import Problem
from raysat.sgd.protocol import Maker
from raysat.spec.cells import Cell, Model
from raysat.spec.checks import anything, at_least
from raysat.spec.engines import ENGINES, Engine
from raysat.spec.settings import EXECUTION, SHARED, setting
from raysat.storage import schema
from raysat.storage.initial import INHERITED, INITIAL, PREDICTING, Column
from raysat.storage.store import Store
from raysat.sweep import main

SWEEP = """
from raysat import Sweep, fixed, mlp
sweep = Sweep(name="tiny", dataset="digits", n_train=16, n_test=8, models=[mlp(1)], widths=[4], batch_sizes=[2],
              stepsizes=[fixed(0.05)], iterations=8)
"""
AXES = {"models": [mlp(1)], "widths": [4], "batch_sizes": [2], "stepsizes": [fixed(0.05)], "iterations": 8}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the tiny sweep with some settings: its exit code and its results."""
    monkeypatch.setattr("raysat.report.finish", lambda *_: None)
    path = tmp_path / "tiny.py"
    path.write_text(SWEEP)

    def run(*settings, folder="results", options=()):
        given = [argument for setting in settings for argument in ("--set", setting)]
        code = main([str(path), "--results", str(tmp_path / folder), "--inline", "--quiet", *given, *options])
        return code, Store(tmp_path / folder / "tiny")

    return run


def recorded(store):
    """The text of the sweep file that a results folder's record makes."""
    return sweep_file(store.record()["sweep"])


class TestArchitectures:
    def test_a_new_one_comes_through_everywhere(self, run, monkeypatch, capsys):
        def cube(side=2):
            return Model("cube", (("side", side),))

        def build(width, input_shape, outputs, side):
            inputs = math.prod(input_shape)
            return nn.Sequential(
                nn.Flatten(), nn.Linear(inputs, width * side), nn.Tanh(), nn.Linear(width * side, outputs)
            )

        monkeypatch.setitem(ARCHITECTURES, "cube", Architecture(cube, build))
        assert run("models=[cube(side=3), linearized(cube())]", options=["--dry-run"])[0] == 0
        assert "cube" in capsys.readouterr().out
        code, store = run("models=[cube(side=3), linearized(cube())]")
        rows = store.read("trials")
        assert code == 0
        assert rows["model"].tolist() == ["cube", "cube"]
        parameters = {'{"side": 3}': 65 * 12 + 13 * 10, '{"linearized": true, "side": 2}': 65 * 8 + 9 * 10}
        assert dict(zip(rows["model_options"], rows["parameters"], strict=True)) == parameters
        assert "models=[cube(side=3), linearized(cube(side=2))]" in recorded(store)
        with pytest.raises(InputError, match=r"'cubic' is unknown: use .*, cube or 'module:function'"):
            raysat.models.build(Model("cubic"), 1, (3,), 1, 0)

    def test_each_is_a_name_of_the_package(self):
        assert sorted(architectures.__all__) == sorted(ARCHITECTURES)
        for name, architecture in ARCHITECTURES.items():
            assert name in raysat.__all__
            assert getattr(raysat, name) is architecture.describe
            assert architecture.describe().builder == name


class Counting(AutogradEngine):
    """Autograd under another name."""

    def __init__(self, *problem):
        super().__init__(*problem)
        self.name = "counting"


class TestEngines:
    @pytest.fixture
    def counting(self, monkeypatch):
        """Registers an engine that `auto` takes for networks of more than one layer."""
        new = Maker(
            lambda *problem, bfloat16, asked: Counting(*problem),
            wins=lambda network, x: len(list(network)) > 2,
            check=refuse_deep,
        )
        monkeypatch.setattr(autograd, "COUNTING", new, raising=False)
        monkeypatch.setitem(ENGINES, "counting", Engine("raysat.sgd.autograd:COUNTING", "on a test"))

    @pytest.mark.usefixtures("counting")
    def test_a_new_one_comes_through_everywhere(self, run, capsys):
        assert run("engine=counting", options=["--dry-run"])[0] == 0
        assert "tiny: 1 cells" in capsys.readouterr().out
        code, store = run("engine=counting")
        assert code == 0
        assert store.read("trials")["engine"].tolist() == ["counting"]
        assert 'engine="counting"' in recorded(store)
        _, plain = run("engine=autograd", folder="plain")
        assert store.read("curves")["train_loss"].tolist() == plain.read("curves")["train_loss"].tolist()
        assert run("engine=counting", "models=[mlp(4)]", folder="deep")[0] == 2
        assert "is too deep" in capsys.readouterr().err

    @pytest.mark.usefixtures("counting")
    def test_what_it_does_not_do_is_refused(self):
        with pytest.raises(InputError, match=r"engine='counting' takes the steps of plain SGD only"):
            Sweep("s", "digits", **AXES, engine="counting", trainings=[Training("adam")])
        with pytest.raises(InputError, match=r"engine='counting' computes in full precision"):
            Sweep("s", "digits", **AXES, engine="counting", precision="bfloat16")
        with pytest.raises(InputError, match=r"engine='conting': use one of auto, .*, counting\.$"):
            Sweep("s", "digits", **AXES, engine="conting")

    @pytest.mark.usefixtures("counting")
    def test_auto_takes_the_last_that_wins(self):
        problem = torch.randn(4, 6), torch.randn(4, 2), raysat.losses.LOSSES["mse"]
        networks = [raysat.models.build(mlp(depth), 4, (6,), 2, 0) for depth in (0, 1)]
        names = [build("auto", Problem(network, *problem), 0.1).name for network in networks]
        assert names == ["fused", "counting"]

    @pytest.mark.parametrize("name", ENGINES)
    def test_each_has_its_functions(self, name):
        assert isinstance(maker(name), Maker)


def refuse_deep(network):
    if len(list(network)) > 6:
        raise InputError(f"this {type(network).__name__} is too deep: set engine='auto'.")


class TestPredictors:
    def test_a_new_one_has_its_row_and_its_column(self, monkeypatch):
        def half(measured, reading, foreseen, deepest):
            value = float(reading["gamma"].mean()) / 2
            return {"predicted": value, "predicted_min": value, "predicted_max": value, "remark": "of a test"}

        monkeypatch.setitem(PREDICTORS, "half", Predictor("half of gamma", half))
        analysis = analyzed(full("fixed(0.1)"))
        rows = analysis.comparison[analysis.comparison["predictor"] == "half"]
        assert len(rows) == len(analysis.fits)
        assert rows["predicted"].tolist() == [3.25] * len(rows)  # gamma is 6 and 7
        assert rows["ratio"].to_numpy() == pytest.approx((3.25 / rows["value"]).to_numpy(), nan_ok=True)
        page = predictions(analysis.comparison, summary(analysis.fits), refused_ntk()[:0]).html
        assert "predicted: half of gamma" in page
        assert "half of gamma: of a test." in page

    def test_statistics_of_the_initialization_predict_under_their_columns(self):
        assert set(PREDICTING) < set(PREDICTORS)
        assert [PREDICTORS[name].label for name in PREDICTING] == ["b_star", "4 gamma/k_op", "noise scale"]
        analysis = analyzed(full("fixed(0.1)"))
        rows = analysis.comparison[analysis.comparison["predictor"] == "noise_scale"]
        assert rows["predicted"].tolist() == [30.0] * len(rows)

    def test_trials_inherit_every_statistic_that_they_have_a_column_for(self):
        """What an initialization asks for is known before it is looked at, and is no statistic."""
        found = set(NTKStatistics.__dataclass_fields__) & {column.name for column in INITIAL}
        assert set(INHERITED) == found - {"n"}


@dataclass(frozen=True)
class PatientCell(Cell):
    patience: int = 0


@dataclass(frozen=True)
class Patient(Sweep):
    patience: int = field(default=0, metadata=setting(SHARED, at_least(0)))
    remark: str = field(default="", metadata=setting(EXECUTION, anything))


class TestSettings:
    @pytest.fixture
    def patient(self, monkeypatch):
        """A setting that changes results, with a column, and one that does not."""
        monkeypatch.setattr(raysat, "Sweep", Patient)
        monkeypatch.setattr("raysat.spec.sweep.Cell", PatientCell)
        monkeypatch.setattr("raysat.report.configuration.Sweep", Patient)
        column = Column("patience", pa.int64(), "", "Of a test.")
        monkeypatch.setitem(schema.TABLES, "trials", (*schema.TRIALS, column))
        schema.arrow_schema.cache_clear()
        yield
        monkeypatch.undo()
        schema.arrow_schema.cache_clear()

    @pytest.mark.usefixtures("patient")
    def test_a_new_one_comes_through_everywhere(self, run, capsys):
        assert run("patience=3", "remark=why", options=["--dry-run"])[0] == 0
        code, store = run("patience=3", "remark=why")
        assert code == 0
        assert store.read("trials")["patience"].tolist() == [3]
        assert "patience=3," in recorded(store)
        assert 'remark="why",' in recorded(store)
        assert run("patience=3", "remark=then")[0] == 0, "it changes nothing"
        capsys.readouterr()
        assert run("patience=4")[0] == 2
        assert "holds another sweep (patience 3 there, 4 here)" in capsys.readouterr().err
        assert run("patience=-1")[0] == 2
        assert "patience has -1: give whole numbers of at least 0" in capsys.readouterr().err

    @pytest.mark.usefixtures("patient")
    def test_at_its_default_it_changes_no_id(self):
        before = [cell.cell_id for cell in Sweep("s", "digits", **AXES).cells(20, 0)]
        assert [cell.cell_id for cell in Patient("s", "digits", **AXES).cells(20, 0)] == before
        assert [cell.cell_id for cell in Patient("s", "digits", **AXES, remark="why").cells(20, 0)] == before
        assert [cell.cell_id for cell in Patient("s", "digits", **AXES, patience=3).cells(20, 0)] != before

    def test_a_sweep_keeps_its_values_as_they_are_checked(self):
        """Of what stands in an id, 1 and 1.0 are two."""
        sweep = Sweep("s", "digits", **{**AXES, "iterations": None}, epochs=2, target_loss=1, k_tolerance=1)
        kept = json.loads(json.dumps({name: asdict(sweep)[name] for name in ("epochs", "target_loss", "k_tolerance")}))
        assert json.dumps(kept) == '{"epochs": 2, "target_loss": 1, "k_tolerance": 1.0}'
