import sys

import pytest

from raysat import InputError, plugins


@pytest.fixture
def folder(tmp_path):
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    plugins.install({})
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def forget(folder):
    """As on another machine: neither the files nor the modules are there."""
    sys.path.remove(str(folder))
    for name in ("plug_main", "plug_helper"):
        sys.modules.pop(name, None)


def test_sources_travel_with_what_they_import(folder):
    (folder / "plug_helper.py").write_text("factor = 3\n")
    (folder / "plug_main.py").write_text("import plug_helper\ndef load():\n    return 2 * plug_helper.factor\n")
    sources = plugins.gather(folder, ["plug_main:load"])
    assert set(sources) == {"plug_main", "plug_helper"}
    forget(folder)
    with pytest.raises(InputError, match=r"put plug_main.py beside"):
        plugins.resolve("plug_main:load")
    plugins.install(sources)
    assert plugins.resolve("plug_main:load")() == 6


def test_other_sources_replace_the_ones_before(folder):
    plugins.install({"plug_main": "def load():\n    return 1\n"})
    assert plugins.resolve("plug_main:load")() == 1
    plugins.install({"plug_main": "def load():\n    return 2\n"})
    assert plugins.resolve("plug_main:load")() == 2
    plugins.install({})
    with pytest.raises(InputError):
        plugins.resolve("plug_main:load")


def test_a_traceback_shows_the_users_line(folder):
    import traceback

    plugins.install({"plug_main": "def load():\n    return 1 / 0  # here\n"})
    try:
        plugins.resolve("plug_main:load")()
    except ZeroDivisionError:
        assert "return 1 / 0  # here" in traceback.format_exc()


def test_the_digest_is_that_of_the_text():
    assert plugins.digest({}) == ""
    one = plugins.digest({"a": "x", "b": "y"})
    assert one == plugins.digest({"b": "y", "a": "x"})
    assert len({one, plugins.digest({"a": "y", "b": "x"}), plugins.digest({"a": "x"})}) == 3


def test_a_sweep_without_own_modules_carries_nothing(folder):
    (folder / "unrelated.py").write_text("")
    assert plugins.gather(folder, []) == {}


@pytest.mark.parametrize(
    ("text", "words"), [("x = 1\n", "has no function load"), ("import nothing_like_it\n", "nothing_like_it.*mend it")]
)
def test_what_cannot_be_imported_is_named(folder, text, words):
    (folder / "plug_main.py").write_text(text)
    with pytest.raises(InputError, match=words):
        plugins.gather(folder, ["plug_main:load"])


def test_packages_travel_and_an_environment_in_the_folder_does_not(folder):
    (folder / "plug_package").mkdir()
    (folder / "plug_package" / "__init__.py").write_text("from plug_package.inner import load\n")
    (folder / "plug_package" / "inner.py").write_text("import plug_other\ndef load():\n    return 4\n")
    environment = folder / ".venv" / "site-packages"
    environment.mkdir(parents=True)
    (environment / "plug_other.py").write_text("")
    sys.path.append(str(environment))
    sources = plugins.gather(folder, ["plug_package:load"])
    assert set(sources) == {"plug_package", "plug_package.inner"}
    sys.path.remove(str(folder))
    plugins.install(sources)
    assert plugins.resolve("plug_package:load")() == 4
