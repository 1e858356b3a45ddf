"""Probabilities of cached candidates, case by case."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from pcrl_cli.core.learner import Task
from pcrl_cli.data.cache import Cache

BATCH = 32


@dataclass(frozen=True)
class Predictions:
    """One row a candidate, in the order of the cases."""

    id: list[str]
    case: list[str]
    patient: list[str]
    label: Int[np.ndarray, " n"]
    probability: Float[np.ndarray, " n"]
    world: Float64[np.ndarray, "n 3"]


def decoded(ids: np.ndarray) -> list[str]:
    """Names as text; a cache stores them as UTF-8 bytes."""
    return [name.decode() if isinstance(name, bytes) else str(name) for name in ids]


def predict_part(
    task: Task, cache: Cache, group: str, cases: Sequence[str], device: torch.device, batch: int = BATCH
) -> Predictions:
    """Predicts every cached candidate of some cases; the task must be in eval mode."""
    names, of_case, patients, labels, probabilities, worlds = [], [], [], [], [], []
    records = cache.records
    for case in cases:
        items = cache.read(group, ("blocks", "label", "id", "world"), [case]).arrays
        n = len(items["label"])
        names += decoded(items["id"])
        of_case += [case] * n
        patients += [records[case]["patient"]] * n
        labels.append(items["label"].astype(np.int64))
        worlds.append(items["world"])
        probabilities.append(predict_blocks(task, items["blocks"], device, batch))
    return Predictions(
        names,
        of_case,
        patients,
        np.concatenate(labels) if labels else np.zeros(0, np.int64),
        np.concatenate(probabilities) if probabilities else np.zeros(0, np.float32),
        np.concatenate(worlds) if worlds else np.zeros((0, 3)),
    )


def predict_blocks(task: Task, blocks: np.ndarray, device: torch.device, batch: int = BATCH) -> Float[np.ndarray, " n"]:
    """(n, 1, side, side, side) as stored -> (n,) probabilities."""
    done = [task.predict({"blocks": rows})[:, 0].float().cpu().numpy() for rows in _batches(blocks, device, batch)]
    return np.concatenate(done) if done else np.zeros(0, np.float32)


def _batches(blocks: np.ndarray, device: torch.device, batch: int) -> Iterator[Tensor]:
    for start in range(0, len(blocks), batch):
        yield torch.from_numpy(blocks[start : start + batch]).to(device)
