"""Which user code a result is of: what of it may change without an effect, and what runs again where it has changed."""

import importlib
import json
import py_compile
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pandas as pd
import pytest

from raysat import Training
from raysat.spec.training import words_of
from raysat.storage.partfiles import KEYS
from raysat.storage.store import Store
from raysat.sweep import main
from raysat.user_code import identity, plugins

SWEEP = """
from raysat import Sweep, fixed, mlp
sweep = Sweep(name="own", dataset="my_data:load", models=["my_model:build", mlp(1)], widths=[4], batch_sizes=[1, 8],
              stepsizes=[fixed(0.01)], iterations=5, preprocessing="none")
"""
DATA = """
import torch
from raysat.data import Dataset

def load():
    from my_numbers import count
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count(), 3, generator=generator)
    return Dataset(x=x, y=x.sum(1, keepdim=True))
"""
MODEL = '''
"""A model."""
import torch
from my_parts.layers import middle

def build(width, input_shape, outputs):
    import importlib
    last = importlib.import_module("my_" + "head")
    return torch.nn.Sequential(torch.nn.Linear(input_shape[0], width), middle(), last.head(width, outputs))
'''
PLAIN = MODEL.replace('import importlib\n    last = importlib.import_module("my_" + "head")', "import my_head as last")
FILES = {
    "my_data.py": DATA,
    "my_model.py": MODEL,
    "my_numbers.py": "def count():\n    return 8\n",
    "my_head.py": "import torch\n\ndef head(width, outputs):\n    return torch.nn.Linear(width, outputs)\n",
    "my_parts/__init__.py": "",
    "my_parts/layers.py": (
        "import torch\n\ndef middle():\n    from . import inner\n"
        "    return torch.nn.Sequential(torch.nn.Tanh(), inner.last())\n"
    ),
    "my_parts/inner.py": "import torch\n\ndef last():\n    return torch.nn.Softplus()\n",
    "sweep.py": SWEEP,
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr("raysat.report.finish", lambda *_: None)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def run(project, capsys):
    """Runs the sweep in process; returns the exit code and all that was said."""

    def run(*arguments):
        code = main([str(project / "sweep.py"), "--results", str(project / "results"), "--inline", *arguments])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def trials(project):
    return Store(project / "results" / "own").read("trials").set_index("cell_id").sort_index()


def replace(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def merge(project):
    """As after many cells."""
    store = Store(project / "results" / "own")
    store.parts.uncompacted = store.finished()
    store.parts.merge()
    assert list((store.root / "trials").glob("merged-*"))


def test_a_row_names_the_files_that_were_imported_for_it(project, run):
    assert run()[0] == 0
    found = {model: set(map(str, rows)) for model, rows in trials(project).groupby("model")["user_files"]}
    ((own,), (builtin,)) = found["my_model:build"], found["mlp"]
    assert set(json.loads(builtin)) == {"my_data.py", "my_numbers.py"}
    assert set(json.loads(own)) == set(FILES) - {"sweep.py"}
    ntk = Store(project / "results" / "own").read("ntk").set_index("model")["user_files"]
    assert ntk.to_dict() == {"my_model:build": own, "mlp": builtin}


@pytest.mark.parametrize("part", ["uncompacted", "merged"])
@pytest.mark.parametrize(
    ("file", "old", "new", "models"),
    [
        ("my_head.py", "torch.nn.Linear(width, outputs)", "torch.nn.Linear(width, outputs, bias=False)", 1),
        ("my_parts/inner.py", "Softplus", "Tanh", 1),
        ("my_numbers.py", "return 8", "return 4 + 4", 2),
    ],
)
def test_where_a_file_has_changed_its_cells_run_again_and_a_line_names_it(project, run, part, file, old, new, models):
    assert run()[0] == 0
    if part == "merged":
        merge(project)
    before = trials(project)
    replace(project / file, old, new)
    code, said = run("--dry-run")
    assert code == 0
    assert trials(project).equals(before)
    code, said = run()
    assert code == 0
    assert f"{file} changed since {2 * models} cells had ended: they run again" in said
    after = trials(project)
    assert set(after.index) == set(before.index)
    again = after.index[after["finished_at"] != before["finished_at"]]
    assert len(again) == 2 * models
    assert "my_model:build" in set(after.loc[again, "model"])
    root = project / "results" / "own"
    aside = {table: [pd.read_parquet(path) for path in (root / "set-aside" / table).iterdir()] for table in KEYS}
    assert set(pd.concat(aside["trials"])["cell_id"]) == set(again)
    assert set(pd.concat(aside["curves"])["cell_id"]) == set(again)
    assert len(pd.concat(aside["ntk"])) == models
    table = pd.concat([pd.read_parquet(path) for path in (root / "trials").glob("[!._]*.parquet")], ignore_index=True)
    assert table["cell_id"].is_unique
    assert "are finished" in run()[1]


OPTIONAL = """
    try:
        import my_fast
    except ImportError:
        pass
    try:
        from my_parts import faster
    except ImportError:
        pass
    try:
        import no_such_package_anywhere
    except ImportError:
        pass
"""


@pytest.mark.parametrize("file", ["my_fast.py", "my_fast/__init__.py", "my_parts/faster.py"])
def test_where_a_file_has_come_that_was_looked_for_its_cells_run_again(project, run, file):
    """What is imported where it is there, inside of a function, acts from the moment it is there."""
    start = "def build(width, input_shape, outputs):\n"
    replace(project / "my_model.py", start, start + OPTIONAL)
    assert run()[0] == 0
    assert "all 4 cells are finished" in run()[1]
    (project / file).parent.mkdir(exist_ok=True)
    (project / file).write_text("")
    code, said = run()
    assert code == 0
    assert "changed since 2 cells had ended: they run again" in said
    assert file.split("/")[-2 if file.endswith("__init__.py") else -1].removesuffix(".py") in said
    assert "all 4 cells are finished" in run()[1]


def test_what_a_library_looks_for_is_not_the_users(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "site-packages").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    look = "try:\n    import {}\nexcept ImportError:\n    pass\n"
    (tmp_path / "site-packages" / "a_library.py").write_text(look.format("an_optional_part"))
    (tmp_path / "a_module.py").write_text(look.format("a_neighbour") + "import a_library\n")
    with identity.recorded() as files:
        importlib.import_module("a_module")
    assert {path for path, text in files.items() if text is None} == {"a_neighbour.py"}


@pytest.mark.parametrize("way", ["bytecode", "extension"])
def test_where_a_compiled_module_has_changed_its_cells_run_again(project, run, monkeypatch, way):
    """A module without a text counts by its bytes."""
    start = "def build(width, input_shape, outputs):\n"
    replace(project / "my_model.py", start, start + "    import my_compiled\n    my_compiled.slope\n")
    make(project, way, 1)
    assert run()[0] == 0
    assert "all 4 cells are finished" in run()[1]
    made = make(project, way, 2)
    monkeypatch.delitem(sys.modules, "my_compiled")  # as in a new process
    identity._as_loaded.cache_clear()
    code, said = run()
    assert code == 0
    assert f"{made.name} changed since" in said
    assert "all 4 cells are finished" in run()[1]


def make(project, way, slope):
    """Compile a module."""
    text = project / "elsewhere" / "my_compiled.py"
    text.parent.mkdir(exist_ok=True)
    if way == "bytecode":
        text.write_text(f"slope = {slope}\n")
        return Path(py_compile.compile(str(text), cfile=str(project / "my_compiled.pyc"), doraise=True))
    made = project / f"my_compiled{sysconfig.get_config_var('EXT_SUFFIX')}"
    code = project / "elsewhere" / "my_compiled.c"
    code.write_text(EXTENSION.format(slope=slope))
    new = made.with_suffix(".new")
    subprocess.run(["cc", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}", code, "-o", new], check=True)
    new.replace(made)  # what is mapped into a process stays as it is
    return made


EXTENSION = """
#include <Python.h>
static struct PyModuleDef about = {{PyModuleDef_HEAD_INIT, "my_compiled", 0, -1, 0}};
PyMODINIT_FUNC PyInit_my_compiled(void) {{
    PyObject *module = PyModule_Create(&about);
    PyModule_AddIntConstant(module, "slope", {slope});
    return module;
}}
"""


@pytest.mark.parametrize(
    ("link", "file", "says"),
    [
        ("my_model.py", "my_model.py", "another sweep (my_model.py changed since)"),
        ("my_parts", "my_parts/layers.py", "another sweep (my_parts/layers.py changed since)"),
        ("my_head.py", "my_head.py", "my_head.py changed since 2 cells had ended"),
    ],
)
def test_a_link_to_a_file_of_another_name_is_the_file_that_its_place_says(project, run, link, file, says):
    there = project / "versions" / link.replace("my_", "second_")
    there.parent.mkdir()
    (project / link).rename(there)
    (project / link).symlink_to(there)
    assert run()[0] == 0
    assert file in trials(project).query("model == 'my_model:build'")["user_files"].iloc[0]
    replace(project / file, "torch.nn", "torch.nn.modules")
    assert says in run()[1]


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("antigravity.py", "import antigravity as last"),  # also a module of Python's, which nobody has imported
        ("my_head.txt", "import importlib.machinery as m\n"
         "    last = m.SourceFileLoader('my_text', __file__.replace('my_model.py', 'my_head.txt')).load_module()"),
    ],
)  # fmt: skip
def test_a_file_counts_whatever_it_is_called(project, run, name, head):
    (project / "my_head.py").rename(project / name)
    (project / "my_model.py").write_text(PLAIN.replace("import my_head as last", head))
    assert run()[0] == 0
    replace(project / name, "torch.nn.Linear(width, outputs)", "torch.nn.Linear(width, outputs, bias=False)")
    assert f"{name} changed since 2 cells had ended" in run()[1]


def test_a_module_that_the_sweep_file_has_imported_too_counts_for_the_rows_that_use_it(project, run, monkeypatch):
    lib = project / "my_lib"
    lib.mkdir()
    (project / "my_head.py").rename(lib / "my_head.py")
    monkeypatch.syspath_prepend(str(lib))
    (project / "sweep.py").write_text(f"import my_head\n{SWEEP}")
    assert run()[0] == 0
    assert "my_head.py" in trials(project).query("model == 'my_model:build'")["user_files"].iloc[0]
    replace(lib / "my_head.py", "Linear(width, outputs)", "Linear(width, outputs, bias=False)")
    sys.modules.pop("my_head", None)  # as in another process
    code, said = run()
    assert code == 0
    assert "my_head.py changed since 2 cells had ended" in said


def test_a_file_that_moves_along_the_path_is_the_same_and_one_that_is_gone_is_not(project, run):
    optional = "try:\n        from my_numbers import count\n    except ImportError:\n        count = lambda: 8"
    replace(project / "my_data.py", "from my_numbers import count", optional)
    assert run()[0] == 0
    (project / "my_lib").mkdir()
    (project / "my_numbers.py").rename(project / "my_lib" / "my_numbers.py")
    sys.path.append(str(project / "my_lib"))
    assert "all 4 cells are finished" in run()[1]
    (project / "my_lib" / "my_numbers.py").unlink()
    assert "my_numbers.py changed since 4 cells had ended" in run()[1]


@pytest.mark.parametrize(
    ("file", "more"),
    [
        ("my_model.py", "# a comment\n"),
        ("my_model.py", "\n\nimport math\nfrom torch.nn import functional as F\nSIZE = 3\n\n"
         "def build_other(w, i, o):\n    return F.relu(math.pi * SIZE)\n\nclass Other(torch.nn.Module):\n    pass\n"),
        ("my_parts/layers.py", "\n\ndef another():\n    return torch.nn.ReLU()\n"),
        ("my_head.py", "   \n# a comment\n"),
        ("my_data.py", "\ndef load_other():\n    return None\n"),
        ("my_new.py", "x = 1\n"),
    ],
)  # fmt: skip
def test_comments_layout_and_other_functions_run_nothing_again(project, run, file, more):
    (project / "my_model.py").write_text(PLAIN)
    assert run()[0] == 0
    path = project / file
    path.write_text((path.read_text() if path.exists() else "") + more)
    code, said = run()
    assert code == 0
    assert "all 4 cells are finished" in said


def test_docstrings_and_line_breaks_run_nothing_again(project, run):
    assert run()[0] == 0
    replace(project / "my_model.py", '"""A model."""', '"""Another\nword."""')
    replace(project / "my_parts" / "layers.py", "middle():\n", 'middle():\n    """The middle."""\n\n')
    replace(
        project / "my_data.py", "count(), 3, generator=generator", "\n        count(), 3, generator=generator\n    "
    )
    assert "all 4 cells are finished" in run()[1]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("my_data.py", "manual_seed(0)", "manual_seed(1)"), ("my_parts/layers.py", "torch.nn.Tanh()", "torch.nn.ReLU()")],
)
def test_what_is_known_to_differ_before_the_run_is_another_sweep_and_its_file_is_named(project, run, file, old, new):
    assert run()[0] == 0
    before = trials(project)
    replace(project / file, old, new)
    code, said = run()
    assert code == 2
    assert f"holds another sweep ({file} changed since): use another --results" in said
    assert trials(project).equals(before)
    assert run("--fresh")[0] == 0


OPTIMIZER = """
import torch

class Steps(torch.optim.SGD):
    def step(self, closure=None):
        import my_size
        for group in self.param_groups:
            group["lr"] *= my_size.SIZE
        return super().step(closure)
"""


@pytest.fixture
def with_optimizer(project):
    """A project whose own code is an optimizer, and what that imports as it steps."""
    (project / "my_optimizer.py").write_text(OPTIMIZER)
    (project / "my_size.py").write_text("SIZE = 0.5\n")
    fields = 'trainings=[Training("my_optimizer:Steps"), Training()], preprocessing="none"'
    replace(project / "sweep.py", 'preprocessing="none"', fields)
    replace(project / "sweep.py", '"my_data:load"', '"digits", n_train=8')
    replace(project / "sweep.py", '["my_model:build", mlp(1)]', "[mlp(1)]")
    replace(project / "sweep.py", "import Sweep", "import Sweep, Training")
    return project


def test_a_row_names_the_code_of_its_training():
    options = {"options": {"decay": 0.1}, "schedule_options": {"share": 0.2, "shape": "linear"}}
    training = Training("my_optimizers:Signs", schedule="my_schedules:trapezoid", clip=1.0, average=0.9, **options)
    assert identity.references_of(*words_of(training.label)) == ("my_optimizers:Signs", "my_schedules:trapezoid")
    assert identity.references_of(*training.names) == ("my_optimizers:Signs", "my_schedules:trapezoid")
    assert identity.references_of(*words_of(Training(schedule="StepLR").label), *words_of(None)) == ()


def test_an_optimizer_of_ones_own_counts_for_the_trials_that_name_it(with_optimizer, run):
    assert run()[0] == 0
    files = trials(with_optimizer).groupby("training")["user_files"].unique()
    assert {name for text in files["my_optimizer:Steps"] for name in json.loads(text)} == {
        "my_optimizer.py",
        "my_size.py",
    }
    assert pd.isna(files["sgd"]).all()
    replace(with_optimizer / "my_optimizer.py", "class Steps", "# halves\nclass Steps")
    assert "all 4 cells are finished" in run()[1]
    replace(with_optimizer / "my_size.py", "0.5", "0.25")
    said = run()[1]
    assert "my_size.py changed since 2 cells had ended" in " ".join(said.split())
    replace(with_optimizer / "my_optimizer.py", "*=", "/=")
    code, said = run()
    assert code == 2
    assert "holds another sweep (my_optimizer.py changed since)" in said


@pytest.mark.parametrize("changes", [False, True])
def test_a_trial_with_an_optimizer_of_ones_own_goes_on_where_it_was_unless_that_has_changed(
    with_optimizer, run, monkeypatch, changes
):
    from raysat.trial import train as trial

    seen = []

    def interrupted(*arguments, advance=trial._advance):
        _, (one,), *_ = arguments
        seen.append((one.cell.training.label, one.progress.iteration))
        advance(*arguments)
        if one.progress.iteration >= 2 and one.cell.training.label != "sgd" and not resumed:
            one.save(arguments[0])
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(trial, "_advance", interrupted)
    resumed = False
    assert run()[0] == 130
    seen.clear()
    resumed = True
    if changes:
        replace(with_optimizer / "my_size.py", "0.5", "0.25")
    assert run()[0] == 0
    starts = sum(iteration == 0 for label, iteration in seen if label != "sgd")
    assert starts == (2 if changes else 1)  # of two trials, one of which had begun
    losses = trials(with_optimizer)["loss_final"]
    assert run("--fresh")[0] == 0
    pd.testing.assert_series_equal(losses, trials(with_optimizer)["loss_final"], check_exact=True)


def test_other_axes_and_models_grow_beside_what_is_finished(project, run):
    assert run()[0] == 0
    before = trials(project)
    (project / "my_second.py").write_text(
        "from my_model import build as first\n\ndef build(w, i, o):\n    return first(w, i, o)\n"
    )
    assert run("--set", "models=['my_model:build', mlp(1), 'my_second:build']", "--set", "widths=[4, 5]")[0] == 0
    after = trials(project)
    assert len(after) == 12
    pd.testing.assert_frame_equal(after.loc[before.index], before)
    replace(project / "my_head.py", "torch.nn.Linear(width, outputs)", "torch.nn.Linear(width, outputs, bias=False)")
    code, said = run("--set", "models=[mlp(1)]")  # whose code has not changed; what is not asked for stays
    assert code == 0
    assert "all 2 cells are finished" in said
    assert len(trials(project)) == 12


def test_results_of_an_earlier_raysat_stay_where_their_text_does(project, run, monkeypatch):
    """It had one digest of all texts, in all ids, and named no files in rows."""
    assert run()[0] == 0
    store = Store(project / "results" / "own")
    # What it took for the code: the modules that are imported with the references.
    static = ["my_data", "my_model", "my_parts", "my_parts.layers"]
    texts = {name: FILES.get(f"{name.replace('.', '/')}.py", FILES.get(f"{name}/__init__.py")) for name in static}
    earlier = plugins.digest({name: plugins.Source(text) for name, text in texts.items()})
    record = json.loads(store.sweep_file.read_text())
    assert set(record["resolved"]["code"]["files"]) == {"my_data:load", "my_model:build"}
    old = record | {"resolved": record["resolved"] | {"code": earlier}}

    store.clear()
    store.root.mkdir(parents=True)
    store.sweep_file.write_text(json.dumps(old))
    monkeypatch.setattr("raysat.trial.train.provenance", lambda device, *_: _unnamed(device))
    monkeypatch.setattr("raysat.trial.initial.provenance", lambda device, *_: _unnamed(device))
    assert run()[0] == 0  # with the ids that it gave
    before = trials(project)
    assert before["user_files"].isna().all()
    store.sweep_file.write_text(json.dumps(old))
    assert "all 4 cells are finished" in run()[1]
    replace(project / "my_model.py", '"""A model."""', '"""Another."""')  # the folder knows its files by now
    assert "all 4 cells are finished" in run()[1]
    replace(project / "my_head.py", "torch.nn.Linear(width, outputs)", "torch.nn.Linear(width, outputs, bias=False)")
    assert "all 4 cells are finished" in run()[1]  # its rows do not name what they imported

    store.sweep_file.write_text(json.dumps(old))
    code, said = run()
    assert code == 2
    assert "my_data.py or my_model.py or my_parts/__init__.py or my_parts/layers.py changed since" in said


def _unnamed(device):
    from raysat.storage.rows import provenance

    return provenance(device)


def test_on_ray_as_in_process(project, monkeypatch):
    monkeypatch.undo()
    command = [sys.executable, "-m", "raysat.sweep", str(project / "sweep.py"), "--results", str(project / "results")]

    def on_ray(*arguments):
        return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, check=False)

    done = on_ray()
    assert done.returncode == 0, done.stderr
    files = trials(project).groupby("model")["user_files"].unique()
    assert set(json.loads(files["my_model:build"][0])) == set(FILES) - {"sweep.py"}
    assert len(files["my_model:build"]) == 1
    replace(project / "my_head.py", "torch.nn.Linear(width, outputs)", "torch.nn.Linear(width, outputs, bias=False)")
    done = on_ray("--inline")
    assert done.returncode == 0, done.stderr
    assert "my_head.py changed since 2 cells had ended" in " ".join(done.stdout.split())
    assert "all 4 cells are finished" in on_ray().stdout


def test_a_checkpoint_of_other_code_is_left(project, run, monkeypatch):
    """A trial that goes on after its helper has changed starts over."""
    from raysat.trial import train as trial

    def interrupted(*arguments, advance=trial._advance):
        _, (one,), *_ = arguments
        advance(*arguments)
        if one.progress.iteration >= 2 and one.cell.init.model.label == "my_model:build":
            one.save(arguments[0])
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(trial, "_advance", interrupted)
        assert run()[0] == 130
    checkpoints = project / "results" / "own" / "checkpoints"
    assert len(list(checkpoints.iterdir())) == 1
    replace(project / "my_head.py", "torch.nn.Linear(width, outputs)", "torch.nn.Linear(width, outputs, bias=False)")
    assert run()[0] == 0
    resumed = trials(project)["loss_final"]
    assert run("--fresh")[0] == 0
    pd.testing.assert_series_equal(resumed, trials(project)["loss_final"], check_exact=True)
