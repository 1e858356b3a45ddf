"""How good are frozen features, and the features themselves."""

import csv
import io
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from pcrl_cli.core import files
from pcrl_cli.core.errors import ConfigError, UsageError
from pcrl_cli.core.listener import Listener
from pcrl_cli.core.names import find
from pcrl_cli.data.cache import Cache, open_cache
from pcrl_cli.engine.trainer import Device, resolve_device
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.transfer import Weights
from pcrl_cli.stages import patients, training
from pcrl_cli.stages.features import Features, extract
from pcrl_cli.stages.results import Result
from pcrl_cli.stages.weights import encoder_of, weights_of
from pcrl_cli.stages.workspace import Workspace
from pcrl_cli.tasks import TASKS
from pcrl_cli.tasks.probe import Config, probe, probe_findings

Part = Literal["val", "test"]
PARTS: tuple[Literal["train", "val"], ...] = ("train", "val")
"""What probing while pre-training learns from, and what it is scored on."""


class ProbeResult(Result):
    schema_name: ClassVar[str] = "pcrl.probe/1"
    weights: Path
    cache: Path
    task: str
    split: str
    knn_auroc: float | None
    linear_auroc: float | None
    train: int
    tested: int
    positives: int
    reason: str | None
    transfer: dict[str, Any]


class EmbedResult(Result):
    schema_name: ClassVar[str] = "pcrl.embed/1"
    weights: Path
    cache: Path
    out: Path
    rows: int
    width: int


def task_of(dim: int, groups: Collection[str]) -> str:
    """Whose labels an encoder of so many axes is probed on, if nothing is said. groups: that are cached."""
    if dim == 2:
        return "chest"
    return "classify" if "images" in groups and "candidates" not in groups else "luna"


def probe_features(
    encoder: Encoder,
    cache: Cache,
    device: torch.device,
    part: Part,
    task: str | None = None,
    config: Config | None = None,
) -> tuple[dict[str, float | None], tuple[Features, Features]]:
    """k-NN and linear-probe AUROC on `part`, learned from the training part; of several findings the mean."""
    task, config = task or task_of(encoder.dim, cache.groups), config or Config()
    train = extract(encoder, cache, task, ["train"], device)
    test = extract(encoder, cache, task, [part], device)
    score = probe_findings if train.label.ndim == 2 else probe
    return score(train.values, train.label, test.values, test.label, config), (train, test)


def why_not(encoder: Encoder, cache: Cache, task: str | None = None) -> str | None:
    """Why frozen features cannot be scored on the validation part; None if they can. Reads the labels and one item."""
    module = find("task", task or task_of(encoder.dim, cache.groups), TASKS)
    group = module.GROUP
    if group not in cache.groups:
        return f"the cache holds no {group}"
    for part in PARTS:
        cases = cache.cases(part)
        rows = cache.rows(group, "label", cases, cache.split.part(part))
        labels = cache.read(group, ("label",), cases, rows=rows).arrays["label"] if len(rows) else np.zeros((0, 1))
        columns = labels[:, None].T if labels.ndim == 1 else labels.T
        one_class = [len({0, 1} & set(np.unique(column))) < 2 for column in columns]
        if all(one_class):
            return f"the {part} part lacks {group} of one class"
    seen = tuple(name for name in module.ARRAYS if name != "label")
    items = cache.read(group, seen, cache.cases("train"), rows=np.zeros(1, np.int64)).arrays
    try:
        task_ = module.TASK(encoder, module.Config(), training.stored(cache))
        task_.centre({name: torch.from_numpy(array) for name, array in items.items()})
    except ConfigError as error:
        return str(error)
    return None


def _opened(
    source: Path, cache: Path | None, task: str | None, workspace: Workspace
) -> tuple[Cache, str, Encoder, Weights, dict[str, Any]]:
    """The cache with what the task sees, the task's name, and the encoder with its report."""
    dim = weights_of(source).contract.architecture.dim
    there = {group for _, m in workspace.caches() if m.get("dim") == dim for group in m.get("groups", ())}
    name = task or task_of(dim, open_cache(cache).groups if cache else there)
    module = find("task", name, TASKS)
    if module.DIM not in (None, dim):
        raise ConfigError(f"{source} is a {dim}D encoder, and the task {name} is of {module.DIM}D images; give another")
    path = cache or workspace.find_cache(dim, module.GROUP)
    opened = training.open_verified(path, workspace.verified)
    training.require_dim(opened, dim)
    return opened, name, *encoder_of(source, opened)


def probe_run(
    source: Path,
    cache: Path | None = None,
    *,
    task: str | None = None,
    split: Part = "test",
    workspace: Workspace | None = None,
    device: Device = "auto",
    listener: Listener | None = None,
) -> ProbeResult:
    """Probes the encoder of a run or a weights file on the labelled candidates or images of a cache.

    Patients seen in pre-training are allowed: nothing of the encoder is trained, but the result is optimistic if the
    test part was seen. Of several findings the figures are means, see `tasks.probe.probe_findings`.
    """
    listener, workspace = listener or Listener(), workspace or Workspace()
    where = resolve_device(device)
    opened, name, encoder, weights, report = _opened(source, cache, task, workspace)
    seen = patients.seen(weights.contract.patients, opened, opened.patients(split))
    if seen:
        listener.warn(f"{len(seen)} patients of the {split} part were seen in pre-training; the probe is optimistic")
    figures, (train, test) = probe_features(encoder.to(where), opened, where, split, name)
    missing = figures["knn_auroc"] is None
    return ProbeResult(
        weights=weights.path,
        cache=opened.path,
        task=name,
        split=split,
        knn_auroc=figures["knn_auroc"],
        linear_auroc=figures["linear_auroc"],
        train=len(train.label),
        tested=len(test.label),
        positives=int((test.label == 1).sum()),
        reason=f"the {split} part lacks labels of one class" if missing else None,
        transfer=report,
    )


def embed(
    source: Path,
    out: Path,
    cache: Path | None = None,
    *,
    task: str | None = None,
    workspace: Workspace | None = None,
    device: Device = "auto",
    overwrite: bool = False,
) -> EmbedResult:
    """Writes the frozen features of every cached candidate or image, with labels, id, patient and part: .npz or .csv."""
    if out.suffix not in (".npz", ".csv"):
        raise UsageError(f"--out {out} must end in .npz or .csv")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; name another file, or --overwrite")
    workspace, where = workspace or Workspace(), resolve_device(device)
    opened, name, encoder, weights, _ = _opened(source, cache, task, workspace)
    features = extract(encoder.to(where), opened, name, ["train", "val", "test"], where)
    with files.blame_machine(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(out, _npz(features) if out.suffix == ".npz" else _csv(features))
    n, c = features.values.shape
    return EmbedResult(weights=weights.path, cache=opened.path, out=out, rows=n, width=c)


def _npz(f: Features) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer, features=f.values, label=f.label, id=np.array(f.id), patient=np.array(f.patient), part=np.array(f.part)
    )
    return buffer.getvalue()


def _csv(f: Features) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    labels = f.label.reshape(len(f.label), -1)
    heads = ["label"] if f.label.ndim == 1 else [f"label {i}" for i in range(labels.shape[1])]
    writer.writerow(["id", "patient", "part", *heads, *(f"f{i}" for i in range(f.values.shape[1]))])
    for row in zip(f.id, f.patient, f.part, labels.tolist(), f.values.tolist(), strict=True):
        writer.writerow([*row[:3], *row[3], *(f"{v:.6g}" for v in row[4])])
    return buffer.getvalue().encode()
