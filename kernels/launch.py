"""The one place through which every kernel is launched, so that launches can be counted, watched, only compiled or made
again; and the one place that reaches into Triton.

A `Tape` keeps what is launched while it records, and what is called through `also`. `play` does all of it again on the
same memory: without Triton's search for the compiled kernel, and without a line of the launchers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from inspect import Parameter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from triton import knobs
from triton.runtime.driver import driver
from triton.runtime.errors import OutOfResources
from triton.runtime.jit import JITFunction

Run = Callable[[Any, str, tuple[int, ...], tuple[Any, ...], dict[str, Any]], Any]


def _on_device(kernel: Any, label: str, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """What Triton compiled; None in the interpreter."""
    try:
        if not isinstance(kernel, JITFunction):
            with np.errstate(all="ignore"):  # the interpreter is NumPy, and NaN a result like any other
                return kernel[grid](*args, **options)
        with on_card(args[0]):
            return kernel[grid](*args, **options)
    except OutOfResources as error:
        raise RuntimeError(
            f"{kernel.__name__} {label}".rstrip() + f" needs {error.required} of {error.name}, and this GPU has "
            f'{error.limit}: use backend="torch", or precision="bfloat16", which takes less'
        ) from error


run: Run = _on_device
"""What a launch does; `through` puts another function here."""


@contextmanager
def through(instead: Run) -> Iterator[Run]:
    """Inside, every launch is given to `instead`. Yields what a launch did before, for `instead` to call if it likes.

    It holds for the whole process, so one thread at a time.
    """
    global run  # noqa: PLW0603  the one place through which kernels are launched
    before, run = run, instead
    try:
        yield before
    finally:
        run = before


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, label: str = "", **options: Any) -> None:
    """Runs `kernel` on `grid` programs; the label tells launches of one kernel apart in reports.

    The first argument is a tensor, on whose device it runs. Multiply-add fusion is on, whatever a Triton version's
    default is.
    """
    options["enable_fp_fusion"] = True
    made = run(kernel, label, grid, args, options)
    tape = _here.tape
    if tape is not None:
        tape.append(_again(kernel, label, grid, args, options, made))


def also(function: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Calls a function of PyTorch's that writes into tensors which are there, between launches."""
    function(*args, **options)
    if _here.tape is not None:
        _here.tape.append(_Call(None, 0, 0, partial(function, *args, **options)))


def needs_a_gpu() -> bool:
    """Whether launches run, and not in Triton's interpreter."""
    return run is _on_device and not knobs.runtime.interpret


# Devices. -------------------------------------------------------------------------------------------------------------

_AS_IT_IS = nullcontext()


def on_card(x: Tensor) -> AbstractContextManager[Any]:
    """With a tensor's GPU as the current one, which Triton launches on; nothing to do where it is, or for a CPU's."""
    device = x.device
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _AS_IT_IS
    return torch.cuda.device(device)


def stream_of(device: torch.device) -> int:
    """The handle of a device's current stream; 0 for a CPU."""
    if device.type != "cuda":
        return 0
    active: Any = driver.active
    return active.get_current_stream(device.index)


class _Here(threading.local):
    """Of each thread: the list of what is launched, where one is kept, and the counters that launches take."""

    tape: list[_Call] | None = None
    counters: dict[Hashable, Tensor] | None = None


_here = _Here()


@contextmanager
def counters_of(kept: dict[Hashable, Tensor]) -> Iterator[None]:
    """Inside, launches count in what `kept` holds and in nothing else. A CUDA graph and a tape have counters of their
    own, as they may run beside launches of another stream."""
    before, _here.counters = _here.counters, kept
    try:
        yield
    finally:
        _here.counters = before


def counters(common: dict[Hashable, Tensor], device: torch.device, count: int) -> Tensor:
    """So many zeros, int32, for launches that come one behind the other and leave them zero: a stream's own.

    `common` keeps those of all streams, but for what a user's own CUDA graph captures: its replays go on any stream.
    """
    own = _here.counters
    if own is None and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    kept, key = (common, (device, count, stream_of(device))) if own is None else (own, (device, count))
    if key not in kept:
        kept[key] = torch.zeros(count, dtype=torch.int32, device=device)
    return kept[key]


# Launches again. ------------------------------------------------------------------------------------------------------


class _Call(NamedTuple):
    """A compiled kernel's launch, as Triton makes it; or, without a kernel, a function that is called."""

    launch: Callable[..., None] | None
    programs: int
    function: int  # the driver's handle
    rest: Any  # what follows it, or what is called


def _again(
    kernel: Any, label: str, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any], made: Any
) -> _Call:
    """A launch that was just made, for another time on the same memory."""
    if hasattr(made, "result"):
        made = made.result()  # it was compiled aside
    if made is None:  # the interpreter
        return _Call(None, 0, 0, partial(run, kernel, label, grid, args, options))
    try:
        named = dict(zip(kernel.arg_names, args, strict=False)) | options
        rest = [_address(named[name] if name in named else _default(kernel, name)) for name in kernel.arg_names]
        # as `JITFunction.run` of Triton 3.6 to 3.9 has it, but for the hooks of profilers, see `can_be_taped`
        return _Call(made.run, grid[0], made.function, (made.packed_metadata, None, None, None, *rest))
    except (AttributeError, KeyError):  # a Triton that has it otherwise
        return _Call(None, 0, 0, partial(run, kernel, label, grid, args, options))


def _address(value: Any) -> Any:
    return value.data_ptr() if isinstance(value, Tensor) else value


def _default(kernel: Any, name: str) -> Any:
    value = kernel.signature.parameters[name].default
    if value is Parameter.empty:
        raise KeyError(name)
    return value


def can_be_taped() -> bool:
    """Whether launches are made and nobody watches them."""
    runtime = knobs.runtime
    hooks = runtime.launch_enter_hook, runtime.launch_exit_hook
    return run is _on_device and not any(getattr(hook, "calls", hook) for hook in hooks)


class Tape:
    """Launches and calls in their order, and the memory that they work on.

    `play` makes them again, on the current stream. The memory is the same every time, so whoever calls it sees to it
    that one is over before another begins.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._calls: list[_Call] = []
        self._counters: dict[Hashable, Tensor] = {}
        # what is freed between launches may serve later ones again, but nobody else, as long as this lives
        self._pool = torch.cuda.MemPool() if device.type == "cuda" else None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, all launches of this thread are made and kept; memory is the tape's."""
        assert _here.tape is None, "a tape within a tape"
        _here.tape = self._calls
        pool = nullcontext() if self._pool is None else torch.cuda.use_mem_pool(self._pool, self.device)
        try:
            with pool, counters_of(self._counters):
                yield
        finally:
            _here.tape = None

    @property
    def bytes(self) -> int:
        """Of the pool."""
        return 0 if self._pool is None else sum(segment["total_size"] for segment in self._pool.snapshot())

    def play(self) -> None:
        """All launches and calls again."""
        stream = stream_of(self.device)
        for launch, programs, function, rest in self._calls:
            if launch is None:
                rest()
            else:
                launch(programs, 1, 1, stream, function, *rest)
