"""The run folder: settings, metrics, sealed checkpoints, result. Nothing in it is ever half-written.

RUN/
├── run.json            verb, fingerprint, status (running | finished), result
├── config.yaml         the resolved settings; `--config RUN/config.yaml` repeats the run
├── metrics.jsonl       one object a logged step
├── checkpoints/step_000500/ {model, optim}.safetensors, state.json with their SHA-256
├── best/               the same, of the best validation so far (fine-tuning)
├── captures/           the batch of a non-finite step, one folder a rank
├── .lock               while a process writes here
└── tensorboard/        the rows of metrics.jsonl, if train.tensorboard
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from pcrl_cli.core import files
from pcrl_cli.core.config import leaves
from pcrl_cli.core.errors import ConfigError, IntegrityError, MachineError
from pcrl_cli.engine import lock

SCHEMA = "pcrl.run/1"
OWN = ("checkpoints", "best", "captures", "tensorboard", "evaluation", "report.html", "metrics.jsonl", "config.yaml")
"""What `overwrite` deletes, before run.json; other files in the folder are not ours."""

_STEP = re.compile(r"(?:step_(\d+)|\.step_(\d+)\.old)")


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
            IntegrityError: its record is torn.
            MachineError: the folder cannot be written, or another process is writing it.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            taken = any(not path.name.startswith(".") for path in folder.iterdir())
        except OSError as error:
            raise MachineError(f"cannot make {folder}: {error.strerror}; choose another --out") from None
        lock.hold(folder)
        if taken and overwrite:
            cls._clear(folder)
        elif taken:
            run = cls.load(folder)
            run.require_same(verb, settings, fingerprint)
            run.mend_config(settings, config_yaml)
            return run
        record = {
            "schema": SCHEMA,
            "verb": verb,
            "fingerprint": fingerprint,
            "status": "running",
            "settings": settings,
            "result": None,
        }
        run = cls(folder, record)
        run.write_record()
        files.write_atomic(folder / "config.yaml", config_yaml.encode())
        return run

    def mend_config(self, settings: dict[str, Any], config_yaml: str) -> None:
        """Writes config.yaml where it is missing (stopped before it was written) or torn: what it says is known.

        settings: which `config_yaml` holds; they may differ from the run's in what does not decide it.
        """
        path = self.folder / "config.yaml"
        try:
            right = path.read_bytes() == config_yaml.encode()
        except FileNotFoundError:
            right = False
        except OSError:
            right = not path.is_dir()
        if not right and (settings == self.record["settings"] or not path.exists()):
            files.write_atomic(path, config_yaml.encode())

    @classmethod
    def _clear(cls, folder: Path) -> None:
        """Deletes a run, its record last; refuses a folder that is none and leaves files alone that are not the run's."""
        with suppress(IntegrityError):  # a torn record is a reason to start again
            cls.load(folder)
        with files.blame_machine(folder):
            for path in [*folder.glob(".*.tmp"), *folder.glob(".*.old"), *(folder / name for name in OWN)]:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            (folder / "run.json").unlink()

    def require_same(self, verb: str, settings: dict[str, Any], fingerprint: str) -> None:
        """Raises:
        ConfigError: the run is of another verb, or has other settings (their names are listed).
        """
        if self.record["verb"] != verb:
            raise ConfigError(f"{self.folder} holds a run of `pcrl {self.record['verb']}`; choose another --out")
        if self.record["fingerprint"] != fingerprint:
            keys = ", ".join(_differences(self.record["settings"], settings)) or "the data"
            raise ConfigError(
                f"{self.folder} holds a run with other settings (different: {keys}); choose another --out, "
                "or --overwrite to redo it"
            )

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
        found = files.read_json(path)
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise ConfigError(f"{path} has another schema than {SCHEMA}; it was written by another version of pcrl")
        try:
            return cls(folder, files.read_sealed(path))
        except IntegrityError:
            raise IntegrityError(
                f"{path} is torn or was changed (its own seal differs); start again with --overwrite, or copy it back"
            ) from None

    @property
    def finished(self) -> bool:
        return bool(self.record["status"] == "finished")

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    def write_record(self, **changes: Any) -> None:
        self.record.update(changes)
        files.write_sealed(self.folder / "run.json", self.record)

    def finish(self, result: dict[str, Any]) -> None:
        metrics = {"metrics_sha256": files.sha256_file(self.metrics_path)} if self.metrics_path.is_file() else {}
        self.write_record(status="finished", finished_at=datetime.now(UTC).isoformat(), result=result, **metrics)

    # ---- metrics -------------------------------------------------------------------------------------------------

    def log(self, row: dict[str, Any]) -> None:
        """Appends one object; a non-finite number is written as null, so that the file stays JSON.

        Raises:
            MachineError: the disk is full or not writable.
        """
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        with files.blame_machine(self.metrics_path), self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """What was logged, in order; of a finished run only as it was when it finished.

        Raises:
            IntegrityError: the file of a finished run was changed or is not there.
        """
        path, sealed = self.metrics_path, self.record.get("metrics_sha256") if self.finished else None
        if sealed is not None and not (path.is_file() and files.sha256_file(path) == sealed):
            raise IntegrityError(
                f"{path} was changed since the run finished, or is missing; copy it back, or train again with --overwrite"
            )
        return read_metrics(path) if path.exists() else []

    def rewind_metrics(self, step: int) -> int:
        """Forgets rows of steps that the checkpoint at `step` does not know, and damaged lines.

        Returns how many lines were damaged; the last one does not count, which a killed process may have left torn.
        """
        if not self.metrics_path.exists():
            return 0
        rows = [row for row in read_metrics(self.metrics_path) if row["step"] < step]
        damaged = sum(_row(line) is None for line in self.metrics_path.read_bytes().splitlines()[:-1])
        files.write_atomic(self.metrics_path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        return damaged

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    @property
    def checkpoints(self) -> list[Path]:
        """Sealed checkpoints, oldest first."""
        return [path for _, path in sorted(self._by_step().items())]

    def _by_step(self) -> dict[int, Path]:
        """Checkpoints by step; one that is just being replaced is found under its other name."""
        found: dict[int, Path] = {}
        folder = self.folder / "checkpoints"
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:  # .step_N.old comes before step_N, which wins
            match = _STEP.fullmatch(path.name)
            if match and path.is_dir():
                found[int(match[1] or match[2])] = path
        return found

    def save(self, checkpoint: Checkpoint, metadata: dict[str, str], keep: int) -> Path:
        """Seals a checkpoint of its step and drops all but the newest `keep` (two at least).

        Checkpoints of later steps are dropped too: they are damaged, or the run would have gone on from them.
        """
        step = int(checkpoint.state["step"])
        target = self.folder / "checkpoints" / f"step_{step:06d}"
        seal(target, checkpoint, metadata)
        known = self._by_step()
        kept = sorted(s for s in known if s <= step)[-max(keep, 2) :]
        for path in (path for s, path in known.items() if s not in kept):
            shutil.rmtree(path, ignore_errors=True)
        return target

    def tidy(self) -> None:
        """What a killed process left: half-written folders go, a replaced one comes back. For the run's only writer."""
        for folder in (self.folder, self.folder / "checkpoints", self.folder / "captures"):
            for path in folder.glob(".*.old"):
                target = path.with_name(path.name.removeprefix(".").removesuffix(".old"))
                if target.exists():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.rename(target)
            for path in folder.glob(".*.tmp"):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
            files.remove_leftovers(folder)

    def save_best(self, checkpoint: Checkpoint, metadata: dict[str, str]) -> None:
        seal(self.folder / "best", checkpoint, metadata)

    def newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest sound checkpoint; a damaged one is named and passed over.

        Raises:
            IntegrityError: there are checkpoints, and none of them is sound.
        """
        paths = self.checkpoints[::-1]
        for i, path in enumerate(paths, start=1):
            try:
                return unseal(path)
            except IntegrityError as error:
                warn(
                    f"{error}; {'falling back to the checkpoint before it' if i < len(paths) else 'there is no other'}"
                )
        if paths:
            raise IntegrityError(f"no checkpoint in {self.folder} is sound; start again with --overwrite")
        return None

    def weights_path(self) -> Path:
        """The model file to take away: of the best validation if there is one, else of the last step.

        Raises:
            ConfigError: nothing has been saved yet.
        """
        best = _present(self.folder / "best")
        folders = [best] if best.is_dir() else self.checkpoints[-1:]
        if not folders:
            raise ConfigError(f"{self.folder} holds no weights yet; let the run save a checkpoint first")
        return folders[0] / "model.safetensors"

    def check_weights(self) -> None:
        """Compares the hashes of the checkpoint that `weights_path` belongs to.

        Raises:
            IntegrityError: it is torn or was changed.
        """
        try:
            unseal(self.weights_path().parent)
        except IntegrityError as error:
            raise IntegrityError(f"{error}; train again with --overwrite, or give other weights") from None

    def best_is_sound(self) -> bool:
        try:
            unseal(_present(self.folder / "best"))
        except IntegrityError:
            return False
        return True

    def capture(self, step: int, batch: dict[str, Tensor], state: dict[str, Any], rank: int = 0) -> Path:
        """Keeps a rank's batch of a step that went wrong, as `batch.safetensors` beside a `state.json`."""
        folder = self.folder / "captures" / (f"step_{step:06d}" + (f"_rank{rank}" if rank else ""))
        _seal(folder, {"batch": batch}, state, {})
        return folder


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; damaged lines, such as a torn last one, are left out.

    Raises:
        IntegrityError: it is a folder.
    """
    if path.is_dir():
        raise IntegrityError(f"{path} is a folder where a file belongs: remove it and run the command again")
    return [row for line in path.read_bytes().splitlines() if (row := _row(line)) is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    """A logged row; None where the line is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def seal(target: Path, checkpoint: Checkpoint, metadata: dict[str, str]) -> None:
    """Writes a checkpoint folder beside its place, syncs it, and renames it into place.

    Raises:
        MachineError: the disk is full or not writable.
    """
    _seal(target, {"model": checkpoint.model, "optim": checkpoint.optim}, checkpoint.state, metadata)


def _seal(target: Path, parts: dict[str, dict[str, Tensor]], values: dict[str, Any], metadata: dict[str, str]) -> None:
    draft = files.temporary(target)
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        hashes = {}
        for name, tensors in parts.items():
            path = draft / f"{name}.safetensors"
            content = _to_bytes(tensors, metadata)
            files.write_atomic(path, content)
            hashes[path.name] = hashlib.sha256(content).hexdigest()
        hashes["state.json"] = files.fingerprint([values, hashes])
        files.write_json(draft / "state.json", {**values, "sha256": hashes})
        _replace(draft, target)
        files.sync(target.parent)
    except OSError as error:
        raise MachineError(
            f"cannot write {target}: {error.strerror or error}; free space or change permissions, then run again"
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _to_bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """The content of a safetensors file.

    Made of arrays, since the library's own way for tensors (0.8) leaves a pair of objects a tensor that hold each other:
    with tens of tensors a checkpoint a process grew by 2 MB per 1,000 steps until the interpreter's next full collection.
    """
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    try:
        arrays = {name: tensor.numpy() for name, tensor in plain.items()}
    except TypeError:  # bfloat16 and the like, which NumPy does not know
        return save_tensors(plain, metadata or None)
    return save_arrays(arrays, metadata or None)


def _replace(draft: Path, target: Path) -> None:
    """Renames a folder into place. One that is there (the same step again, a better validation) steps aside first;

    between the two renames it goes by `.NAME.old`, where readers look for it and `Run.tidy` brings it back from.
    """
    old = _aside(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    try:
        draft.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _present(target: Path) -> Path:
    """The folder, or what it is called while it is being replaced."""
    return _aside(target) if not target.exists() and _aside(target).is_dir() else target


def unseal(folder: Path) -> Checkpoint:
    """Reads a checkpoint after checking its hashes.

    Raises:
        IntegrityError: a file is missing, torn or changed.
    """
    parts, state = _unseal(folder, ("model", "optim"))
    return Checkpoint(parts["model"], parts["optim"], state)


def unseal_capture(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The batch and the state that `Run.capture` kept.

    Raises:
        IntegrityError: a file is missing, torn or changed.
    """
    parts, state = _unseal(folder, ("batch",))
    return parts["batch"], state


def _unseal(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    state = files.read_json(folder / "state.json")
    hashes = state.pop("sha256", None) if isinstance(state, dict) else None
    own = hashes.pop("state.json", None) if isinstance(hashes, dict) else None
    if not isinstance(hashes, dict) or own != files.fingerprint([state, hashes]):
        raise IntegrityError(f"{folder / 'state.json'} is torn or was changed (its own hash differs)")
    parts = {}
    for name in names:
        path = folder / f"{name}.safetensors"
        try:
            content = path.read_bytes()
        except OSError:
            raise IntegrityError(f"{path} cannot be read") from None
        if hashlib.sha256(content).hexdigest() != hashes.get(path.name):
            raise IntegrityError(f"{path} is torn or was changed (its SHA-256 differs)")
        try:
            parts[name] = load_tensors(content)
        except SafetensorError as error:  # written so, by a bug of ours or of the library
            raise IntegrityError(f"{path} is no sound safetensors file ({str(error)[:80]})") from None
    return parts, state


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
    """The inverse of `optimiser_tensors`, in the parameters' memory layout; learning rates are the schedule's."""
    for player, optimiser in optimisers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            owner, index, name = key.split("/", 2)
            if owner == player:
                state.setdefault(int(index), {})[name] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        for p, loaded in optimiser.state.items():
            for name, value in loaded.items():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    loaded[name] = torch.empty_like(p, dtype=value.dtype, requires_grad=False).copy_(value)
