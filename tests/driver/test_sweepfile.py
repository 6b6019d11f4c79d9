import pytest
import torch

from raysat import InputError, Sweep, Training, fixed, grid, mlp, theory
from raysat.driver import sweepfile

GOOD = """
from raysat import Sweep, mlp, theory
sweep = Sweep(name="s", dataset="digits", models=[mlp()], widths=[8], batch_sizes=[1], stepsizes=[theory()],
              iterations=10)
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "file.py"
        path.write_text(text)
        return path

    return write


def test_a_sweep_file_is_plain_python(write):
    assert sweepfile.load(write(GOOD)).name == "s"


def test_a_sweep_file_may_import_what_lies_beside_it(write, tmp_path):
    (tmp_path / "sizes_beside.py").write_text("sizes = [1, 2, 4]\n")
    sweep = sweepfile.load(write("from sizes_beside import sizes" + GOOD.replace("[1]", "sizes")))
    assert sweep.batch_sizes == (1, 2, 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "end it with 'sweep = Sweep"),
        ("sweep = 3", "end it with 'sweep = Sweep"),
        ("\n1 / 0", "line 2: ZeroDivisionError"),
        ("def f(:", "line 1: SyntaxError"),
        (GOOD.replace("iterations=10", "iterations=0"), "iterations has 0"),
        (GOOD.replace("iterations", "steps"), "line 3: TypeError.*steps"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused_with_the_place(write, text, words):
    with pytest.raises(InputError, match=words):
        sweepfile.load(write(text))


def test_what_a_file_replaces_of_pytorch_is_put_back(write):
    """It would hold for jobs in this process, and for none in another."""
    draw = torch.nn.init.normal_
    sweepfile.load(write("import torch\ntorch.nn.init.normal_ = None\n" + GOOD))
    assert torch.nn.init.normal_ is draw


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.py: there is no such file"):
        sweepfile.load(tmp_path / "nowhere.py")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 3),
        ("-1.5e-3", -1.5e-3),
        ("[64,128]", [64, 128]),
        ("(1, 2**3)", (1, 8)),
        ("None", None),
        ("'center'", "center"),
        ("theory()", theory()),
        ("[theory(0.5), fixed(1/4)]", [theory(0.5), fixed(0.25)]),
        ("grid([0.1, 0.2])", grid([0.1, 0.2])),
        ("[mlp(depth=2, hidden_gain=2**0.5)]", [mlp(2, hidden_gain=2**0.5)]),
        ("powers_of_two(5)", (1, 2, 4, 5)),
        (
            '[Training("adamw", options={"weight_decay": 1/4, "betas": (0.9, 0.95)})]',
            [Training("adamw", options={"weight_decay": 0.25, "betas": (0.9, 0.95)})],
        ),
    ],
)
def test_values(text, expected):
    assert sweepfile.value(text, "--set x=...") == expected


@pytest.mark.parametrize("text", ["mnist", "'mnist'", "fashion:load", "linear(n=64)"])
def test_fields_that_are_texts_need_no_quotes(write, text):
    sweep = sweepfile.override(sweepfile.load(write(GOOD)), [f"dataset={text}"])
    assert sweep.dataset == text.strip("'")


@pytest.mark.parametrize(
    "text",
    [
        "[1,",
        "__import__('os')",
        "open('x')",
        "[].append",
        "mnist",
        "a b",
        "1 if 1 else 2",
        "fixed(0)",
        "1/0",
        "{**{}}",
        "{[]: 1}",
    ],
)
def test_values_that_are_none(text):
    with pytest.raises(InputError, match="--set x") as caught:
        sweepfile.value(text, "--set x=...")
    assert "\n" not in str(caught.value)


def test_fields_are_replaced_and_validated(write):
    sweep = sweepfile.load(write(GOOD))
    changed = sweepfile.override(sweep, ["iterations=300", "widths=[64,128]", "dataset=mnist", "n_train=1000"])
    assert isinstance(changed, Sweep)
    assert (changed.iterations, changed.widths, changed.dataset, changed.n_train) == (300, (64, 128), "mnist", 1000)
    assert sweep.iterations == 10


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("iterations", "write --set KEY=VALUE"),
        ("iteration=3", "did you mean iterations"),
        ("colour=3", "the fields are name, dataset"),
        ("batch_sizes=[0]", "--set: batch_sizes has 0"),
        ("widths=64", "give a list"),
    ],
)
def test_bad_settings(write, setting, words):
    with pytest.raises(InputError, match=words):
        sweepfile.override(sweepfile.load(write(GOOD)), [setting])
