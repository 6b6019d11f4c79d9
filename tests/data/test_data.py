import gzip
import io
import os
import pickle
import struct
import sys
import tarfile
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pooch
import pytest
import requests
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from raysat.data import NAMES, Dataset, checks, linear_problem, load, loading, preprocess, preprocessing, sources
from raysat.errors import InputError

DATA = os.environ.get("RAYSAT_DATA")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No folder of data but an empty cache, nothing remembered, and no way out of this machine."""
    folder = tmp_path / "cache"
    monkeypatch.delenv("RAYSAT_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: folder)
    serve(monkeypatch, {})
    loading._load.cache_clear()
    yield folder
    loading._load.cache_clear()


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty folder of data, in use."""
    folder = tmp_path / "shelf"
    monkeypatch.setenv("RAYSAT_DATA", str(folder))
    return folder


def serve(monkeypatch, pages):
    """Let the internet consist of these addresses and their contents."""

    class Downloader:
        def __init__(self, progressbar, chunk_size):
            self.bar = progressbar

        def __call__(self, url, output_file, pooch):
            if url not in pages:
                raise requests.exceptions.ConnectionError(f"no route to {url}")
            with open(output_file, "wb") as out:
                out.write(pages[url])
            self.bar.total = len(pages[url])
            self.bar.update(len(pages[url]))
            self.bar.reset()
            self.bar.update(len(pages[url]))
            self.bar.close()

    monkeypatch.setattr(pooch, "HTTPDownloader", Downloader)


def publish(monkeypatch, name, contents):
    """Make these the original files of a built-in data set: contents in the order of its table."""
    files = dict(zip(sources.SOURCES[name].files, contents, strict=True))
    digests = {file: f"sha256:{sha256(content).hexdigest()}" for file, content in files.items()}
    monkeypatch.setitem(sources.SOURCES, name, replace(sources.SOURCES[name], files=digests))
    return files


def put(folder, name, files):
    for file, content in files.items():
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def idx(array):
    return gzip.compress(struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape) + array.tobytes())


def mnist_contents(n=20, n_test=8):
    rng = np.random.default_rng(0)
    return [
        idx(array.astype(np.uint8))
        for size in (n, n_test)
        for array in (rng.integers(0, 256, (size, 28, 28)), np.arange(size) % 10)
    ]


def cifar_contents(per_batch=3):
    rng = np.random.default_rng(0)

    def batch(k):
        return {
            b"data": rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8),
            b"labels": [(k + j) % 10 for j in range(per_batch)],
            b"batch_label": b"a batch",
        }

    return [pickle.dumps(batch(k), protocol=3) for k in range(6)]


# The data set itself


X, Y = torch.randn(6, 3), torch.randn(6, 2)
TOKENS = torch.arange(12).view(3, 4)


def test_dataset_knows_its_sizes():
    data = Dataset(torch.zeros(5, 1, 8, 8), torch.zeros(5, 3), torch.zeros(2, 1, 8, 8), torch.zeros(2, 3))
    assert (data.n, data.n_test, data.input_shape, data.outputs) == (5, 2, (1, 8, 8), 3)
    text = Dataset(TOKENS, TOKENS, vocabulary=65)
    assert (text.n, text.n_test, text.input_shape, text.outputs, text.classes) == (3, 0, (4,), 65, True)


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (torch.eye(6), True),
        (torch.eye(2)[[0, 0, 0, 0, 1, 1]], True),
        (torch.ones(6, 1), False),
        (torch.ones(6, 2), False),
        (torch.eye(6) * 2, False),
        (Y, False),
    ],
)
def test_classes_are_inferred_from_one_hot_rows(y, classes):
    assert Dataset(X, y).classes is classes


def test_classes_can_be_said():
    assert Dataset(X, 2 * torch.eye(6) - 1, classes=True).classes is True
    assert Dataset(X, torch.eye(6), classes=False).classes is False


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"x": X[:, 0], "y": Y}, r"x of shape \[6\]: give x\[:, None\]"),
        ({"x": X, "y": X[:, 0]}, r"y of shape \[6\]: give y\[:, None\] .* or y.long\(\) for labels"),
        ({"x": X[:0], "y": Y[:0]}, "at least one sample"),
        ({"x": X, "y": Y[:5]}, "6 inputs in x and 5 targets in y"),
        ({"x": X, "y": torch.zeros(6, dtype=torch.int64)[:, None]}, r"y.flatten\(\) for one label a sample"),
        ({"x": X, "y": torch.ones(6, 2, dtype=torch.bool)}, r"y is of torch.bool: give y.float\(\)"),
        ({"x": X, "y": torch.arange(6) + 1}, r"labels from 1 to 6 in y: number the classes from 0, such as by y - 1"),
        ({"x": X, "y": torch.arange(6) - 1}, "y has labels from -1 to 4 for 5 classes"),
        ({"x": X, "y": torch.arange(6), "outputs": 5}, "y has labels from 0 to 5 for 5 classes"),
        ({"x": X, "y": torch.eye(6), "classes": True, "outputs": 5}, "outputs=5 and y of shape"),
        ({"x": X, "y": X[:, :1], "classes": True}, "one output and the targets .*, ...: give two, such as -1 and 1"),
        ({"x": torch.zeros(6, 3, dtype=torch.uint8), "y": Y}, "int64 for tokens"),
        ({"x": X, "y": Y[:, None]}, r"y of shape \[6, 1, 2\]"),
        ({"x": X.clone().fill_(torch.nan), "y": Y}, "values in x that are not finite"),
        ({"x": X, "y": Y / 0}, "y has values that are not finite"),
        ({"x": X, "y": Y, "x_test": X}, "only one of x_test and y_test"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y[:1]}, "6 inputs in x_test and 1 targets in y_test"),
        ({"x": X, "y": Y, "x_test": X[:, :2], "y_test": Y}, r"x_test of shape \[6, 2\]"),
        ({"x": X, "y": Y, "x_test": X.double(), "y_test": Y}, "torch.float64"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y / 0}, "y_test has values that are not finite"),
        ({"x": X, "y": Y, "vocabulary": 65}, "leave it out"),
        ({"x": TOKENS, "y": TOKENS}, "no vocabulary"),
        ({"x": TOKENS, "y": TOKENS, "vocabulary": 11}, "tokens from 0 to 11"),
        ({"x": TOKENS, "y": TOKENS - 1, "vocabulary": 12}, "labels from -1 to 10 for 12 classes"),
        ({"x": TOKENS, "y": TOKENS[:, :3], "vocabulary": 12}, r"y of shape \[3, 3\]"),
    ],
)
def test_dataset_refuses_what_does_not_fit(fields, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        Dataset(**fields)
    assert ": " in str(caught.value)
    assert str(caught.value).endswith(".")


def test_what_is_no_tensor_is_refused():
    """In tests the checker of signatures would speak before the constructor does."""
    with pytest.raises(InputError, match="x of type float: give a"):
        checks.split("", 1.0, Y, None, positions=False)


# Preprocessing


def samples(least_dims=2, most_dims=4):
    """Training inputs on a grid of eighths, among which constant features and equal samples are frequent."""
    shape = array_shapes(min_dims=least_dims, max_dims=most_dims, max_side=5)
    elements = st.integers(-40, 40).map(lambda k: k / 8)
    return arrays(np.float64, shape, elements=elements).map(torch.from_numpy)


def dataset(x, x_test=None):
    y_test = None if x_test is None else torch.zeros(len(x_test), 1)
    return Dataset(x, torch.zeros(len(x), 1), x_test, y_test)


@settings(deadline=None)
@given(samples())
def test_center_leaves_no_mean_and_unit_variance_on_average(x):
    centred = preprocess(dataset(x), "center").x
    assert centred.mean(0).abs().max() < 1e-12
    constant = (x == x[:1]).all()
    assert centred.square().mean().item() == (0 if constant else pytest.approx(1))


@settings(deadline=None)
@given(samples(), st.integers(1, 9), st.integers(-9, 9))
def test_center_forgets_scale_and_offset(x, scale, offset):
    torch.testing.assert_close(
        preprocess(dataset(scale * x + offset), "center").x, preprocess(dataset(x), "center").x, atol=1e-12, rtol=0
    )


def test_center_divides_by_one_scalar():
    x = torch.tensor([[0.0, 0.0], [2.0, 6.0]])
    torch.testing.assert_close(preprocess(dataset(x), "center").x, torch.tensor([[-1.0, -3], [1, 3]]) / 5**0.5)


@settings(deadline=None)
@given(samples(2, 3))
def test_standardize_gives_each_feature_mean_0_and_variance_1(x):
    result = preprocess(dataset(x), "standardize").x
    assert result.mean(0).abs().max() < 1e-12
    constant = (x == x[:1]).all(0)
    torch.testing.assert_close(result.square().mean(0), torch.where(constant, 0.0, 1.0).double())


@settings(deadline=None)
@given(samples(4, 4))
def test_standardize_takes_images_channel_by_channel(x):
    result = preprocess(dataset(x), "standardize").x
    assert result.mean((0, 2, 3)).abs().max() < 1e-12
    constant = (x == x[:1, :, :1, :1]).all(3).all(2).all(0)
    torch.testing.assert_close(result.square().mean((0, 2, 3)), torch.where(constant, 0.0, 1.0).double())


def test_a_constant_feature_stays_finite_though_its_mean_is_rounded():
    x = torch.cat([torch.full((5000, 1), 0.1), torch.arange(5000.0)[:, None]], 1)
    assert preprocess(dataset(x), "standardize").x[:, 0].eq(0).all()


@settings(deadline=None)
@given(samples())
def test_unit_norm_gives_norm_1_or_0(x):
    norms = preprocess(dataset(x), "unit_norm").x.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, x.flatten(1).any(1).double())


@pytest.mark.parametrize("how", ["none", "center", "standardize", "unit_norm"])
def test_the_test_set_is_treated_as_the_training_set_is(how):
    x = torch.randn(50, 2, 4, 4) * 3 + 1
    result = preprocess(dataset(x, x[:7]), how)
    torch.testing.assert_close(result.x_test, result.x[:7], atol=0, rtol=0)
    other = preprocess(dataset(x, 5 + torch.randn(9, 2, 4, 4)), how)
    torch.testing.assert_close(other.x, result.x, atol=0, rtol=0)


@pytest.mark.parametrize("how", ["center", "standardize", "unit_norm"])
def test_preprocessing_does_not_depend_on_how_much_is_held_at_a_time(how, monkeypatch):
    data = dataset(torch.randn(50, 2, 3, 3, dtype=torch.float64), torch.randn(11, 2, 3, 3, dtype=torch.float64))
    whole = preprocess(data, how)
    monkeypatch.setattr(preprocessing, "_VALUES", 7 * 18)
    pieces = preprocess(data, how)
    torch.testing.assert_close(pieces.x, whole.x)
    torch.testing.assert_close(pieces.x_test, whole.x_test)


def test_preprocessing_leaves_the_original_the_targets_and_the_type():
    x = torch.rand(8, 3)
    data, before = Dataset(x, torch.eye(8)), x.clone()
    result = preprocess(data, "center")
    assert result.x.dtype == torch.float32
    assert result.y is data.y
    assert result.classes
    assert torch.equal(data.x, before)


def test_tokens_are_not_preprocessed():
    text = Dataset(TOKENS, TOKENS, vocabulary=12)
    assert preprocess(text, "standardize") is text


def test_an_unknown_preprocessing_is_refused():
    with pytest.raises(InputError, match="'whiten': use one of none, center"):
        preprocess(dataset(X), "whiten")


# The linear problem


@pytest.mark.parametrize(("n", "d", "power"), [(256, 64, 1.0), (40, 40, 2.0), (30, 7, 0.0), (5, 1, 1.0)])
def test_linear_has_the_closed_forms_of_theorem_3_2(n, d, power):
    problem = linear_problem(n, d, power)
    covariance = problem.x.T @ problem.x / n
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance)[::-1], np.arange(1, d + 1) ** -power, atol=1e-12)
    np.testing.assert_allclose(problem.spectrum, np.arange(1, d + 1) ** -power)
    assert problem.k_op == 1
    assert np.linalg.norm(problem.x, 2) ** 2 / n == pytest.approx(1)
    norms = np.linalg.norm(problem.x, axis=1) ** 2
    assert problem.gamma == pytest.approx(norms.max())
    assert norms.mean() == pytest.approx(problem.spectrum.sum())
    moment = problem.x.T @ (norms[:, None] * problem.x) / n
    assert np.linalg.eigvalsh(problem.gamma * covariance - moment).min() > -1e-10  # eq. 3.1
    np.testing.assert_allclose(problem.x @ problem.w_bar, problem.y)


def test_linear_is_drawn_from_its_seed():
    one, again, other = linear_problem(seed=1), linear_problem(seed=1), linear_problem(seed=2)
    assert np.array_equal(one.x, again.x)
    assert np.array_equal(one.y, again.y)
    assert not np.allclose(one.x, other.x)


def test_linear_is_loaded_as_it_is_made():
    data = load("linear(n=64, d=16, power=2, seed=3)", preprocessing="none", dtype="float64")
    problem = linear_problem(64, 16, 2.0, 3)
    assert np.array_equal(data.x.numpy(), problem.x)
    assert np.array_equal(data.y.numpy(), problem.y[:, None])
    assert (data.n, data.n_test, data.outputs, data.classes) == (64, 0, 1, False)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("linear(m=3)", "option m, which linear does not: the options are n, d, power, seed"),
        ("linear(n=1.5)", "n=1.5: give a whole number"),
        ("linear(d=True)", "d=True: give a whole number"),
        ("linear(power='steep')", "power='steep': give a number"),
        ("linear(n=8, d=9)", "n=8 and d=9"),
        ("linear(d=0)", "at least one feature"),
        ("linear(power=-1)", "power=-1.0"),
        ("linear(power=1e999)", "power=inf"),
        ("linear(seed=-1)", "seed=-1"),
        ("linear(n=size)", "is not known"),
        ("linear(64)", "is not known"),
        ("linear(n=1", "is not known"),
        ("digits(n=3)", "option n, which digits does not: write its name alone"),
    ],
)
def test_impossible_options_are_refused(name, complaint):
    with pytest.raises(InputError, match=complaint.replace("(", r"\(")):
        load(name)


# Names, subsets, types


def test_an_unknown_name_is_answered_with_the_names():
    with pytest.raises(InputError, match="'mnits' is not known") as caught:
        load("mnits")
    assert all(name in str(caught.value) for name in (*NAMES, "module:function"))


def test_digits_are_split_once_and_for_all():
    data = load("digits", preprocessing="none")
    assert (data.n, data.n_test, data.input_shape, data.outputs, data.classes) == (1437, 360, (1, 8, 8), 10, True)
    assert (data.x.min(), data.x.max()) == (0, 1)
    assert data.x.dtype == data.y.dtype == torch.float32
    everything = torch.cat([data.x, data.x_test]).flatten(1)
    from sklearn.datasets import load_digits

    original = load_digits()
    rows = sorted(zip((everything * 16).tolist(), torch.cat([data.y, data.y_test]).argmax(1).tolist(), strict=True))
    assert rows == sorted(zip(original.data.tolist(), original.target.tolist(), strict=True))
    for y in (data.y, data.y_test):
        assert y.mean(0) == pytest.approx(0.1, abs=0.03)


def test_subsets_are_fixed_nested_and_balanced():
    whole = load("digits", preprocessing="none")
    large = load("digits", preprocessing="none", n_train=700)
    small = load("digits", preprocessing="none", n_train=300)
    position = {tuple(row.tolist()): i for i, row in enumerate(whole.x.flatten(1))}
    assert len(position) == whole.n
    of_large, of_small = ([position[tuple(row.tolist())] for row in data.x.flatten(1)] for data in (large, small))
    assert of_small == sorted(of_small)
    assert set(of_small) < set(of_large)
    assert torch.equal(small.y, whole.y[of_small])
    assert small.y.mean(0) == pytest.approx(0.1, abs=0.06)
    loading._load.cache_clear()
    assert torch.equal(load("digits", preprocessing="none", n_train=300).x, small.x)


@pytest.mark.parametrize(
    ("n_train", "n_test", "sizes"),
    [(None, None, (1437, 360)), (100, None, (100, 100)), (1000, None, (1000, 360)), (9, 200, (9, 200)), (9, 0, (9, 0))],
)
def test_sizes(n_train, n_test, sizes):
    data = load("digits", n_train=n_train, n_test=n_test)
    assert (data.n, data.n_test) == sizes
    assert (data.x_test is None) == (data.n_test == 0)


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        ({"n_train": 1438}, "n_train=1438, but digits has 1437 train samples: give 1 to 1437"),
        ({"n_train": 0}, "n_train=0"),
        ({"n_test": 361}, "n_test=361, but digits has 360 test samples"),
        ({"n_test": -1}, "n_test=-1"),
    ],
)
def test_impossible_sizes_are_refused(sizes, complaint):
    with pytest.raises(InputError, match=complaint):
        load("digits", **sizes)


def test_preprocessing_is_fitted_on_the_samples_in_use():
    data = load("digits", n_train=50)
    assert data.x.double().mean(0).abs().max() < 1e-6
    assert data.x.double().square().mean().item() == pytest.approx(1, abs=1e-6)


def test_float64_is_not_float32_in_disguise():
    double, single = load("digits", dtype="float64"), load("digits")
    assert double.x.dtype == double.y.dtype == double.x_test.dtype == torch.float64
    assert double.x.mean(0).abs().max() < 1e-15
    torch.testing.assert_close(double.x.float(), single.x, atol=0, rtol=0)


def test_an_unknown_type_is_refused():
    with pytest.raises(InputError, match="'float16': use one of float32, float64"):
        load("digits", dtype="float16")


def test_what_was_loaded_is_remembered(shelf, monkeypatch):
    data = load("linear")
    assert load("linear") is data
    assert load("linear", dtype="float64") is not data
    monkeypatch.setenv("RAYSAT_DATA", "elsewhere")
    assert load("linear") is not data


# A user's loader


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module for the test and return its name."""
    name = tmp_path.name

    def write(text):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    sys.modules.pop(name, None)


def test_a_users_loader_is_called(module):
    name = module(
        "import torch\nfrom raysat.data import Dataset\n"
        "def sorted_by_class(n=100):\n"
        "    y = torch.eye(2)[(torch.arange(n) >= n // 2).long()]\n"
        "    return Dataset(x=torch.arange(n).float()[:, None], y=y)\n"
    )
    data = load(f"{name}:sorted_by_class", n_train=40, preprocessing="none")
    assert (data.n, data.n_test, data.classes) == (40, 0, True)
    assert 10 < data.y[:, 0].sum() < 30
    assert torch.equal(data.y[:, 1], (data.x[:, 0] >= 50).float())


@pytest.mark.parametrize(
    ("text", "function", "complaint"),
    [
        ("", "load", "has no function load"),
        ("load = 3", "load", "has no function load"),
        ("def load(): return [1]", "load", "returned list"),
        ("def load(path): return path", "load", "needs arguments"),
    ],
)
def test_what_is_not_a_loader_is_refused(module, text, function, complaint):
    name = module(text)
    with pytest.raises(InputError, match=complaint) as caught:
        load(f"{name}:{function}")
    assert f"{name}:{function}" in str(caught.value)


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"the module not_there, .* put not_there\.py"):
        load("not_there:load")


def test_an_error_inside_a_users_module_is_the_users(module):
    name = module("import certainly_not_installed")
    with pytest.raises(ModuleNotFoundError, match="certainly_not_installed"):
        load(f"{name}:load")


# Formats, from fabricated files


def test_mnist_is_read_from_idx_files(shelf, monkeypatch):
    contents = mnist_contents()
    put(shelf, "mnist", publish(monkeypatch, "mnist", contents))
    data = load("mnist", preprocessing="none")
    assert data.x.shape == (20, 1, 28, 28)
    assert data.x_test.shape == (8, 1, 28, 28)
    pixels = np.frombuffer(gzip.decompress(contents[0]), np.uint8)[16:]
    np.testing.assert_allclose(data.x.numpy().ravel() * 255, pixels, rtol=1e-6)
    assert data.y.argmax(1).tolist() == [k % 10 for k in range(20)]
    assert data.classes


def test_a_file_that_is_not_idx_is_refused(shelf, monkeypatch):
    contents = [gzip.compress(b"nothing of the kind"), *mnist_contents()[1:]]
    put(shelf, "mnist", publish(monkeypatch, "mnist", contents))
    with pytest.raises(InputError, match="idx"):
        load("mnist")


def test_cifar10_is_read_from_pickled_batches(shelf, monkeypatch):
    contents = cifar_contents()
    put(shelf, "cifar10", publish(monkeypatch, "cifar10", contents))
    data = load("cifar10", preprocessing="none")
    assert (data.n, data.n_test, data.input_shape) == (15, 3, (3, 32, 32))
    batches = [pickle.loads(content) for content in contents]
    rows = np.concatenate([batch[b"data"] for batch in batches[:5]])
    np.testing.assert_allclose(data.x[:, 1, 2, 5].numpy() * 255, rows[:, 1024 + 2 * 32 + 5], rtol=1e-6)
    assert data.y.argmax(1).tolist() == [label for batch in batches[:5] for label in batch[b"labels"]]
    assert data.y_test.argmax(1).tolist() == batches[5][b"labels"]


def test_the_globals_of_the_original_pickles_are_admitted(shelf, monkeypatch):
    contents = [content.replace(b"cnumpy._core.", b"cnumpy.core.") for content in cifar_contents()]
    assert b"cnumpy.core.multiarray\n" in contents[0]
    put(shelf, "cifar10", publish(monkeypatch, "cifar10", contents))
    assert load("cifar10").n == 15


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_calls_something_is_refused(shelf, monkeypatch, tmp_path):
    trap = tmp_path / "trap"
    contents = [pickle.dumps({b"data": Malicious(str(trap))}, protocol=3), *cifar_contents()[1:]]
    put(shelf, "cifar10", publish(monkeypatch, "cifar10", contents))
    with pytest.raises(InputError, match=r"asks for \w+\.mkdir"):
        load("cifar10")
    assert not trap.exists()


def test_svhn_is_read_from_matlab_files(shelf, monkeypatch):
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8), np.array([[1], [10], [9], [5]])
    file = io.BytesIO()
    savemat(file, {"X": images, "y": labels})
    put(shelf, "svhn", publish(monkeypatch, "svhn", [file.getvalue(), file.getvalue()]))
    data = load("svhn", preprocessing="none")
    assert data.x.shape == (4, 3, 32, 32)
    assert data.x.is_contiguous()
    np.testing.assert_allclose(data.x[2, 1].numpy() * 255, images[:, :, 1, 2], rtol=1e-6)
    assert data.y.argmax(1).tolist() == [1, 0, 9, 5]


def test_text_becomes_windows_and_their_successors(shelf, monkeypatch):
    text = "".join("dbca"[k % 7 % 4] for k in range(6000))
    put(shelf, "tinyshakespeare", publish(monkeypatch, "tinyshakespeare", [text.encode()]))
    data = load("tinyshakespeare", preprocessing="standardize")
    assert (data.x.shape, data.y.shape) == ((21, 256), (21, 256))  # floor(5399 / 256)
    assert (data.x_test.shape, data.outputs) == ((2, 256), 4)
    letters = np.array(list("abcd"))
    assert "".join(letters[data.x.ravel()]) == text[: 21 * 256]
    assert "".join(letters[data.y.ravel()]) == text[1 : 21 * 256 + 1]
    assert "".join(letters[data.x_test.ravel()]) == text[5400 : 5400 + 512]
    assert load("tinyshakespeare", n_train=5, dtype="float64").x.dtype == torch.int64


# Finding, verifying, downloading


def test_a_wrong_digest_is_refused(shelf, monkeypatch):
    files = publish(monkeypatch, "tinyshakespeare", [b"to be"])
    put(shelf, "tinyshakespeare", {"input.txt": b"or not"})
    with pytest.raises(InputError, match="remove the file") as caught:
        load("tinyshakespeare")
    for part in (shelf / "tinyshakespeare" / "input.txt", sha256(b"to be"), sha256(b"or not")):
        assert (part.hexdigest() if hasattr(part, "hexdigest") else str(part)) in str(caught.value)
    assert list(files) == ["input.txt"]


def test_a_corrupt_cache_is_refused(cache, monkeypatch):
    publish(monkeypatch, "tinyshakespeare", [b"to be"])
    put(cache, "tinyshakespeare", {"input.txt": b"or not"})
    with pytest.raises(InputError, match=str(cache)):
        load("tinyshakespeare")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn", "tinyshakespeare"])
def test_offline_one_sentence_says_what_is_missing_and_where(name, cache, shelf):
    source = sources.SOURCES[name]
    with pytest.raises(InputError, match=r"\(ConnectionError\)") as caught:
        load(name)
    message = str(caught.value)
    assert all(part in message for part in (*source.files, str(shelf), str(cache), source.address, "RAYSAT_DATA"))
    assert message.endswith(".")
    assert "\n" not in message
    assert caught.value.__suppress_context__
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_file_is_downloaded_once(cache, monkeypatch):
    files = publish(monkeypatch, "mnist", mnist_contents())
    address = sources.SOURCES["mnist"].address
    serve(monkeypatch, {address + file: content for file, content in files.items()})
    first = load("mnist")
    assert sorted(path.name for path in (cache / "mnist").iterdir()) == sorted(files)
    serve(monkeypatch, {})
    loading._load.cache_clear()
    assert torch.equal(load("mnist").x, first.x)


def test_only_what_is_missing_is_downloaded(cache, shelf, monkeypatch):
    files = publish(monkeypatch, "mnist", mnist_contents())
    *there, missing = files
    put(shelf, "mnist", {file: files[file] for file in there})
    serve(monkeypatch, {sources.SOURCES["mnist"].address + missing: files[missing]})
    assert load("mnist").n == 20
    assert [path.name for path in (cache / "mnist").iterdir()] == [missing]


def test_a_download_of_other_content_is_thrown_away(cache, monkeypatch):
    publish(monkeypatch, "tinyshakespeare", [b"to be"])
    serve(monkeypatch, {sources.SOURCES["tinyshakespeare"].address + "input.txt": b"<html>please log in</html>"})
    with pytest.raises(InputError, match="wrong digest"):
        load("tinyshakespeare")
    assert not list((cache / "tinyshakespeare").iterdir())


def test_an_archive_gives_the_named_members_and_nothing_else(cache, monkeypatch):
    files = publish(monkeypatch, "cifar10", cifar_contents())
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in {"../../escaped": b"!", "cifar-10-batches-py/readme.html": b"", **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    source = replace(sources.SOURCES["cifar10"], archive=f"sha256:{sha256(packed.getvalue()).hexdigest()}")
    monkeypatch.setitem(sources.SOURCES, "cifar10", source)
    serve(monkeypatch, {source.address: packed.getvalue()})
    assert load("cifar10").n == 15
    left = {str(path.relative_to(cache / "cifar10")) for path in cache.rglob("*") if path.is_file()}
    assert left == set(files)
    assert not list(cache.parent.rglob("escaped"))


def test_a_broken_archive_ends_in_a_sentence(cache, monkeypatch):
    packed = b"not an archive"
    source = replace(sources.SOURCES["cifar10"], archive=f"sha256:{sha256(packed).hexdigest()}")
    monkeypatch.setitem(sources.SOURCES, "cifar10", source)
    serve(monkeypatch, {source.address: packed})
    with pytest.raises(InputError, match=r"\(ReadError\)"):
        load("cifar10")
    assert not list((cache / "cifar10").iterdir())


# The real data sets, where they are at hand


@pytest.fixture
def real(monkeypatch):
    """Use the folder of data that the tests were started with, if it has a data set."""

    def use(name):
        if not DATA or not os.path.isdir(os.path.join(DATA, name)):
            pytest.skip(f"RAYSAT_DATA names no folder that has {name}")
        monkeypatch.setenv("RAYSAT_DATA", DATA)

    return use


def test_real_mnist(real):
    real("mnist")
    data = load("mnist")
    assert (data.n, data.n_test, data.input_shape, data.outputs, data.classes) == (60000, 10000, (1, 28, 28), 10, True)
    assert data.y[:5].argmax(1).tolist() == [5, 0, 4, 1, 9]
    assert data.y.sum(0)[:2].tolist() == [5923, 6742]
    pixels = load("mnist", preprocessing="none", n_train=10000)
    assert pixels.x.mean().item() == pytest.approx(0.1307, abs=2e-3)


def test_real_cifar10(real):
    real("cifar10")
    data = load("cifar10", preprocessing="none", n_train=5000)
    assert (data.n, data.n_test, data.input_shape) == (5000, 5000, (3, 32, 32))
    assert data.x.mean((0, 2, 3)).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-3)
    assert data.y.sum(0) == pytest.approx(500, abs=80)


def test_real_svhn(real):
    real("svhn")
    data = load("svhn", preprocessing="none")
    assert (data.n, data.n_test, data.input_shape) == (73257, 26032, (3, 32, 32))


def test_real_tinyshakespeare(real):
    real("tinyshakespeare")
    data = load("tinyshakespeare")
    assert (data.n, data.n_test, data.input_shape, data.outputs) == (3921, 435, (256,), 65)
    assert data.x.max() == 64
    assert torch.equal(data.x[1:, 0], data.y[:-1, -1])
