import shlex
from pathlib import Path

import pytest
from analysis.test_analysis import analyzed, full, results, tables
from analysis.test_ladder import laddered, of_two
from analysis.test_recommendation import recommended, tuned

from raysat.analysis import short_settings
from raysat.driver.provenance import about
from raysat.driver.sweepfile import override
from raysat.report.target import sliders
from raysat.spec.stepsizes import grid
from raysat.spec.sweep import Sweep
from raysat.storage.store import Store
from raysat.sweep import _parser


def slid(root, made, targets=(), **sweep):
    fields = {"targets": targets, "stepsizes": grid([0.25, 0.5, 1.0, 2.0])} | sweep
    record = Store(results(root, made, **fields)).record() | {"file": "toy.py"}
    return sliders(record, laddered(made, targets), short_settings(analyzed(made, targets).fits))


def test_each_level_has_the_recommendation_of_that_target(tmp_path):
    made = tuned()
    (slider,) = slid(tmp_path / "toy", made, (0.8, 0.7))
    assert slider["levels"] == sorted(slider["levels"], reverse=True)
    assert [slider["levels"][k] for k in slider["own"]] == [0.8, 0.7]
    assert slider["levels"][slider["start"]] == 0.7
    assert slider["said"][slider["start"]] == recommended(made, (0.8, 0.7)).sentence
    for k in (-1, -5):
        assert slider["said"][k] == recommended(made, (slider["levels"][k],)).sentence


@pytest.mark.parametrize(
    ("made", "sweep", "changed"),
    [
        (of_two(slow_ended=False), {"target_loss": 0.5}, {"target_loss": 0.2, "targets": (0.2,), "name": "toy-0.2"}),
        (tuned(), {}, {"iterations": 600, "name": "toy-0.3"}),
        (tuned(), {"iterations": None, "epochs": 3.0}, {"epochs": 6.0, "name": "toy-0.3"}),
    ],
)
def test_at_the_end_a_command_says_how_to_go_on(tmp_path, made, sweep, changed):
    (slider,) = slid(tmp_path / "toy", made, (0.5,) if "target_loss" in sweep else (0.7,), **sweep)
    assert f"No target below {slider['levels'][-1]:g}" in slider["end"]
    assert ("were stopped at their target" in slider["end"]) == ("target_loss" in sweep)
    run, command, file, *words = shlex.split(slider["command"])
    assert (run, command, file) == ("raysat", "run", "toy.py")
    fields = {"name": "toy", "dataset": "digits", "models": ["m:f"], "widths": [64], "batch_sizes": [1, 8]}
    asked = Sweep(**fields, stepsizes=grid([0.25, 0.5]), **({"iterations": 300} | sweep))
    made = override(asked, [word for word in words if word != "--set"])
    assert {name: getattr(made, name) for name in changed} == changed


def test_where_stepsizes_were_sought_for_another_target_the_command_that_seeks_more_is_named(tmp_path):
    made = tuned(etas=(0.5, 1.0, 2.0))  # the best is the smallest that was tried
    (slider,) = slid(tmp_path / "toy", made, (0.7,), stepsizes=grid(auto=True))
    assert f"raysat run toy.py --set 'targets=[{slider['levels'][-1]}]'" in slider["said"][-1]
    assert "raysat run" not in slider["said"][slider["start"]]


def test_there_is_none_where_there_is_one_target_or_none(tmp_path):
    assert slid(tmp_path / "failed", full(status="failed")) == []
    assert slid(tmp_path / "empty", []) == []
    assert len(tables([])[0]) == 0


def test_a_command_is_one_that_a_shell_takes_as_it_stands(tmp_path):
    made = tuned()
    record = Store(results(tmp_path / "toy", made)).record() | {"file": "s x.py"}
    (slider,) = sliders(record, laddered(made, ()), short_settings(analyzed(made).fits))
    assert shlex.split(slider["command"])[:3] == ["raysat", "run", "s x.py"]


def test_a_command_has_the_folder_the_settings_and_the_results_that_were_named(tmp_path):
    made = tuned()
    words = about(Path("my sweeps/x.py"), ["seeds=2", "iterations=300"], "s3://KEY:hush@bucket/r")["command"]
    record = Store(results(tmp_path / "toy", made)).record() | {"command": words}
    (slider,) = sliders(record, laddered(made, ()), short_settings(analyzed(made).fits))
    options = _parser().parse_args(shlex.split(slider["command"])[2:])
    assert options.file == Path("my sweeps/x.py")
    assert options.results == "s3://***@bucket/r"
    assert options.set[:2] == ["seeds=2", "iterations=300"]
    assert "iterations=600" in options.set[2:]  # the last one counts
