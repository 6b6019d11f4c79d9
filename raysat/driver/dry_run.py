"""The dry run: the cells that a sweep would run, and their cost."""

from __future__ import annotations

import os

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from raysat.driver.plan import Plan, network_of
from raysat.losses import resolve
from raysat.sgd import cost
from raysat.spec.cells import Cell
from raysat.text import duration
from raysat.trial.job import load_dataset


def show_cost(laid_out: Plan, finished: set[str], console: Console) -> None:
    """Print the cells, the operations of each, and about how long the whole sweep would take here."""
    sweep = laid_out.sweep
    dataset = load_dataset(laid_out.cells[0].init)
    torch.set_num_threads(sweep.cpus_per_trial)
    step_times: dict[tuple, cost.StepTime] = {}
    for cell in laid_out.cells:
        if (key := _timing_key(cell)) not in step_times:
            engine = sweep.engine if cell.training.is_plain else "autograd"  # on which the other trainings are built
            network = network_of(cell.init, dataset)
            step_times[key] = cost.calibrate(network, dataset.x, dataset.y, resolve(sweep.loss), engine)
    title = f"{sweep.name}: {len(laid_out.cells)} cells, {len(finished)} finished; {sweep.budget}"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column("model", overflow="fold")
    for name in ("width", "b", "T", "cells", "steps", "evaluations", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    groups: dict[tuple, list[Cell]] = {}
    for cell in sorted(laid_out.cells, key=lambda cell: (cell.init.width, cell.batch_size, cell.iterations)):
        key = cell.init.model, cell.init.width, cell.batch_size, cell.iterations
        groups.setdefault(key, []).append(cell)
    steps = evaluations = seconds = hours = 0.0
    for (model, width, batch_size, iterations), cells in groups.items():
        flops = laid_out.flops[model, width]
        table.add_row(
            *(model.label, str(width), f"{batch_size:,}", f"{iterations:,}", str(len(cells))),
            *(f"{flops.of_steps(cells[0]):.1e}", f"{flops.of_evaluations(cells[0]):.1e}"),
            duration(max(step_times[_timing_key(cell)].seconds(cell) for cell in cells)),
        )
        left = [cell for cell in cells if cell.cell_id not in finished]
        steps += sum(map(flops.of_steps, left))
        evaluations += sum(map(flops.of_evaluations, left))
        seconds += sum(step_times[_timing_key(cell)].seconds(cell) for cell in left)
        hours += sum(cost.gpu_hours(cell, flops) for cell in left)
    console.print(table)
    workers = max(1, (os.cpu_count() or 1) // sweep.cpus_per_trial)
    console.print(
        "Steps and evaluations, in floating-point operations, and time are of one cell.\n"
        f"To be done: {steps:.2e} floating-point operations in steps, {evaluations:.2e} in evaluations.\n"
        f"About {duration(seconds / workers)} with {workers} trials at a time on this machine "
        f"({sweep.cpus_per_trial} thread{'s' * (sweep.cpus_per_trial > 1)} each), from a calibration of a few steps.\n"
        f"About {hours:.2g} hours of one H100-class GPU, assuming {cost.GPU_RATE:.1e} operations a second and "
        f"{1e3 * cost.GPU_LAUNCH:g} ms to launch a step. The statistics at initialization are not counted."
    )
    if sweep.races and any(stepsize.policy.startswith("grid") for stepsize in sweep.stepsizes):
        console.print("Trials race to the target: those that cannot be the best are cut, and it takes less.")
    if sweep.adaptive:
        console.print("The sweep is adaptive: of these batch sizes it runs as many as it takes to know b_N.")
    if any(stepsize.policy == "grid_auto" for stepsize in sweep.stepsizes):
        console.print("grid(auto=True) starts with these stepsizes, and adds some until the best of them lies inside.")


def _timing_key(cell: Cell) -> tuple:
    """Return the key of all that the time of a cell's steps depends on."""
    return cell.init.model, cell.init.width, cell.training.is_plain
