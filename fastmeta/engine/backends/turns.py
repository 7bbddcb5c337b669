"""Memory that every meta-step of a plan writes anew, used by one of them at a time, on whatever stream and thread."""

from __future__ import annotations

import threading
from types import TracebackType

import torch


class Turns:
    """`with turns:` around all use of the memory. Where it changes from one stream of a GPU to another, the new stream
    waits for what the old one was given until then; the host waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.RLock()
        self._last: torch.cuda.Stream | None = None

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._device.type == "cuda":
            now = torch.cuda.current_stream(self._device)
            if self._last is not None and self._last != now:
                now.wait_stream(self._last)
            self._last = now

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()
