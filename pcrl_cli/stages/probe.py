"""How good are frozen features, and the features themselves."""

import csv
import io
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from pcrl_cli.core import files
from pcrl_cli.core.errors import ConfigError, UsageError
from pcrl_cli.core.listener import Listener
from pcrl_cli.core.names import find
from pcrl_cli.data.cache import Cache
from pcrl_cli.engine.trainer import Device, resolve_device
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.stages import patients, training
from pcrl_cli.stages.features import Features, extract
from pcrl_cli.stages.results import Result
from pcrl_cli.stages.weights import encoder_of
from pcrl_cli.stages.workspace import Workspace
from pcrl_cli.tasks import TASKS
from pcrl_cli.tasks.probe import Config, probe

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


def probe_features(
    encoder: Encoder, cache: Cache, device: torch.device, part: Part, task: str = "luna", config: Config | None = None
) -> tuple[dict[str, float | None], tuple[Features, Features]]:
    """k-NN and linear-probe AUROC on `part`, learned from the training part."""
    train = extract(encoder, cache, task, ["train"], device)
    test = extract(encoder, cache, task, [part], device)
    return probe(train.values, train.label, test.values, test.label, config or Config()), (train, test)


def why_not(encoder: Encoder, cache: Cache, task: str = "luna") -> str | None:
    """Why frozen features cannot be scored on the validation part; None if they can. Reads the labels and one block."""
    module = find("task", task, TASKS)
    group = module.GROUP
    if group not in cache.groups:
        return f"the cache holds no {group}"
    for part in PARTS:
        cases = cache.cases(part)
        labels = cache.read(group, ("label",), cases).arrays["label"] if cases else np.zeros(0)
        if len(np.unique(labels)) < 2:
            return f"the {part} part lacks {group} of one class"
    blocks = cache.read(group, ("blocks",), cache.cases("train"), rows=np.zeros(1, np.int64)).arrays["blocks"]
    try:
        module.TASK(encoder, module.Config(), training.stored(cache)).centre({"blocks": torch.from_numpy(blocks)})
    except ConfigError as error:
        return str(error)
    return None


def probe_run(
    source: Path,
    cache: Path | None = None,
    *,
    task: str = "luna",
    split: Part = "test",
    workspace: Workspace | None = None,
    device: Device = "auto",
    listener: Listener | None = None,
) -> ProbeResult:
    """Probes the encoder of a run or a weights file on a cache's candidates. Patients seen in pre-training are allowed:
    nothing of the encoder is trained, but the result is optimistic if the test part was seen.
    """
    listener, workspace = listener or Listener(), workspace or Workspace()
    where = resolve_device(device)
    opened = training.open_verified(
        cache or workspace.find_cache(3, "candidates"), workspace.root / "runs" / ".verified.json"
    )
    encoder, weights, report = encoder_of(source, opened)
    seen = patients.seen(weights.contract.patients, opened, opened.patients(split))
    if seen:
        listener.warn(f"{len(seen)} patients of the {split} part were seen in pre-training; the probe is optimistic")
    figures, (train, test) = probe_features(encoder.to(where), opened, where, split, task)
    missing = figures["knn_auroc"] is None
    return ProbeResult(
        weights=weights.path,
        cache=opened.path,
        task=task,
        split=split,
        knn_auroc=figures["knn_auroc"],
        linear_auroc=figures["linear_auroc"],
        train=len(train.label),
        tested=len(test.label),
        positives=int(test.label.sum()),
        reason=f"the {split} part lacks candidates of one class" if missing else None,
        transfer=report,
    )


def embed(
    source: Path,
    out: Path,
    cache: Path | None = None,
    *,
    task: str = "luna",
    workspace: Workspace | None = None,
    device: Device = "auto",
    overwrite: bool = False,
) -> EmbedResult:
    """Writes the frozen features of every cached candidate, with label, id, patient and part, to .npz or .csv."""
    if out.suffix not in (".npz", ".csv"):
        raise UsageError(f"--out {out} must end in .npz or .csv")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; name another file, or --overwrite")
    workspace, where = workspace or Workspace(), resolve_device(device)
    opened = training.open_verified(
        cache or workspace.find_cache(3, "candidates"), workspace.root / "runs" / ".verified.json"
    )
    encoder, weights, _ = encoder_of(source, opened)
    features = extract(encoder.to(where), opened, task, ["train", "val", "test"], where)
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
    writer.writerow(["id", "patient", "part", "label", *(f"f{i}" for i in range(f.values.shape[1]))])
    for row in zip(f.id, f.patient, f.part, f.label.tolist(), f.values.tolist(), strict=True):
        writer.writerow([*row[:4], *(f"{v:.6g}" for v in row[4])])
    return buffer.getvalue().encode()
