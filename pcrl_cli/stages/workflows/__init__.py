"""What differs between tasks while they are trained and scored, one file a cached group: a task's GROUP names its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from pydantic import BaseModel

from pcrl_cli.core.learner import Task
from pcrl_cli.core.listener import Listener
from pcrl_cli.core.source import Source
from pcrl_cli.data.ahead import CacheOn
from pcrl_cli.data.cache import Cache
from pcrl_cli.engine.distributed import World
from pcrl_cli.pure.metrics import Interval
from pcrl_cli.report.html import Section

WORKFLOWS: dict[str, str] = {
    "candidates": "pcrl_cli.stages.workflows.candidates",
    "images": "pcrl_cli.stages.workflows.images",
    "volumes": "pcrl_cli.stages.workflows.volumes",
}
"""Cached group -> module, imported on use."""

SplitName = Literal["train", "val", "test", "all"]


class Estimate(BaseModel):
    """A value with its 95 % interval and how that was made, or null and the reason."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    interval: str = ""

    @classmethod
    def of(cls, found: Interval, interval: str = "") -> "Estimate":
        return cls(value=found.value, low=found.low, high=found.high, reason=found.note, interval=interval)


@dataclass(frozen=True)
class Work:
    """A task on a cache. module: the task's; settings: of `stages.finetune`.

    out: the evaluation's folder, where a long scoring may leave what it has.
    """

    module: ModuleType
    settings: Any
    cache: Cache
    device: torch.device
    listener: Listener = field(default_factory=Listener)
    out: Path | None = None
    world: World = field(default_factory=World)
    """Among whose ranks validation deals out its cases."""
    learned: tuple[str, ...] = ()
    """The classes that a fine-tuned run learned, which need not be the cache's; empty where the run does not say."""


@dataclass(frozen=True)
class Scores:
    """What scoring a part of a cache gave.

    metrics: by name; `headline` is the one that joint tables show.
    counts: of what was scored: patients, scans, candidates, ...
    details: JSON values beside the metrics. csv: one row a case. sections: curves and pictures for the report.
    """

    metrics: dict[str, Estimate]
    headline: str
    counts: dict[str, int]
    csv: bytes
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)


@runtime_checkable
class Workflow(Protocol):
    """What `stages.finetune` and `stages.evaluate` ask of a group's module."""

    OPTIONS: tuple[str, ...]
    """Of `score`, by name: what `pcrl evaluate` may be told besides, such as all_candidates."""

    def metric_names(self, work: Work) -> tuple[str, ...]:
        """What `score` will give: the names that `--fail-under` may have."""

    def counts(self, work: Work, patients: Sequence[str]) -> dict[str, int]:
        """What these patients' labels are, for the result.

        Raises:
            DataError: there is nothing to learn from them.
        """

    def doubts(self, work: Work, patients: Sequence[str]) -> list[str]:
        """Sentences on what these patients cannot teach, although there is something to learn from them."""

    def source(self, work: Work, patients: Sequence[str], cache_on: CacheOn, world: World) -> Source:
        """Batches of these patients' items, in the order in which the task trains."""

    def can_validate(self, work: Work) -> tuple[bool, str]:
        """Whether the validation part can choose the epoch to keep, and a sentence on what is kept."""

    def validate(self, work: Work, task: Task) -> dict[str, float | None]:
        """val_METRIC, and whatever else is worth logging, on the validation part; the task is in eval mode."""

    def score(self, work: Work, task: Task, split: SplitName, options: Mapping[str, Any]) -> Scores:
        """Everything that `pcrl evaluate` reports; the task is in eval mode."""


def more_labels(work: Work) -> str:
    """What to do where the labelled patients do not show everything."""
    return "raise --ratio, or prepare more" if work.settings.ratio < 1 else "prepare more"


def workflow_of(module: ModuleType) -> Workflow:
    return cast(Workflow, import_module(WORKFLOWS[module.GROUP]))
