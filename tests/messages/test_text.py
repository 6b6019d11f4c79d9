"""Text and numbers from elsewhere: whatever they are, what is stored and shown is bounded, valid and in words."""

import math
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysat.messages.expendable import expendable
from raysat.messages.failures import by_cause, cause, named, said, traced
from raysat.text import LINE, LONGEST, STORED, duration, line, number, percent, plain, shown

ANY_TEXT = st.text(st.characters(), max_size=60)  # lone surrogates, NUL and all


@given(ANY_TEXT)
def test_any_text_becomes_one_that_files_and_terminals_take_and_stays_as_it_is_then(text):
    once = plain(text)
    assert once.encode("utf-8").decode("utf-8") == once
    assert all(one.isprintable() or one in "\n\t\xa0" or ord(one) > 127 for one in once)
    assert "\x1b" not in once
    assert "\0" not in once
    assert plain(once) == once


@given(st.text("ab\n", min_size=1, max_size=40), st.integers(1, 5_000))
def test_what_is_too_long_keeps_its_ends_and_says_how_much_is_missing(part, times):
    text = part * times
    short = plain(text, LINE)
    assert len(short) <= LINE
    if len(text) <= LINE:
        assert short == text
    else:
        head, left_out, tail = short.split(" ... ")
        assert text.startswith(head)
        assert text.endswith(tail)
        assert len(head) + int(left_out.split()[0].replace(",", "")) + len(tail) == len(text)


def test_what_was_cut_before_still_counts():
    assert "100,000,000 characters" in line(plain("x" * (100_000_000 + LINE - 52)))


def test_ordinary_text_stays_as_it_is():
    text = 'Träger „b“, λ = 5, ½ ‖Kv - λv‖, 日本語, naïve\n\tFile "a.py", line 3\n'
    assert plain(text) == text


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")

    __repr__ = __str__


class NoText(Exception):
    def __str__(self):
        return 7


class Words(str):
    def splitlines(self, *_):
        raise ValueError("not to be split")


class InWordsOfItsOwn(Exception):
    def __str__(self):
        return Words("own words")


class Leaving(Exception):
    def __str__(self):
        sys.exit(3)


class Unnamed(type):
    @property
    def __name__(cls):
        raise ValueError("nameless")


class OfUnnamed(Exception, metaclass=Unnamed):
    pass


class OddSyntax(SyntaxError):
    lineno = offset = text = filename = property(lambda self: 1 / 0)


def with_causes(count):
    error = None
    for k in range(count):
        another = ValueError(str(k))
        another.__cause__ = error
        error = another
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("bad \udcff"), r"ValueError: bad \udcff"),
        (ValueError("nul \0 and \x1b[31mred"), r"ValueError: nul \x00 and \x1b[31mred"),
        (ValueError("[bold]x[/] [/nope] \\"), "ValueError: [bold]x[/] [/nope] \\"),
        (ValueError("x" * 10_000_000), "characters left out"),
        (ValueError(), "ValueError"),
        (Mute(), "Mute"),
        (NoText(), "NoText"),
        (InWordsOfItsOwn(), "InWordsOfItsOwn: own words"),
        (Leaving(), "Leaving"),
        (OfUnnamed("n"), "OfUnnamed: n"),
        (OddSyntax("odd"), "OddSyntax"),
        (SystemExit(3), "SystemExit: 3"),
        (ExceptionGroup("several", [ValueError("one"), TypeError("two")]), "TypeError: two"),
        (with_causes(3_000), "ValueError: 2999"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__qualname__,
)
def test_any_error_is_text_of_bounded_length_that_says_what_it_is(error, words):
    try:
        raise error
    except BaseException as caught:
        text, short, sentence = traced(caught), said(caught), named(caught)
    assert type(text) is str
    assert max(map(len, (text, short, sentence))) <= STORED
    assert len(text) <= LONGEST + 20
    assert (text + short + sentence).encode()
    assert "\n" not in short + sentence
    assert words in cause(text)
    assert words.partition(":")[0] in sentence or isinstance(error, ExceptionGroup)
    assert len(by_cause([("a", text), ("b", text)])) == 1


@given(
    st.one_of(
        st.floats(),
        st.integers(),
        st.none(),
        st.floats(width=32, allow_subnormal=False).map(np.float32),
        st.just(pd.NA),
    )
)
def test_any_number_is_printed_or_a_dash(value):
    text = number(value)
    assert len(text) <= 20
    if value is None or value is pd.NA or math.isnan(value):
        assert text == "-"
    elif not math.isinf(value) and abs(value) < np.float32(1e30):
        assert float(text.replace(",", "")) == pytest.approx(value, rel=5.1e-3, abs=5e-324)
    assert percent(value).endswith(" %") or percent(value).startswith("a factor of ")
    assert duration(value)


def test_values_are_shown_whatever_their_repr_does():
    assert shown(10**5000) == "<int>"  # Python refuses to write it
    assert shown(Mute()) == "<Mute>"
    assert len(shown("x" * 1_000_000)) <= LINE
    assert shown("a\nb\udcff") == r"'a\nb\udcff'"


def test_the_words_of_a_warning_are_bounded_and_escaped():
    with expendable():
        said = warnings.formatwarning("odd \udcff \x1b[31m" + "x" * 100_000, UserWarning, "a.py", 3)
    assert r"odd \udcff \x1b[31m" in said
    assert len(said) < 2 * LONGEST
