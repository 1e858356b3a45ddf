"""A cache of a few voxels."""

from collections import Counter
from pathlib import Path

import numpy as np

from pcrl_cli.core.plan import Drawn
from pcrl_cli.data.cache import Cache, gather_manifest, open_cache, write_shard, write_split

ITEMS = {"a": 5, "b": 1, "c": 7, "d": 4}


def small_cache(folder: Path, shape: tuple[int, ...] = (1, 4, 4, 2)) -> Cache:
    """17 items of four cases; item k of all is filled from its own number."""
    (folder / "shards").mkdir(parents=True)
    first = 0
    for case, n in ITEMS.items():
        rng = np.random.default_rng(first)
        array = rng.integers(-1000, 1000, (n, *shape), dtype=np.int16)
        drawn = Drawn({"a": array, "number": np.arange(first, first + n, dtype=np.int32)}, Counter(kept=n))
        write_shard(folder, case, {"g": drawn}, {"patient": f"p-{case}", "settings": "f00d", "source": {}})
        first += n
    write_split(folder, [f"p-{case}" for case in ITEMS], 0)
    gather_manifest(folder, {"reader": "test", "fingerprint": "f00d"})
    return open_cache(folder)
