"""Prices of devices: which texts are prices, and whose they are."""

import math

import pytest

from raysat import InputError, Sweep, fixed, mlp
from raysat.spec.prices import as_prices, from_words, price_of

VALID = {
    **{"name": "s", "dataset": "digits", "models": [mlp(1)], "widths": [4], "batch_sizes": [1]},
    **{"stepsizes": [fixed(0.1)], "iterations": 3},
}


def test_a_file_has_a_line_for_each_device(tmp_path):
    (tmp_path / "prices.yaml").write_text("H200: 3.5   # a comment\ncpu: 0.05\n")
    expected = (("H200", 3.5), ("cpu", 0.05))
    assert as_prices("prices", str(tmp_path / "prices.yaml")) == expected
    assert from_words("--prices", [str(tmp_path / "prices.yaml")]) == expected
    assert from_words("--prices", ["cpu=0.05", "H200=3.5"]) == expected
    assert Sweep(**VALID, prices={"cpu": 0.05, "H200": 3.5}).prices == expected
    assert Sweep(**VALID, prices=[["cpu", 0.05], ["H200", 3.5]]).prices == expected  # as JSON keeps it


def test_the_longest_name_in_a_devices_own_is_its_price():
    prices = as_prices("prices", {"A100": 1.0, "a100-sxm4-80gb": 2.0, "cpu": 0.1})
    assert price_of(prices, "NVIDIA A100-SXM4-80GB") == 2.0
    assert price_of(prices, "NVIDIA A100-PCIE-40GB") == 1.0
    assert price_of(prices, "cpu") == 0.1
    assert math.isnan(price_of(prices, "NVIDIA H200"))
    assert math.isnan(price_of(prices, None))


def test_prices_change_no_id():
    plain, priced = (Sweep(**VALID, prices=prices).cells(64, 0) for prices in ((), {"cpu": 1}))
    assert [cell.cell_id for cell in plain] == [cell.cell_id for cell in priced]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"H200": 0}, "positive"),
        ({"H200": "3"}, "positive"),
        ({"H200": math.inf}, "positive"),
        ({"": 1.0}, "name devices by text"),
        ({3: 1.0}, "name devices by text"),
        (3.5, "give prices of a device-hour by device"),
        (["H200"], "give prices of a device-hour by device"),
        ("none.yaml", "cannot be read as YAML"),
    ],
)
def test_what_are_no_prices_is_refused_in_a_sentence(given, words):
    with pytest.raises(InputError, match=words) as caught:
        Sweep(**VALID, prices=given)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    for text in ("- H200\n", "H200\n", "{\n", "H200: dear\n"):
        (tmp_path / "prices.yaml").write_text(text)
        with pytest.raises(InputError):
            as_prices("prices", str(tmp_path / "prices.yaml"))
