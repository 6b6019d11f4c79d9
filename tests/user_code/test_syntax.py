"""The digest of what a function reaches: what moves it, and what does not."""

import pytest

from raysat.user_code.syntax import digest, digests

MAIN = '''
"""A module."""
import logging

import torch
from torch import nn

import my_helper
from my_package.layers import Layer as Middle

log = logging.getLogger(__name__)
DEPTH, WIDTH = 2, 3
LATER: int = DEPTH


class Net(nn.Module):
    """A network."""

    def forward(self, x):
        for module in self.modules():
            module.eval()
        return my_helper.act(x) * LATER


def build(width, input_shape, outputs):
    import my_inner

    return nn.Sequential(Net(), Middle(), my_inner.last())


def unrelated():
    return WIDTH
'''
TEXTS = {
    "my_main": MAIN,
    "my_helper": (
        "try:\n    import my_fast as fast\nexcept ImportError:\n    fast = None\n\n"
        "def act(x):\n    return fast.run(x)\n\ndef other():\n    return 1\n"
    ),
    "my_fast": "def run(x):\n    return x\n\ndef walk(x):\n    return x\n",
    "my_package": "",
    "my_package.layers": "from . import base\n\nclass Layer(base.Base):\n    size = 3\n",
    "my_package.base": (
        "import torch\nfrom .layers import Layer\n\nclass Base(torch.nn.Module):\n    pass\n\nclass Else:\n    pass\n"
    ),
    "my_inner": "import torch\n\ndef last():\n    return torch.nn.Identity()\n",
}


def found(deep=True, **changed):
    texts = TEXTS | {name.replace("__", "."): text for name, text in changed.items()}
    return digests(["my_main:build"], texts, {"my_package"}, deep=deep)


def moved(**changed):
    before, after = found(), found(**changed)
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("my_main", "\nclass Net", "\n# a comment\nclass Net"),
        ("my_main", '"""A network."""', '"""Something\n    else."""'),
        ("my_main", "my_helper.act(x) * LATER", "(\n            my_helper.act(x)\n            * LATER\n        )"),
        ("my_main", "    return WIDTH", "    return WIDTH + unrelated()"),
        ("my_main", "from torch import nn\n", "import math\nfrom torch import Tensor, nn\n"),
        ("my_main", "\nlog =", "\nfrom my_inner import last as unused\n\nSIZE = 3\n\nlog ="),
        ("my_main", "def unrelated", "class Other(Net):\n    pass\n\ndef b():\n    return Other()\n\ndef unrelated"),
        ("my_main", "    return WIDTH\n", "    return WIDTH\n\nif __name__ == '__main__':\n    print(build(1, 2))\n"),
        ("my_helper", "return 1", "return 2"),
        ("my_fast", "def walk(x):\n    return x", "def walk(x):\n    return 2 * x"),
        ("my_package__base", "class Else:\n    pass", "class Else:\n    size = 4"),
    ],
)  # fmt: skip
def test_what_does_not_count(module, old, new):
    text = TEXTS[module.replace("__", ".")]
    assert old in text
    assert moved(**{module: text.replace(old, new)}) == set()


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("my_main", "DEPTH, WIDTH = 2, 3", "DEPTH, WIDTH = 3, 3"),  # through another constant
        ("my_main", "self.modules()", "self.children()"),
        ("my_main", "log = logging.getLogger(__name__)", "log = logging.getLogger('other')"),  # it acts
        ("my_main", "import torch\n", "import torch\n\ntorch.manual_seed(1)\n"),
        ("my_main", "import my_helper", "import my_inner as my_helper"),
        ("my_main", "Net(), Middle()", "Middle(), Net()"),
        ("my_helper", "fast.run(x)", "fast.walk(x)"),
        ("my_helper", "fast = None", "fast = my_inner"),
        ("my_fast", "def run(x):\n    return x", "def run(x):\n    return -x"),  # under a name bound in `try`
        ("my_package", "", "REGISTRY.clear()\n"),
        ("my_package__layers", "size = 3", "size = 4"),
        ("my_package__base", "pass\n\nclass Else", "size = 4\n\nclass Else"),
        ("my_inner", "Identity", "ReLU"),
        ("my_main", "def build(", "@torch.no_grad()\ndef build("),
    ],
)
def test_what_counts(module, old, new):
    text = TEXTS[module.replace("__", ".")]
    assert old in text
    assert module.replace("__", ".") in moved(**{module: text.replace(old, new, 1)})


def test_imports_inside_of_functions_are_known_only_in_depth():
    assert set(found(deep=True)) - set(found(deep=False)) == {"my_inner"}
    assert found(deep=False)["my_main"] == found()["my_main"]


@pytest.mark.parametrize(
    "looked_up",
    [
        "globals()['unrela' + 'ted']()",
        "eval('unrelated()')",
        "__import__('sys').modules[__name__].unrelated()",
        "Net.__subclasses__()",
    ],
)
def test_where_names_are_looked_up_all_of_the_module_counts(looked_up):
    main = MAIN.replace("    import my_inner\n", f"    import my_inner\n    {looked_up}\n")
    changed = main.replace("return WIDTH", "return -WIDTH")
    assert found(my_main=main)["my_main"] != found(my_main=changed)["my_main"]


@pytest.mark.parametrize("used", ["getattr(my_helper, 'a' + 'ct')(x)", "my_helper.__dict__['act'](x)", "my_helper"])
def test_of_a_module_that_is_used_as_an_object_all_counts(used):
    main = MAIN.replace("my_helper.act(x)", used)
    changed = TEXTS["my_helper"].replace("return 1", "return 2")
    assert found(my_main=main)["my_helper"] != found(my_main=main, my_helper=changed)["my_helper"]


def test_a_class_that_registers_itself_counts():
    registry = (
        "class Net(nn.Module):\n    kinds = []\n\n    def __init_subclass__(cls):\n        Net.kinds.append(cls)\n"
    )
    main = MAIN.replace("class Net(nn.Module):\n", registry)
    more = main.replace("def unrelated", "class More(Net):\n    pass\n\n\ndef unrelated")
    assert found(my_main=main)["my_main"] != found(my_main=more)["my_main"]


def test_what_python_cannot_read_counts_as_it_is():
    assert digest("def (") != digest("def ((")
    assert digest("x = 1  # one") == digest("x = 1")


@pytest.mark.parametrize(
    ("main", "other"),
    [
        ("def late():\n    global h\n    import my_late as h\n\ndef build():\n    late()\n    return h.f()\n", ""),
        ("def late():\n    global f\n    from my_late import f\n\ndef build():\n    late()\n    return f()\n", ""),
        ("class Net:\n    import my_late as h\n    def g(self):\n        return self.h.f()\n\nbuild = Net\n", ""),
        (
            "import importlib\n\ndef build():\n    return one() + two()\n\ndef one():\n    import my_late\n"
            "    return my_late.g()\n\ndef two():\n    return importlib.import_module('my_' + 'late').f()\n",
            "",
        ),
        ("def build():\n    return PARTS['f' + 'g']()\n\ndef fg():\n    return 1\n\nPARTS = locals()\n", "fg"),
        ("def build():\n    return build.__globals__['f' + 'g']()\n\ndef fg():\n    return 1\n", "fg"),
        ("from sys import modules\n\ndef build():\n    return modules[__name__]\n\ndef fg():\n    return 1\n", "fg"),
    ],
)
def test_names_that_come_from_elsewhere_than_where_they_are_used_count(main, other):
    late = "def f():\n    return 1\n\ndef g():\n    return 1\n"
    texts = {"my_main": main, "my_late": late}
    assert main.count("return 1") == bool(other)
    changed = {name: text.replace("return 1", "return 2") for name, text in texts.items()}
    assert digests(["my_main:build"], texts, (), deep=True) != digests(["my_main:build"], changed, (), deep=True)


@pytest.mark.parametrize(
    "texts",
    [
        {"my_main": "from my_names import *\ndef build():\n    return A()\n", "my_names": "from my_layers import A\n"},
        {"my_main": "from my_names import *\ndef build():\n    return l.A()\n", "my_names": "import my_layers as l\n"},
        {"my_main": "from my_names import *\ndef build():\n    return A()\n", "my_names": "from my_layers import *\n"},
        {
            "my_main": "import my_names\ndef build():\n    return getattr(my_names, 'A')()\n",
            "my_names": "from my_layers import A\n",
        },
    ],
)
def test_of_a_module_that_counts_as_a_whole_its_imports_do_too(texts):
    layers = "class A:\n    size = 1\n"
    before = digests(["my_main:build"], {**texts, "my_layers": layers}, (), deep=False)
    after = digests(["my_main:build"], {**texts, "my_layers": layers.replace("1", "2")}, (), deep=False)
    assert {name for name in before if before[name] != after[name]} == {"my_layers"}
