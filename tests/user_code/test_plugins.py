import sys

import pytest

from raysat import InputError
from raysat.user_code import plugins
from raysat.user_code.plugins import Source


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
    with pytest.raises(InputError, match=r"put plug_main.py next to"):
        plugins.resolve("plug_main:load")
    plugins.install(sources)
    assert plugins.resolve("plug_main:load")() == 6


def test_other_sources_replace_the_ones_before(folder):
    plugins.install({"plug_main": Source("def load():\n    return 1\n")})
    assert plugins.resolve("plug_main:load")() == 1
    plugins.install({"plug_main": Source("def load():\n    return 2\n")})
    assert plugins.resolve("plug_main:load")() == 2
    plugins.install({})
    with pytest.raises(InputError):
        plugins.resolve("plug_main:load")


def test_a_traceback_shows_the_users_line(folder):
    import traceback

    plugins.install({"plug_main": Source("def load():\n    return 1 / 0  # here\n")})
    try:
        plugins.resolve("plug_main:load")()
    except ZeroDivisionError:
        assert "return 1 / 0  # here" in traceback.format_exc()


def test_the_digest_is_that_of_the_text():
    assert plugins.digest({}) == ""
    x, y = Source("x", "/somewhere/a.py"), Source("y")
    one = plugins.digest({"a": x, "b": y})
    assert one == plugins.digest({"b": y, "a": Source("x", "/elsewhere/a.py")})
    assert len({one, plugins.digest({"a": y, "b": x}), plugins.digest({"a": x})}) == 3


def test_a_sweep_without_own_modules_carries_nothing(folder):
    (folder / "unrelated.py").write_text("")
    assert plugins.gather(folder, []) == {}


@pytest.mark.parametrize(
    ("text", "words"), [("x = 1\n", "has no function load"), ("import nothing_like_it\n", "nothing_like_it.*fix it")]
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


def test_a_module_finds_what_lies_beside_it_by_its_own_path(folder):
    (folder / "plug_numbers.txt").write_text("3")
    text = "from pathlib import Path\nHERE = Path(__file__).parent\ndef load():\n"
    (folder / "plug_main.py").write_text(f"{text}    return int((HERE / 'plug_numbers.txt').read_text())\n")
    sources = plugins.gather(folder, ["plug_main:load"])
    forget(folder)
    plugins.install(sources)
    assert plugins.resolve("plug_main:load")() == 3


def test_a_file_that_stayed_behind_is_one_sentence(folder):
    text = "from pathlib import Path\nHERE = Path(__file__).parent\ndef load():\n"
    text += "    return (HERE / 'data' / 'x.npz').read_bytes()\n"
    plugins.install({"plug_main": Source(text, "/nowhere/home/me/plug_main.py")})
    load = plugins.resolve("plug_main:load")
    said = r"reads a file of /nowhere/home/me, which is not on .*put them where"
    with pytest.raises(InputError, match=said), plugins.explained("plug_main:load"):
        load()
    with pytest.raises(FileNotFoundError), plugins.explained("plug_main:load"):
        (folder / "another").read_text()


def test_what_is_imported_from_another_folder_travels_and_nothing_else_of_it(folder):
    src, beside = folder / "project" / "src", folder / "sweeps"
    (src / "plug_pkg" / "parts").mkdir(parents=True)
    beside.mkdir()
    (src / "plug_pkg" / "__init__.py").write_text("")
    (src / "plug_pkg" / "parts" / "deep.py").write_text("factor = 5\n")  # of a package without a file
    (src / "plug_pkg" / "models.py").write_text(
        "from .parts import deep\nimport json, torch\ndef build():\n    return deep.factor\n"
    )
    (src / "plug_unrelated.py").write_text("")
    sys.path.insert(0, str(src))
    import plug_unrelated  # noqa: F401

    sources = plugins.gather(beside, ["plug_pkg.models:build"])
    assert set(sources) == {"plug_pkg", "plug_pkg.models", "plug_pkg.parts.deep"}
    sys.path[:] = [path for path in sys.path if not path.startswith(str(folder))]
    for name in [name for name in sys.modules if name.startswith("plug_pkg")]:
        del sys.modules[name]
    away = {name: Source(source.text, source.path.replace(str(folder), "/nowhere")) for name, source in sources.items()}
    plugins.install(away)
    assert plugins.resolve("plug_pkg.models:build")() == 5
