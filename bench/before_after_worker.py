"""One checkout's side of `before_after`: times meta-steps when asked to. `python -m bench.before_after_worker`.

Of fastmeta it uses `MAML`, `FOMAML`, `Reptile` and `SGD` alone, which every commit has; networks and data come from a
file. Requests are lines of JSON on standard input, answers lines of JSON on standard output, which nothing else uses.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastmeta

from .records import describe_error
from .timing import block_seconds

CLASSES = {"maml": "MAML", "fomaml": "FOMAML", "reptile": "Reptile"}


def prepare(case: dict[str, Any], *, algorithm: str, compile: bool, device: str) -> Callable[[], Any]:
    """One meta-step, which leaves its gradient in the parameters of `case["model"]`."""
    model = case["model"].to(device)
    learner = getattr(fastmeta, CLASSES[algorithm])(
        model, inner_loss=case["loss"], inner_optimizer=fastmeta.SGD(lr=case["lr"]), inner_steps=case["steps"],
        compile=compile,
    )  # fmt: skip
    # Reptile needs no query set
    batch = [x.to(device) for x in case["batch"][: 2 if algorithm == "reptile" else 4]]

    def step() -> None:
        model.zero_grad()
        learner(*batch).loss.backward()

    return step


class Worker:
    """Answers requests: `open` a case, then `time` it as often as wanted."""

    def __init__(self) -> None:
        self.step: Callable[[], Any] = lambda: None
        self.wait: Callable[[], Any] = lambda: None

    def open(self, *, file: str, gradient: str, algorithm: str, compile: bool, device: str) -> dict[str, Any]:
        """Seconds of the first call, and of the shorter of two more; the meta-gradient is left in a file."""
        torch._dynamo.reset()
        gc.collect()
        case = torch.load(file, weights_only=False)
        if device == "cuda":
            self.wait = torch.cuda.synchronize
        start = time.perf_counter()
        self.step = prepare(case, algorithm=algorithm, compile=compile, device=device)
        self.step()
        self.wait()
        first = time.perf_counter() - start
        torch.save(
            torch.cat([p.grad.flatten().cpu().double() for p in case["model"].parameters() if p.grad is not None]),
            gradient,
        )
        return {"first call s": first, "s": min(block_seconds(self.step, 1, self.wait) for _ in range(2))}

    def time(self, *, calls: int) -> dict[str, Any]:
        """Seconds a call."""
        return {"s": block_seconds(self.step, calls, self.wait)}


def main() -> None:
    """Says which fastmeta this is, then answers until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    assert fastmeta.__file__ is not None
    where = str(Path(fastmeta.__file__).resolve())
    print(json.dumps({"fastmeta": where}), file=answers, flush=True)
    worker = Worker()
    for line in sys.stdin:
        request, arguments = json.loads(line)
        try:
            answer = {"open": worker.open, "time": worker.time}[request](**arguments)
        except Exception as error:  # a failure is its result
            answer = {"error": describe_error(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
