"""How long steps took and how much of it the device waited for data, also where the device runs behind the host."""

import time

import torch


class Stopwatch:
    """Times windows of steps. `ask` and `got` enclose the wait for a batch; `window` ends one, after the device was waited for.

    On a GPU the host's wait says little: it may pass while the device still works. There two events a step are recorded,
    and the time between them on the device's clock is what it stood idle before the batch was there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        self.began = self.asked = time.perf_counter()
        self.waited = 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def ask(self) -> None:
        self.asked = time.perf_counter()
        if self.device.type == "cuda":
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            pair[0].record()
            self.events.append(pair)

    def got(self) -> None:
        if self.device.type == "cuda":
            self.events[-1][1].record()
        else:
            self.waited += time.perf_counter() - self.asked

    def window(self) -> tuple[float, float]:
        """Seconds since the last window's end (or `restart`), and how many of them were spent waiting for data."""
        if self.events:
            self.events[-1][1].synchronize()
            self.waited = sum(a.elapsed_time(b) for a, b in self.events) / 1000
        seconds, waited = time.perf_counter() - self.began, self.waited
        self.restart()
        return seconds, min(waited, seconds)
