"""Frozen features of every candidate: what probes and `embed` look at."""

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
from pcrl_cli.stages.predictions import decoded
from pcrl_cli.tasks import TASKS

BATCH = 16


@dataclass(frozen=True)
class Features:
    """One row a candidate."""

    values: Float[np.ndarray, "n c"]
    label: Int[np.ndarray, " n"]
    id: list[str]
    patient: list[str]
    part: list[str]


def extract(
    encoder: Encoder, cache: Cache, task_name: str, parts: Sequence[str], device: torch.device, batch: int = BATCH
) -> Features:
    """GAP(F_0) of the task's centre crops, in eval mode; the encoder's mode is put back."""
    module = find("task", task_name, TASKS)
    training.require_group(cache, module.GROUP, f"task {task_name}")
    task = module.TASK(encoder, module.Config(), training.to_unit(cache))
    was_training = encoder.training
    encoder.eval()
    values, label, names, patients, where = [], [], [], [], []
    records = cache.records
    with torch.no_grad():
        for part in parts:
            for case in cache.cases(part):  # type: ignore[arg-type]
                items = cache.read(module.GROUP, ("blocks", "label", "id"), [case]).arrays
                for start in range(0, len(items["label"]), batch):
                    rows = slice(start, start + batch)
                    blocks = {"blocks": torch.from_numpy(items["blocks"][rows]).to(device)}
                    values.append(gap(encoder(task.centre(blocks))[-1]).cpu().numpy())
                label.append(items["label"])
                names += decoded(items["id"])
                patients += [records[case]["patient"]] * len(items["label"])
                where += [part] * len(items["label"])
    encoder.train(was_training)
    joined = np.concatenate(values) if values else np.zeros((0, encoder.widths[-1]), np.float32)
    return Features(
        joined, np.concatenate(label).astype(np.int64) if label else np.zeros(0, np.int64), names, patients, where
    )
