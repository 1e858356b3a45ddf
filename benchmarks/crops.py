"""CPU time of one crop pair in `prep`, after resampling (target 40 ms, aim 15 ms), and its size in the cache."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from pcrl_cli.core.case import Case
from pcrl_cli.core.config import recipe
from pcrl_cli.core.plan import Prepared
from pcrl_cli.pure.crops import CropPairs


def chest(shape: tuple[int, int, int] = (360, 360, 320), seed: int = 0) -> Prepared:
    """A noisy ellipse of soft tissue with two lungs, in air: about as much background as a chest CT."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    values = np.random.default_rng(seed).normal(0, 30, shape).astype(np.float32)
    body = (x / 0.9) ** 2 + (y / 0.7) ** 2 < 1
    lungs = ((np.abs(x) - 0.42) / 0.3) ** 2 + (y / 0.45) ** 2 + (z / 0.9) ** 2 < 1
    values += np.where(lungs, -800, np.where(body, 40, -1000))
    np.clip(values, -1000, 1000, out=values)
    return Prepared(values, np.ones(3), np.zeros(3), np.eye(3), background=-150.0, air=-1000.0)


def measure(scans: int = 3) -> dict[str, Any]:
    """CPU milliseconds a pair on one thread, bytes a pair and counts, for both recipes."""
    scan, case = chest(), Case("phantom", "phantom", Path("phantom"))
    result: dict[str, Any] = {}
    for name in ("paper", "released"):
        plan = CropPairs(**recipe(name, "prep", "pairs"))
        with threadpool_limits(1):
            plan.draw(scan, case, np.random.default_rng(0))  # fills the cached matrices
            start = time.process_time()
            drawn = [plan.draw(scan, case, np.random.default_rng(1 + i)) for i in range(scans)]
            seconds = time.process_time() - start
        pairs = sum(d.counts["kept"] for d in drawn)
        result[name] = {
            "cpu_ms_a_pair": round(1000 * seconds / pairs, 2),
            "bytes_a_pair": sum(a.nbytes for a in drawn[0].arrays.values()) // len(drawn[0].arrays["globals"]),
            "tried_a_pair": round(sum(d.counts["tried"] for d in drawn) / pairs, 2),
        }
    return result


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
