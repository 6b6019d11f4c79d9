"""What the documentation shows is run; what it links to is there."""

import doctest
import importlib
import pkgutil
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import raysat
from raysat.sweep import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = sorted(module.name for module in pkgutil.walk_packages(raysat.__path__, "raysat."))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_dead(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    assert targets or page.name != "README.md"
    for target in targets:
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_readme_has_its_two_lines():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert "    pip install -e . && python -m raysat.sweep sweeps/quickstart.py" in lines
    assert '    pip install -e ".[test]" && pytest' in lines


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name):
    module = importlib.import_module(name)
    assert module.__doc__
    names = vars(module) | {"torch": importlib.import_module("torch"), "np": importlib.import_module("numpy")}
    assert doctest.testmod(module, extraglobs=names).failed == 0


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The files of the page about models and data of one's own."""
    page = (ROOT / "docs" / "own-model-and-data.md").read_text()
    for name, text in re.findall(r"`(\w+\.py)`[^`]*:\n\n```python\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.slow
@pytest.mark.usefixtures("own")
def test_the_example_of_an_own_model_and_data_runs(tmp_path):
    assert main([str(tmp_path / "sweep.py"), "--results", str(tmp_path / "results"), "--inline"]) == 0
    trials = pd.read_parquet(tmp_path / "results" / "fashion" / "trials")
    assert len(trials) == 16
    assert set(trials["status"]) == {"completed"}
    assert trials["test_accuracy"].notna().all()
    assert len(pd.read_parquet(tmp_path / "results" / "fashion" / "ntk")) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("own")
def test_the_example_of_several_inputs_and_an_own_loss_runs(tmp_path):
    assert main([str(tmp_path / "reviews_sweep.py"), "--results", str(tmp_path / "results"), "--inline"]) == 0
    trials = pd.read_parquet(tmp_path / "results" / "reviews" / "trials")
    assert set(trials["status"]) == {"completed"}
    assert set(trials["loss"]) == {"reviews:logistic"}
    assert len(trials) == 8
    assert trials["b_star"].between(1, 200).all()
    assert trials["train_accuracy"].max() > 0.6


@pytest.mark.slow
@pytest.mark.usefixtures("own")
def test_the_example_of_augmentation_runs(tmp_path):
    options = ["dataset=augment:augmented", "name=augmented", "widths=[4]", "batch_sizes=[4,16]", "iterations=20"]
    named = [word for option in options for word in ("--set", option)]
    assert main([str(tmp_path / "sweep.py"), "--results", str(tmp_path / "results"), "--inline", *named]) == 0
    trials = pd.read_parquet(tmp_path / "results" / "augmented" / "trials")
    assert set(trials["status"]) == {"completed"}
    assert set(trials["training"]) == {"augmented by augment:crop_and_flip"}


@pytest.mark.usefixtures("own")
def test_the_example_of_augmentation_moves_and_mirrors_each_image_by_itself():
    augment = importlib.import_module("augment")
    x = torch.rand(400, 3, 6, 7) + 1
    made, _ = augment.crop_and_flip(x, None, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    every = [
        crop.flip(3) if flip else crop
        for flip in (False, True)
        for down in range(5)
        for right in range(5)
        for crop in [padded[:, :, down : down + 6, right : right + 7]]
    ]
    same = torch.stack([(made == one).flatten(1).all(1) for one in every])
    assert (same.sum(0) == 1).all()
    assert (same.sum(1) > 0).all()


def test_the_blocks_of_the_readme_run(swept, tmp_path, monkeypatch):
    shutil.copytree(swept, tmp_path / "here" / "results" / "mnist")
    monkeypatch.chdir(tmp_path / "here")
    names = {"model": torch.nn.Linear(3, 2), "x": torch.eye(3), "y": torch.eye(3)[:, :2]}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert len(blocks) >= 4
    assert len(names["sweep"].widths) == 3
    assert len(names["trials"]) == len(names["results"].trials) > 0
    assert names["statistics"].gamma >= names["statistics"].k_op > 0
