from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from raysat import InputError, communication, sweep
from raysat.analysis import analyze, load
from raysat.communication import Verdict, Work, prediction, verdict, work_of
from raysat.sgd import allreduce
from raysat.sgd.allreduce import Link, Measurement

WORK = Work(n_inf=100, b_n=64, launch=1e-3, sample=1e-4, size=4_000_000, largest=60_000)
FAST, SLOW = Link(alpha=1e-5, bandwidth=1e10), Link(alpha=1e-3, bandwidth=1e8)


def test_time_cost_and_speed_up_are_their_formulas():
    table = prediction(WORK, SLOW, [1, 4, 256], b=128)
    assert table["workers"].tolist() == [1, 4]  # of 256 workers some would have no sample
    iterations = 100 * (1 + 64 / 128)
    alone = iterations * (1e-3 + 128 * 1e-4)
    reduced = 6 * (1e-3 + 1e6 / 1e8)
    four = iterations * (1e-3 + 32 * 1e-4 + reduced)
    assert table["iterations"].tolist() == [iterations] * 2
    assert table["seconds"].tolist() == pytest.approx([alone, four])
    assert table["speed_up"].tolist() == pytest.approx([1, alone / four])
    assert table["efficiency"].tolist() == pytest.approx([1, alone / four / 4])
    assert table["cost"].tolist() == pytest.approx([alone, 4 * four])
    assert table["communication"].tolist() == pytest.approx([0, reduced / (four / iterations)])


@pytest.mark.parametrize("link", [FAST, SLOW])
@pytest.mark.parametrize("p", [1, 8, 4096])
def test_the_best_batch_is_the_best_of_all(link, p):
    candidates = np.geomspace(p, WORK.largest, 2000)
    best = candidates[np.argmin([WORK.seconds(b, p, link) for b in candidates])]
    assert WORK.best_batch(p, link) == pytest.approx(best, rel=0.02)


def test_the_frontier_is_what_nothing_beats():
    for link in (FAST, SLOW, Link(1.0, 1e3)):
        table = prediction(replace(WORK, price=7.2), link, [2**k for k in range(12)])
        rows = list(zip(table["seconds"], table["cost"], table["frontier"], strict=True))
        for seconds, cost, best in rows:
            beaten = any(t <= seconds and c <= cost and (t, c) != (seconds, cost) for t, c, _ in rows)
            assert best is not beaten
        assert table["money"].tolist() == pytest.approx([7.2 / 3600 * cost for cost in table["cost"]])
    assert table["frontier"].tolist() == [True] + [False] * 11  # beside so slow a link one worker is best
    said = communication.frontier(table, WORK)
    assert said.startswith("Time against cost, from the cheapest to the fastest: 1 with b = 25.3 take ")
    assert said.endswith(" worker-seconds. No other number is better.")


def test_prices_are_of_the_devices_that_trials_had(tables):
    trials, curves = tables
    gpus = trials.assign(device="NVIDIA H200", gpus=0.5)
    assert work_of(gpus, curves, [1.0], (("H200", 3.0),)).price == 1.5
    assert np.isnan(work_of(gpus, curves, [1.0]).price)
    with pytest.raises(InputError, match="prices have none for NVIDIA H200: add"):
        work_of(gpus, curves, [1.0], (("A100", 3.0),))
    mixed = gpus.assign(device=np.where(gpus["batch_size"] > 4, "NVIDIA H200", "NVIDIA A100"))
    with pytest.raises(InputError, match="devices of several prices"):
        work_of(mixed, curves, [1.0], (("A100", 1.0), ("H200", 3.0)))


def test_what_a_workers_memory_holds_is_read_from_the_micro_batches(tables):
    trials, curves = tables
    assert "holds every batch that was run, up to 64, at a time" in work_of(trials, curves, [1.0]).memory
    parted = trials.assign(micro_batch=trials["batch_size"].clip(upper=16))
    assert "holds 16 samples at a time" in work_of(parted, curves, [1.0]).memory


def test_where_it_stops_paying():
    """One worker's efficiency is 1 by definition; with a costly link the second worker may lose at once."""
    powers = [2**k for k in range(12)]
    fast, slow = (prediction(WORK, link, powers) for link in (FAST, SLOW))
    told = verdict(fast)
    assert (fast.loc[fast["workers"] <= told.worth, "efficiency"] >= 0.5).all()
    assert fast.loc[fast["workers"] == 2 * told.worth, "efficiency"].item() < 0.5
    assert fast["seconds"].min() == fast.loc[fast["workers"] == told.fastest, "seconds"].item()
    assert verdict(slow).worth < told.worth
    never = prediction(WORK, Link(1.0, 1e3), powers)
    assert verdict(never) == Verdict(fastest=1, worth=1)


SWEEP = """
from raysat import Sweep, mlp, grid
sweep = Sweep(name="few", dataset="digits", n_train=64, n_test=0, widths=[8, 16], batch_sizes=[1, 4, 16, 64],
              models=[mlp(1)], stepsizes=[grid([1, 200], relative=True)], iterations=60, targets=[1.0])
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    (folder / "few.py").write_text(SWEEP)
    assert sweep.main([str(folder / "few.py"), "--results", str(folder), "--inline", "--quiet"]) == 0
    return folder / "few"


@pytest.fixture
def tables(results):
    """Trials whose seconds an iteration are `1e-3 + b 1e-4` where they count, and absurd in all others.

    Others are of the smaller width, have diverged, or are here made of them: of momentum, and of asynchronous learners.
    """
    _, trials, curves = load(results)
    counts = (trials["width"] == 16) & (trials["status"] == "completed")
    trials["steps_per_second"] = 1 / np.where(counts, 1e-3 + trials["batch_size"] * 1e-4, 50.0)
    rows, points = [trials], [curves]
    for training, learners in (("momentum 0.9", 1), ("2 learners random", 2)):
        other = {"training": training, "learners": learners, "steps_per_second": 0.02}
        rows.append(trials.assign(cell_id=training + trials["cell_id"], **other))
        points.append(curves.assign(cell_id=training + curves["cell_id"]))
    return pd.concat(rows, ignore_index=True), pd.concat(points, ignore_index=True)


@pytest.mark.slow
def test_a_sweeps_work_is_that_of_its_best_evidence(tables):
    """The grid, of plain SGD, at the largest width, and of its trials those that did not diverge."""
    trials, curves = tables
    assert set(trials.loc[trials["eta_beta"] > 10, "status"]) == {"diverged"}
    work = work_of(trials, curves, [1.0])
    assert (work.launch, work.sample) == (pytest.approx(1e-3), pytest.approx(1e-4))
    assert (work.size, work.largest) == (4 * (64 * 16 + 16 * 10), 64)
    fits = analyze(trials, curves, [1.0]).fits.query("quantity == 'b_N' and width == 16 and tuning == 'free'")
    (fit,) = fits[fits["training"] == "sgd"].to_dict("records")
    assert (work.b_n, work.n_inf) == (fit["value"], fit["asymptote"])
    for word in ("digits", "mlp", "width 16", "grid_relative (free)", "L <= 1"):
        assert word in work.source


def test_the_recorded_targets_decide(tables):
    trials, curves = tables
    one, other = (work_of(trials, curves, [target]) for target in (1.0, 0.8))
    assert one.n_inf < other.n_inf
    assert "L <= 0.8" in other.source


def test_a_sweep_without_b_n_is_refused(tables):
    trials, curves = tables
    with pytest.raises(InputError, match="no b_N yet"):
        work_of(trials, curves, [1e-9])
    with pytest.raises(InputError, match="at least two batch sizes"):
        work_of(trials.assign(steps_per_second=float("nan")), curves, [1.0])


def test_the_command_says_what_it_took_and_what_it_assumes(results, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    files = [str(tmp_path / f"{p}.json") for p in (2, 8)]
    for p, file in zip((2, 8), files, strict=True):
        times = [Measurement(size, p, SLOW.seconds(size, p)) for size in (1000, 10**6)]
        allreduce.write(tmp_path / f"{p}.json", times)
        assert file.endswith(f"{p}.json")
    assert communication.main([str(results), "--measured", *files, "--workers", "8"]) == 0
    said = capsys.readouterr().out
    assert "From: digits" in said
    assert "width 16" in said
    assert "L <= 1" in said
    assert "alpha = 1e+03 µs, 0.1 GB/s, from 4 times between 2 and 8 ranks, each within a factor of 1;" in said
    assert communication.ASSUMPTIONS in said
    assert "Fastest with" in said
    assert (results / "figures" / "communication.png").stat().st_size > 0
    assert len(pd.read_parquet(results / "communication.parquet")) == 4
    assert "A worker's memory holds every batch that was run" in said
    assert "money" not in said
    priced = [str(results), "--measured", *files, "--workers", "8", "--prices"]
    assert communication.main([*priced, "cpu=0.5"]) == 0
    said = capsys.readouterr().out
    assert "Time against cost at 0.5 an hour of a worker, from the cheapest to the fastest: 1 with b = " in said
    assert "money" in said
    for words, reason in (("H200=1", "have none for cpu"), ("cpu=dear", "NAME=PRICE"), ("no.yaml", "cannot be read")):
        assert communication.main([*priced, words]) == 2
        assert reason in capsys.readouterr().err
    assert communication.main([str(results), "--measured", str(tmp_path / "none.json")]) == 2
    assert "none.json has no measured all-reduces" in capsys.readouterr().err


def test_the_figure_has_a_line_for_each_batch_and_the_best():
    drawn = communication.figure(replace(WORK, source="mnist, here"), FAST, [1, 2, 4, 8], [16, 64])
    left, right = drawn.axes
    assert [line.get_label() for line in right.lines] == ["b = 16", "b = 64", "best b of each p"]
    base = WORK.seconds(WORK.best_batch(1, FAST), 1, FAST)
    expected = [base / WORK.seconds(64, p, FAST) for p in (1, 2, 4, 8)]
    assert left.lines[1].get_ydata() == pytest.approx(expected)
    caption = " ".join(drawn.get_supxlabel().split())
    assert communication.ASSUMPTIONS in caption
    assert caption.startswith("mnist, here")
