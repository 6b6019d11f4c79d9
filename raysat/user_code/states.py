"""The global state of a process: of Python, of the operating system, of NumPy and of PyTorch.

Each state can be read, as a value that can be compared, and written. `raysat.user_code.process` records and restores.
"""

from __future__ import annotations

import decimal
import gc
import locale
import logging
import math
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from itertools import chain
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import _tensor_str, multiprocessing, overrides
from torch._C import _autograd
from torch.utils import _python_dispatch as dispatch

from raysat.user_code import libraries

try:
    import resource
except ImportError:  # not a Unix
    resource = None

SEARCH_PATH, ENVIRONMENT, LIBRARIES = "sys.path", "environment variables", "parts of torch, numpy, Python and raysat"


class State(NamedTuple):
    """One global state of a process.

    Attributes:
        name: Its name in messages.
        read: Returns its value.
        write: Sets it to a value that was read.
    """

    name: str
    read: Callable[[], object]
    write: Callable[[Any], object]


Pair = tuple[Callable[[], object], Callable[[Any], object]]
"""The functions that read and set a value."""


class _Itself(NamedTuple):
    """An object compared by identity, because its own `__eq__` may say anything, and its content."""

    number: int
    content: object
    one: list

    @classmethod
    def of(cls, value: object, content: object = None) -> _Itself:
        return cls(id(value), content, [value])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and (self.number, self.content) == (other.number, other.content)

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # as of any class that is mutable

    @property
    def value(self) -> Any:
        return self.one[0]


@cache
def states() -> tuple[State, ...]:
    """All states, in the order in which they are restored."""
    groups = _of_torch(), _of_numpy(), _of_python(), _of_the_system()
    return (*chain(*groups), State("random generators", generators, set_generators))


def _flags(name: str, pairs: Iterable[Pair]) -> State:
    """Make one state of several values that belong together."""
    pairs = tuple(pairs)

    def write(before: Iterable[object]) -> None:
        for (_, set_one), value in zip(pairs, before, strict=True):
            set_one(value)

    return State(name, lambda: tuple(read() for read, _ in pairs), write)


def _attributes(owner: object, *names: str) -> list[Pair]:
    """The reader and setter of each of some attributes that the object has; their values are plain."""
    return [(partial(getattr, owner, name), partial(setattr, owner, name)) for name in names if hasattr(owner, name)]


def _object(owner: ModuleType, name: str) -> State:
    """Make a state of an attribute's object; for a list also of its content, which is restored in the same list."""

    def read() -> _Itself:
        value = getattr(owner, name)
        return _Itself.of(value, tuple(value) if isinstance(value, list) else None)

    def write(before: _Itself) -> None:
        if before.content is not None:
            before.value[:] = before.content
        setattr(owner, name, before.value)

    return State(f"{owner.__name__}.{name}", read, write)


def _content(name: str, content: dict) -> State:
    """Make a state of the content of a dictionary that itself is never replaced."""

    def write(before: Mapping) -> None:
        content.clear()
        content.update(before)

    return State(name, lambda: dict(content), write)


def _of_torch() -> Iterator[State]:
    backends, cuda = torch.backends, torch.backends.cuda
    yield State("default device", _default_device, torch.set_default_device)
    yield State("modes of torch", _modes, _set_modes)
    yield State("what autograd keeps", _saving, _set_saving)
    yield State("default dtype", torch.get_default_dtype, torch.set_default_dtype)
    yield State("inference mode", torch.is_inference_mode_enabled, lambda _: None)  # only its owner can leave it
    yield State("grad mode", torch.is_grad_enabled, torch.set_grad_enabled)
    yield State("threads", torch.get_num_threads, torch.set_num_threads)
    yield State("threads between operations", torch.get_num_interop_threads, torch.set_num_interop_threads)
    yield State("deterministic algorithms", torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode)
    yield _flags("new memory", _attributes(torch.utils.deterministic, "fill_uninitialized_memory"))
    yield State("precision of products", lambda: tuple(value for _, value in _precisions()), _set_precisions)
    kernels = _attributes(backends.cudnn, "enabled", "benchmark", "deterministic", "benchmark_limit")
    kernels += _attributes(backends.mkldnn, "enabled", "deterministic")
    kernels += _attributes(backends.opt_einsum, "enabled", "strategy")
    for name in ("flash", "mem_efficient", "math", "cudnn"):
        kernels.append((getattr(cuda, f"{name}_sdp_enabled"), getattr(cuda, f"enable_{name}_sdp")))
    yield _flags("kernels", [*kernels, (backends.mha.get_fastpath_enabled, backends.mha.set_fastpath_enabled)])
    yield State("numbers close to zero", _are_flushed, torch.set_flush_denormal)
    autocast: list[Pair] = [(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled)]
    for kind in ("cpu", "cuda"):
        autocast.append((partial(torch.is_autocast_enabled, kind), partial(torch.set_autocast_enabled, kind)))
        autocast.append((partial(torch.get_autocast_dtype, kind), partial(torch.set_autocast_dtype, kind)))
    yield _flags("autocast", autocast)
    yield State(
        "anomaly detection",
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda before: torch.set_anomaly_enabled(*before),
    )
    yield State("warnings of torch", torch.is_warn_always_enabled, torch.set_warn_always)
    yield State("GPU", lambda: torch.cuda.is_initialized() and torch.cuda.current_device(), torch.cuda.set_device)
    for name, hooks in vars(torch.nn.modules.module).items():
        if name.startswith("_global_") and isinstance(hooks, dict):
            yield _content(f"hooks of all modules ({name})", hooks)
    yield _content("printing of tensors", vars(_tensor_str.PRINT_OPTS))
    yield State("memory of processes", multiprocessing.get_sharing_strategy, multiprocessing.set_sharing_strategy)
    started = partial(multiprocessing.get_start_method, allow_none=True)
    yield State("start of processes", started, partial(multiprocessing.set_start_method, force=True))
    yield State(LIBRARIES, libraries.read, libraries.write)


def _default_device() -> object:
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return context and context.device


def _modes() -> tuple[list, list]:
    """Return the modes that were entered and not left, such as `torch.device("meta")`."""
    return (
        list(map(_Itself.of, overrides._get_current_function_mode_stack())),
        list(map(_Itself.of, dispatch._get_current_dispatch_mode_stack())),
    )


def _set_modes(before: tuple[list, list]) -> None:
    for stack, now, modes in zip((overrides, dispatch), _modes(), before, strict=True):
        for _ in now:
            stack._pop_mode()
        for mode in modes:
            stack._push_mode(mode.value)


def _saving() -> list:
    """Return the hooks of saved tensors that were entered and not left; popping and pushing them is the only way."""
    found = []
    while pair := _autograd._top_saved_tensors_default_hooks(True):
        found.insert(0, [_Itself.of(hook) for hook in pair])
        _autograd._pop_saved_tensors_default_hooks()
    for pair in found:
        _autograd._push_saved_tensors_default_hooks(*(hook.value for hook in pair))
    return found


def _set_saving(before: list) -> None:
    for _ in _saving():
        _autograd._pop_saved_tensors_default_hooks()
    for pair in before:
        _autograd._push_saved_tensors_default_hooks(*(hook.value for hook in pair))


def _precisions() -> list[tuple[Callable[[Any], object], object]]:
    """The precision settings of matrix products and convolutions: the setter of each, and its value.

    They are in an order in which setting one does not change those before it.
    """
    backends: Any = torch.backends  # since PyTorch 2.9 it has attributes that it does not declare
    matmul, cudnn, mkldnn = backends.cuda.matmul, backends.cudnn, backends.mkldnn
    names = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    places = [(matmul, name) for name in (*names, "allow_fp16_accumulation")]
    places += [(matmul, "allow_tf32"), (cudnn, "allow_tf32")]
    if hasattr(backends, "fp32_precision"):  # PyTorch 2.9 and newer
        owners = backends, cudnn, mkldnn, matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn
        places += [(owner, "fp32_precision") for owner in owners]
    first = torch.set_float32_matmul_precision, _said(torch.get_float32_matmul_precision)
    return [first, *((partial(setattr, *place), _said(partial(getattr, *place))) for place in places)]


def _said(read: Callable[[], object]) -> object:
    """Read a value; None if it does not exist, or if an older setting cannot express the value of a newer one."""
    try:
        return read()
    except (RuntimeError, AttributeError):
        return None


def _set_precisions(before: tuple) -> None:
    for k, value in enumerate(before):
        write, now = _precisions()[k]
        if value is not None and (now != value or k == 0):  # the first sets some of those behind it
            write(value)


def _are_flushed() -> bool:
    """Return whether this thread flushes subnormal numbers to zero."""
    return math.fabs(sys.float_info.min) / 2 == 0


def _of_numpy() -> Iterator[State]:
    yield State("errors of NumPy", np.geterr, lambda before: np.seterr(**before))
    yield State("calls on errors of NumPy", np.geterrcall, np.seterrcall)
    yield State("printing of arrays", np.get_printoptions, lambda before: np.set_printoptions(**before))


def generators() -> tuple:
    """Return the states of the generators of Python, NumPy and PyTorch."""
    legacy: Any = np.random.get_state()  # a tuple, or on request a dictionary
    name, keys, *rest = legacy
    graphics = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    drawn = tuple(state.numpy().tobytes() for state in (torch.get_rng_state(), *graphics))
    return random.getstate(), (name, keys.tobytes(), *rest), drawn


def set_generators(before: tuple) -> None:
    """Restore the states of the generators."""
    python, (name, keys, *rest), drawn = before
    random.setstate(python)
    np.random.set_state((name, np.frombuffer(keys, np.uint32), *rest))
    processor, *graphics = (torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in drawn)
    torch.set_rng_state(processor)
    for device, state in enumerate(graphics):
        torch.cuda.set_rng_state(state, device)


def _of_python() -> Iterator[State]:
    yield _object(sys, "path")
    for name in ("argv", "stdin", "stdout", "stderr", "displayhook", "excepthook", "unraisablehook"):
        yield _object(sys, name)
    yield _object(threading, "excepthook")
    yield State("tracing", sys.gettrace, sys.settrace)
    yield State("profiling", sys.getprofile, sys.setprofile)
    yield State("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit)
    yield State("digits of integers", sys.get_int_max_str_digits, sys.set_int_max_str_digits)
    yield State("switching of threads", sys.getswitchinterval, sys.setswitchinterval)
    yield State("garbage collection", gc.isenabled, lambda on: gc.enable() if on else gc.disable())
    yield State("times of garbage collection", gc.get_threshold, lambda before: gc.set_threshold(*before))
    yield State("warnings", lambda: (tuple(warnings.filters), _Itself.of(warnings.showwarning)), _set_warnings)
    yield State("logging", _logging, _set_logging)
    yield State("decimal numbers", _decimal, _set_decimal)
    all_of_it = partial(locale.setlocale, locale.LC_ALL)
    yield State("locale", all_of_it, all_of_it)
    yield _object(tempfile, "tempdir")
    yield State("patience of sockets", socket.getdefaulttimeout, socket.setdefaulttimeout)


def _set_warnings(before: tuple) -> None:
    warnings.resetwarnings()  # invalidates Python's cache of filters, which the assignment below would not
    filters: Any = warnings.filters  # a list
    filters[:] = before[0]
    warnings.showwarning = before[1].value


def _logging() -> tuple:
    """The settings of the root logger and of raysat's: handlers, level, and whether they are active and propagate."""
    known = list(logging.root.manager.loggerDict.items())
    ours = [one for name, one in known if isinstance(one, logging.Logger) and name.partition(".")[0] == "raysat"]
    said = [
        (_Itself.of(one, tuple(map(id, one.handlers))), tuple(one.handlers), one.level, one.disabled, one.propagate)
        for one in (logging.root, *ours)
    ]
    return logging.root.manager.disable, *said


def _set_logging(before: tuple) -> None:
    logging.disable(before[0])
    for logger, handlers, level, disabled, propagate in before[1:]:
        logger.value.handlers[:] = handlers
        logger.value.setLevel(level)
        logger.value.disabled, logger.value.propagate = disabled, propagate


def _decimal() -> tuple:
    one = decimal.getcontext()
    raised = [tuple(kind for kind, on in of.items() if on) for of in (one.flags, one.traps)]
    return one.prec, one.rounding, one.Emin, one.Emax, one.capitals, one.clamp, *raised


def _set_decimal(before: tuple) -> None:
    *plain, flags, traps = before
    decimal.setcontext(decimal.Context(*plain, flags=list(flags), traps=list(traps)))


def _of_the_system() -> Iterator[State]:
    yield State("working folder", os.getcwd, os.chdir)
    yield State(ENVIRONMENT, lambda: dict(os.environ), _set_environment)
    yield State("umask", _umask, os.umask)
    yield State("signals", _handlers, _set_handlers)
    if hasattr(signal, "setitimer"):
        yield State("alarms", _rings, _silence)
    if hasattr(os, "sched_getaffinity"):
        cores = partial(os.sched_getaffinity, 0), partial(os.sched_setaffinity, 0)
        yield State("cores", *cores)
    if resource is not None:
        yield State("priority", lambda: os.getpriority(os.PRIO_PROCESS, 0), partial(os.setpriority, os.PRIO_PROCESS, 0))
        for name in dir(resource):
            if name.startswith("RLIMIT_"):
                limit = getattr(resource, name)
                yield State(name, partial(resource.getrlimit, limit), partial(resource.setrlimit, limit))


def _rings() -> bool:
    """Return whether an alarm is set; its remaining time is no state, since it changes by itself."""
    return signal.getitimer(signal.ITIMER_REAL)[0] > 0


def _silence(before: object) -> None:
    if not before:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _set_environment(before: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)
    if hasattr(time, "tzset"):
        time.tzset()


def _umask() -> int:
    with suppress(OSError, StopIteration), open("/proc/self/status") as lines:
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)  # the only other way to read it; other threads' files are briefly this user's alone
    os.umask(mask)
    return mask


_SIGNALS = ("INT", "TERM", "HUP", "QUIT", "ABRT", "ALRM", "CHLD", "CONT", "PIPE", "TSTP", "USR1", "USR2", "XCPU")


def _handlers() -> dict[str, Any]:
    """Return the signal handlers; none outside the main thread, which alone may set them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    names = [name for name in (f"SIG{name}" for name in _SIGNALS) if hasattr(signal, name)]
    return {name: signal.getsignal(getattr(signal, name)) for name in names}


def _set_handlers(before: Mapping[str, Any]) -> None:
    for name, handler in before.items():
        if _handlers()[name] != handler:
            signal.signal(getattr(signal, name), handler)
