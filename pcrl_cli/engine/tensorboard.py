"""The rows of metrics.jsonl for TensorBoard, an optional extra."""

import importlib.util
from pathlib import Path
from typing import Any

from pcrl_cli.core.errors import MachineError


def require_tensorboard() -> None:
    """Raises:
    MachineError: TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise MachineError(
            "train.tensorboard is set, but TensorBoard is not installed; run `pip install pcrl[tensorboard]` or unset it"
        )


class TensorBoard:
    """Writes every number of a row under its own name.

    Args:
        folder: of the event files; a run that is taken up again adds one.
        step: the first step to come; what an earlier part of the run wrote from there on is hidden by TensorBoard.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and an extra

        self.writer = SummaryWriter(str(folder), purge_step=step)

    def log(self, row: dict[str, Any]) -> None:
        """Every number but the step; texts and missing values are left out."""
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self.writer.add_scalar(name, value, row["step"])

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
