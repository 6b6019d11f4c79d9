"""What is read runs no code, what is shown is text, and what is stored has no credentials."""

import ast
import io
import json
import math
import os
import pickle
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.table import Table
from test_any_rows import few, whole  # noqa: F401  fixtures

import raysat
from raysat import data
from raysat.analysis import print_summary
from raysat.data import formats, sharing
from raysat.doctor import main as doctor_main
from raysat.errors import InputError
from raysat.messages.credentials import hidden
from raysat.messages.terminal import Terminal
from raysat.plots import drawing, render_figures, save
from raysat.plots.attempts import Attempts
from raysat.report import render
from raysat.report.material import Material
from raysat.status import main as status_main
from raysat.storage.checkpoint import Checkpoint
from raysat.storage.schema import FAILED, REFUSED, arrow_schema
from raysat.storage.store import Store
from raysat.sweep import main

SOURCES = sorted(Path(raysat.__file__).parent.rglob("*.py"))


class Probe:
    """A harmless one: whoever unpickles it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def probe(tmp_path):
    """Checks at the end that nobody has unpickled it, and at the beginning that one could."""
    trace = tmp_path / "touched"
    pickle.loads(pickle.dumps(Probe(trace))).close()
    assert trace.exists()
    trace.unlink()
    yield Probe(trace)
    assert not trace.exists()


def saved(thing, save):
    buffer = io.BytesIO()
    save(thing, buffer)
    return buffer.getvalue()


def pickles(probe):
    """Files that a careless reader runs."""
    array = np.empty(1, dtype=object)
    array[0] = probe
    return {
        "pickle": pickle.dumps(probe),
        "torch": saved({"iteration": 3, "weights": probe}, torch.save),
        "old torch": saved(probe, lambda one, to: torch.save(one, to, _use_new_zipfile_serialization=False)),
        "npy": saved(array, lambda one, to: np.save(to, one, allow_pickle=True)),
        "npz": saved(array, lambda one, to: np.savez(to, x=one)),
    }


KINDS = ("pickle", "torch", "old torch", "npy", "npz")


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_runs_nothing(tmp_path, probe, kind, caplog):
    path = tmp_path / "a.pt"
    path.write_bytes(pickles(probe)[kind])
    assert Checkpoint(path).load().iteration == 0
    assert "is damaged, the trial starts over" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_of_a_results_folder_runs_anything(swept, probe, kind, capsys):
    content = pickles(probe)[kind]
    names = ["trials/zz.parquet", "curves/zz.parquet", "ntk/zz.parquet", "checkpoints/zz.pt", "status.json"]
    for name in names:
        (swept / name).write_bytes(content)
    cells = len(list((swept / "trials").glob("[0-9a-f]*.parquet")))
    assert len(Store(swept).read("trials")) == cells
    assert status_main([str(swept)]) == 0
    assert doctor_main([str(swept)]) == 1
    said = capsys.readouterr().out
    assert all(name in said for name in names)
    (swept / "sweep.json").write_bytes(content)
    assert Store(swept).record() is None
    assert status_main([str(swept)]) == 2


def test_metadata_of_a_part_file_are_not_evaluated(tmp_path, probe):
    """Neither those of pandas, nor an extension type of Arrow's that was once a pickle."""
    store = Store(tmp_path)
    (tmp_path / "trials").mkdir()
    plain = pa.Table.from_pylist([{"cell_id": "a"}], schema=arrow_schema("trials"))
    place = plain.schema.get_field_index("cell_id")
    extension = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(probe)}
    pandas = {
        "index_columns": [f"__import__('builtins').open({probe.path!r}, 'w')"],
        "columns": [],
        "column_indexes": [],
    }
    field = plain.schema.field(place).with_metadata(extension)
    table = plain.set_column(place, field, plain["cell_id"])
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), tmp_path / "trials" / "a.parquet")
    assert store.read("trials")["cell_id"].tolist() == ["a"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x.npy", "about.json"])
def test_shared_samples_run_nothing(tmp_path, monkeypatch, probe, kind, name):
    monkeypatch.setattr(sharing, "gettempdir", lambda: str(tmp_path))
    sharing._load.cache_clear()
    options = {"n_train": 8, "n_test": 4, "preprocessing": "none", "dtype": "float32"}
    first = data.load_shared("digits", **options)
    (copy,) = (path for path in sharing.folder().iterdir() if path.is_dir())
    (copy / name).unlink()
    (copy / name).write_bytes(pickles(probe)[kind])
    sharing._load.cache_clear()
    assert torch.equal(data.load_shared("digits", **options).x, first.x)
    sharing._load.cache_clear()


@pytest.mark.parametrize(
    "about", ["[]", "3", '{"shapes": 3}', '{"shapes": {"x": [1]}, "options": {"no": 1}}', "[" * 10**5]
)
def test_shared_samples_that_are_something_else_are_made_anew(tmp_path, monkeypatch, about):
    monkeypatch.setattr(sharing, "gettempdir", lambda: str(tmp_path))
    sharing._load.cache_clear()
    options = {"n_train": 8, "n_test": 0, "preprocessing": "none", "dtype": "float32"}
    first = data.load_shared("digits", **options)
    (copy,) = (path for path in sharing.folder().iterdir() if path.is_dir())
    (copy / "about.json").write_text(about)
    sharing._load.cache_clear()
    assert torch.equal(data.load_shared("digits", **options).x, first.x)
    sharing._load.cache_clear()


def test_the_pickled_batches_of_cifar10_name_nothing_but_arrays(probe):
    for thing in ({b"data": probe, b"labels": [1]}, probe):
        with pytest.raises(InputError, match="which no array needs"):
            formats.cifar(pickle.dumps(thing))


def calls(name):
    """The calls of a function anywhere in raysat, by its last two names, and what they say by keyword."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(name):
                yield path.name, {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_every_reader_in_the_code_says_that_it_runs_nothing():
    loads = list(calls("torch.load"))
    assert {path for path, _ in loads} == {"checkpoint.py", "parallel.py"}
    assert {said.get("weights_only") for _, said in loads} == {"True"}
    assert {said.get("allow_pickle") for _, said in calls("np.load")} == {"False"}
    assert not [*calls("pickle.load"), *calls("yaml.load"), *calls("read_pickle")]
    # What a process of the same cluster hands over, and no file: Ray itself takes it out of a pickle.
    assert {path for path, _ in calls("pickle.loads")} == {"tune.py"}


MARKUP = "</script><script>alert(1)</script>\" onmouseover='x' <!-- [bold]b[/] [/] $x_$ \x1b[31m &amp; {{7*7}}"


class Elements(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.names, self.attributes, self.words = [], set(), []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.words.append(data)


def marked(material):
    """The same sweep, with markup wherever a text comes from elsewhere."""
    texts = ("dataset", "model", "loss", "preprocessing", "dtype", "sampling", "error", "hostname", "off", "budget")
    options = {"model_options": json.dumps({MARKUP: MARKUP})}
    trials = material.trials.assign(**dict.fromkeys(texts, MARKUP), **options)
    trials = trials.assign(stepsize=trials["stepsize"].replace("theory(1)", f"theory({MARKUP})"), training=MARKUP)
    failed = trials[:2].assign(status=FAILED, error=f"Traceback\n{MARKUP}\n{MARKUP}", cell_id=["f1", "f2"])
    ntk = material.ntk.assign(**dict.fromkeys(("dataset", "model", "loss", "way", "off", "preprocessing"), MARKUP))
    lacking = ntk[:1].assign(
        method=REFUSED, method_reason=MARKUP, init_id="r", cell_id=None, gamma=math.nan, iteration=0
    )
    record = {**material.record, MARKUP: MARKUP, "machine": {"hostname": MARKUP}}
    record["sweep"] = {**record["sweep"], "name": MARKUP, "dataset": MARKUP}
    return Material(record, pd.concat([trials, failed]), material.curves, pd.concat([ntk, lacking]), [MARKUP])


def test_every_text_from_elsewhere_is_text_on_the_page_and_on_the_terminal(few, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(drawing, "DPI", 20)
    material, attempt = marked(few), Attempts()
    made = render_figures(material.trials, material.curves, material.analysis, attempt)
    save(made[:2], tmp_path, attempt)
    assert made
    html = render(material, [(plate, b"png") for plate in made], attempt)
    assert attempt.failures == {}
    assert 'class="failed"' not in html
    plain = Elements(render(few, [], Attempts()))
    found = Elements(html)
    assert set(found.names) <= {*plain.names, "img", "ol", "ul", "li", "details", "summary", "pre", "a"}
    assert found.names.count("script") == plain.names.count("script") == 2
    assert not {name for name in found.attributes if name.startswith("on")}
    assert html.count("</script>") == 2
    text = "".join(found.words)
    assert text.count(MARKUP) >= 20
    payload = json.loads(found.words[next(k for k, word in enumerate(found.words) if word.startswith('{"file"'))])
    assert payload["file"] == MARKUP

    screen = io.StringIO()
    terminal = Terminal(file=screen, force_terminal=True, width=400)
    print_summary(material.analysis, terminal)
    terminal.print(MARKUP)
    shown = screen.getvalue()
    assert "[bold]b[/] [/]" in shown
    assert "\\x1b[31m" in shown
    assert "\x1b[31m" not in shown


def test_a_terminal_has_its_own_colours_and_nobody_elses():
    screen = io.StringIO()
    terminal = Terminal(file=screen, force_terminal=True, color_system="standard", width=60)
    table = Table(title="[red]title[/]")
    table.add_column("[b]")
    table.add_row("a\x1b]0;owned\x07\x9b2J\u202e :smile:")
    terminal.print(table)
    terminal.print("mine", style="red")
    shown = screen.getvalue()
    assert "[red]title[/]" in shown
    assert "a\\x1b]0;owned" in shown.replace("\\x07", "")
    assert not {"\x07", "\x9b", "\u202e"} & set(shown)
    assert "\x1b[31mmine" in shown


ADDRESS = "s3://AKIAHIDDENKEY:hush/hu+sh@bucket/data?region=eu&secret_key=murmured&sig=mumbled"
SECRETS = ("AKIAHIDDENKEY", "hush/hu+sh", "murmured", "mumbled", "whispered-aws", "whispered-hf", "whispered pass")
LEAKY = """
import os
from torch import nn

class Leaky(nn.Sequential):
    def forward(self, x):
        if x.shape[0] == 7:
            said = [os.environ[name] for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MY_PASSWORD")]
            raise OSError(f"cannot reach ADDRESS with {said}")
        return super().forward(x)

def build(width, input_shape, outputs):
    return Leaky(nn.Flatten(), nn.Linear(64, outputs))
"""
LEAKING = """
from raysat import Sweep, fixed
sweep = Sweep(name="leaking", dataset="digits", n_train=16, n_test=4, models=["my_leaky:build"], widths=[1],
              batch_sizes=[7, 8], stepsizes=[fixed(0.1)], iterations=20, engine="autograd", checkpoint_seconds=1e-9)
"""


def test_no_file_and_no_line_of_a_sweep_has_a_credential(tmp_path, capsys, monkeypatch):
    names = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MY_PASSWORD")
    for name, value in zip(names, SECRETS[-3:], strict=True):
        monkeypatch.setenv(name, value)
    (tmp_path / "my_leaky.py").write_text(LEAKY.replace("ADDRESS", ADDRESS))
    (tmp_path / "leaking.py").write_text(LEAKING)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path, **_: None)  # checkpoints stay, to be looked at
        patch.setattr("raysat.trial.train.STEPS_AT_ONCE", 1)
        assert main([str(tmp_path / "leaking.py"), "--results", str(tmp_path / "results"), "--inline"]) == 1
    root = tmp_path / "results" / "leaking"
    captured = capsys.readouterr()
    said = captured.out + captured.err
    address = "s3://***@bucket/data?region=eu&secret_key=***&sig=***"
    assert f"cannotreach{address}" in "".join(said.split()), "lines break anywhere"
    trials = pd.read_parquet(root / "trials")
    assert trials["error"].str.contains("cannot reach s3://***@bucket/data", regex=False).sum() == 1
    files = [path for path in root.rglob("*") if path.is_file()]
    kinds = {path.relative_to(root).parts[0] for path in files}
    assert kinds >= {"sweep.json", "status.json", "trials", "curves", "ntk", "checkpoints", "report.html", "figures"}
    everything = b"".join(path.read_bytes() for path in files) + said.encode()
    for path in (*(root / "trials").glob("*.parquet"), *(root / "ntk").glob("*.parquet")):  # compressed there
        everything += repr(pq.read_table(path).to_pylist()).encode()
    assert b"s3://***@bucket" in everything
    for secret in SECRETS:
        assert secret.encode() not in everything


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:a@b/c@bucket/x y@z", "s3://***@bucket/x y@z"),
        ("'https://me:pass@host/x', then", "'https://***@host/x', then"),
        ("https://host:8080/path and me@home", "https://host:8080/path and me@home"),
        ("abfs://container:aHVzaA==@a.dfs.core.windows.net/x", "abfs://***@a.dfs.core.windows.net/x"),
        ("x?AWSAccessKeyId=1&X-Amz-Signature=ab%2F&y=2", "x?AWSAccessKeyId=***&X-Amz-Signature=***&y=2"),
        ("ratio 3:4 @ 5", "ratio 3:4 @ 5"),
    ],
)
def test_credentials_in_addresses_are_hidden_and_nothing_else(text, shown):
    assert hidden(text) == shown
    assert hidden({"a": [text, 1, None], "b": (text,)}) == {"a": [shown, 1, None], "b": [shown]}


def test_the_environment_is_hidden_by_the_names_of_its_variables(monkeypatch):
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", "a1b2c3/d4")
    monkeypatch.setenv("EDITOR", "vi-improved")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert hidden("a1b2c3/d4 a1b2c3%2Fd4 vi-improved false") == "*** *** vi-improved false"
