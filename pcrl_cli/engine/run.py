"""The run folder: settings, metrics, sealed checkpoints, result. Nothing in it is ever half-written.

RUN/
├── run.json            verb, fingerprint, status (running | finished), result
├── config.yaml         the resolved settings; `--config RUN/config.yaml` repeats the run
├── metrics.jsonl       one object a logged step
├── checkpoints/step_000500/ {model, optim}.safetensors, state.json with their SHA-256
├── best/               the same, of the best validation so far (fine-tuning)
└── captures/           the batch of a non-finite step
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from pcrl_cli.core import files
from pcrl_cli.core.config import leaves
from pcrl_cli.core.errors import ConfigError, IntegrityError, MachineError

SCHEMA = "pcrl.run/1"


@dataclass(frozen=True)
class Checkpoint:
    """A complete state: weights and buffers, optimiser tensors, and the JSON values beside them."""

    model: dict[str, Tensor]
    optim: dict[str, Tensor]
    state: dict[str, Any]


class Run:
    """One run folder. `Run.open` decides whether it is new, to be continued, or finished."""

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder, self.record = folder, record

    @classmethod
    def open(
        cls, folder: Path, verb: str, settings: dict[str, Any], fingerprint: str, config_yaml: str, overwrite: bool
    ) -> "Run":
        """Makes the folder, or takes it up again if it holds the same settings.

        Raises:
            ConfigError: it holds other settings (their names are listed), or something that is no run.
        """
        if overwrite and folder.exists():
            cls.load(folder)  # refuses to delete what is not a run
            shutil.rmtree(folder)
        if folder.exists() and any(folder.iterdir()):
            run = cls.load(folder)
            if run.record["fingerprint"] != fingerprint:
                keys = ", ".join(_differences(run.record["settings"], settings)) or "the data"
                raise ConfigError(
                    f"{folder} holds a run with other settings (different: {keys}); choose another --out, "
                    "or --overwrite to redo it"
                )
            return run
        record = {
            "schema": SCHEMA,
            "verb": verb,
            "fingerprint": fingerprint,
            "status": "running",
            "settings": settings,
            "result": None,
        }
        _make(folder)
        files.write_atomic(folder / "config.yaml", config_yaml.encode())
        run = cls(folder, record)
        run.write_record()
        return run

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """An existing run.

        Raises:
            ConfigError: the folder is not there or is no run.
            IntegrityError: its record is torn.
        """
        path = folder / "run.json"
        if not path.is_file():
            what = "is not a run folder (it has no run.json)" if folder.exists() else "does not exist"
            raise ConfigError(f"{folder} {what}; give the folder that `pcrl pretrain` or `pcrl finetune` printed")
        record = files.read_json(path)
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise ConfigError(f"{path} has another schema than {SCHEMA}; it was written by another version of pcrl")
        return cls(folder, record)

    @property
    def finished(self) -> bool:
        return bool(self.record["status"] == "finished")

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    def write_record(self, **changes: Any) -> None:
        self.record.update(changes)
        files.write_json(self.folder / "run.json", self.record)

    def finish(self, result: dict[str, Any]) -> None:
        self.write_record(status="finished", result=result)

    # ---- metrics -------------------------------------------------------------------------------------------------

    def log(self, row: dict[str, Any]) -> None:
        """Appends one object; a non-finite number is written as null, so that the file stays JSON."""
        row = {k: None if isinstance(v, float) and v - v != 0 else v for k, v in row.items()}
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rewind_metrics(self, step: int) -> None:
        """Forgets rows of steps that the checkpoint at `step` does not know, and a torn last line."""
        if self.metrics_path.exists():
            rows = [row for row in read_metrics(self.metrics_path) if row["step"] < step]
            files.write_atomic(self.metrics_path, "".join(json.dumps(row) + "\n" for row in rows).encode())

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    @property
    def checkpoints(self) -> list[Path]:
        """Sealed checkpoints, oldest first."""
        return sorted((self.folder / "checkpoints").glob("step_[0-9]*"))

    def save(self, checkpoint: Checkpoint, metadata: dict[str, str], keep: int) -> Path:
        """Seals a checkpoint of its step and drops all but the newest `keep` (two at least)."""
        target = self.folder / "checkpoints" / f"step_{checkpoint.state['step']:06d}"
        seal(target, checkpoint, metadata)
        for old in self.checkpoints[: -max(keep, 2)]:
            shutil.rmtree(old)
        return target

    def save_best(self, checkpoint: Checkpoint, metadata: dict[str, str]) -> None:
        seal(self.folder / "best", checkpoint, metadata)

    def newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest sound checkpoint; a damaged one is named and passed over.

        Raises:
            IntegrityError: there are checkpoints, and none of them is sound.
        """
        damaged = []
        for path in reversed(self.checkpoints):
            try:
                return unseal(path)
            except IntegrityError as error:
                damaged.append(path)
                warn(f"{error}; falling back to the checkpoint before it")
        if damaged:
            raise IntegrityError(f"no checkpoint in {self.folder} is sound; start again with --overwrite")
        return None

    def weights_path(self) -> Path:
        """The model file to take away: of the best validation if there is one, else of the last step.

        Raises:
            ConfigError: nothing has been saved yet.
        """
        folders = [self.folder / "best"] if (self.folder / "best").is_dir() else self.checkpoints[-1:]
        if not folders:
            raise ConfigError(f"{self.folder} holds no weights yet; let the run save a checkpoint first")
        return folders[0] / "model.safetensors"

    def check_weights(self) -> None:
        """Compares the hashes of the checkpoint that `weights_path` belongs to.

        Raises:
            IntegrityError: it is torn or was changed.
        """
        unseal(self.weights_path().parent)

    def capture(self, step: int, batch: dict[str, Tensor], state: dict[str, Any]) -> Path:
        """Keeps the batch of a step that went wrong."""
        folder = self.folder / "captures" / f"step_{step:06d}"
        seal(folder, Checkpoint({k: v.contiguous().cpu() for k, v in batch.items()}, {}, state), {})
        return folder


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a torn last line is left out."""
    rows = []
    for line in path.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def seal(target: Path, checkpoint: Checkpoint, metadata: dict[str, str]) -> None:
    """Writes a checkpoint folder beside its place, syncs it, and renames it into place.

    Raises:
        MachineError: the disk is full or not writable.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        hashes = {}
        for name, tensors in (("model", checkpoint.model), ("optim", checkpoint.optim)):
            path = temporary / f"{name}.safetensors"
            content = save_tensors({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, metadata)
            files.write_atomic(path, content)
            hashes[path.name] = hashlib.sha256(content).hexdigest()
        files.write_json(temporary / "state.json", {**checkpoint.state, "sha256": hashes})
        if target.exists():  # the same step again, after a fallback or for a better validation
            old = target.with_name(f".{target.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            temporary.rename(target)
        files.sync(target.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise MachineError(
            f"cannot write {target}: {error.strerror}; free space or change permissions, then run again"
        ) from None


def unseal(folder: Path) -> Checkpoint:
    """Reads a checkpoint after checking its hashes.

    Raises:
        IntegrityError: a file is missing, torn or changed.
    """
    state = files.read_json(folder / "state.json")
    if not isinstance(state, dict) or "sha256" not in state:
        raise IntegrityError(f"{folder / 'state.json'} holds no hashes")
    parts = {}
    for name in ("model", "optim"):
        path = folder / f"{name}.safetensors"
        try:
            content = path.read_bytes()
        except OSError:
            raise IntegrityError(f"{path} cannot be read") from None
        if hashlib.sha256(content).hexdigest() != state["sha256"].get(path.name):
            raise IntegrityError(f"{path} is torn or was changed (its SHA-256 differs)")
        parts[name] = load_tensors(content)
    return Checkpoint(parts["model"], parts["optim"], state)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot make {folder}: {error.strerror}; choose another --out") from None


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    a, b = dict(leaves(old)), dict(leaves(new))
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))


def optimiser_tensors(optimisers: dict[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimisers' states as named tensors: player/index of the parameter/name."""
    return {
        f"{player}/{index}/{name}": torch.as_tensor(value)
        for player, optimiser in optimisers.items()
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
        if value is not None
    }


def restore_optimisers(optimisers: dict[str, torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`; learning rates are the schedule's."""
    for player, optimiser in optimisers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            owner, index, name = key.split("/", 2)
            if owner == player:
                state.setdefault(int(index), {})[name] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
