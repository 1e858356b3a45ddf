"""Frozen features of every labelled item, a candidate or an image: what probes and `embed` look at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from pcrl_cli.core.names import find
from pcrl_cli.data.cache import Cache
from pcrl_cli.networks.blocks import gap
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.stages import training
from pcrl_cli.stages.workflows.candidates import decoded
from pcrl_cli.tasks import TASKS

BATCH = 16


@dataclass(frozen=True)
class Features:
    """One row an item; label: of one class (n,), or of several (n, k) with -1 for what is not known."""

    values: Float[np.ndarray, "n c"]
    label: Int[np.ndarray, " n"] | Int[np.ndarray, "n k"]
    id: list[str]
    patient: list[str]
    part: list[str]


def extract(
    encoder: Encoder, cache: Cache, task_name: str, parts: Sequence[str], device: torch.device, batch: int = BATCH
) -> Features:
    """GAP(F_0) of what the task sees when it predicts, in eval mode; the encoder's mode is put back."""
    module = find("task", task_name, TASKS)
    training.require_group(cache, module.GROUP, f"task {task_name}")
    task = module.TASK(encoder, module.Config(), training.stored(cache))
    seen = tuple(name for name in module.ARRAYS if name != "label")
    was_training = encoder.training
    encoder.eval()
    values, label, names, patients, where = [], [], [], [], []
    with torch.no_grad():
        for part in parts:
            for case in cache.cases(part):  # type: ignore[arg-type]
                mine = cache.rows(module.GROUP, "label", [case], cache.split.part(part))  # type: ignore[arg-type]
                items = cache.read(module.GROUP, (*seen, "label", "id"), [case], rows=mine).arrays
                for start in range(0, len(mine), batch):
                    rows = slice(start, start + batch)
                    some = {name: torch.from_numpy(items[name][rows]).to(device) for name in seen}
                    values.append(gap(encoder(task.centre(some))[-1]).cpu().numpy())
                label.append(items["label"])
                names += decoded(items["id"])
                owner = cache.owners(module.GROUP, "label", [case])
                patients += [owner[row] for row in mine]
                where += [part] * len(mine)
    encoder.train(was_training)
    joined = np.concatenate(values) if values else np.zeros((0, encoder.widths[-1]), np.float32)
    return Features(
        joined, np.concatenate(label).astype(np.int64) if label else np.zeros(0, np.int64), names, patients, where
    )
