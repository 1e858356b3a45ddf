"""A learner and a source that take microseconds, and what tests ask of a run folder."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcrl_cli.core.learner import Batch, Learner, Progress, Views, Watched
from pcrl_cli.core.rng import Rng
from pcrl_cli.engine.run import Run
from pcrl_cli.engine.trainer import TrainConfig, Trainer

CPU = torch.device("cpu")
DIM = 6


class Noise(Exception):
    """Raised inside a source, as a power cut would stop the run."""


class Source:
    """Random vectors as a function of the step; `hook(step)` runs in the main thread before each batch."""

    def __init__(
        self,
        per_epoch: int = 5,
        batch: int = 8,
        hook: Callable[[int], None] | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.steps_per_epoch, self.batch_size, self.residency = per_epoch, batch, "ram"
        self.hook, self.rank, self.ranks, self.closed = hook, rank, ranks, 0

    def batches(self, step: int) -> Iterator[tuple[Tensor, Batch]]:
        try:
            while True:
                if self.hook is not None:
                    self.hook(step)
                x = torch.randn(self.batch_size, DIM, generator=torch.Generator().manual_seed(step))
                mine = torch.arange(self.rank, self.batch_size, self.ranks)
                yield step * self.batch_size + mine, {"x": x[mine]}
                step += 1
        finally:
            self.closed += 1


class Toy(Learner):
    """Agreement of two noisy views behind a linear encoder with batch norm; `spare` is reached by no loss."""

    def __init__(self, norm: bool = True, stop_gradient: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Sequential(
                nn.Linear(DIM, 4), nn.BatchNorm1d(4) if norm else nn.Identity(), nn.Linear(4, 3)
            )
            self.spare = nn.Parameter(torch.ones(2))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.poison: Callable[[int, dict[str, Tensor]], dict[str, Tensor]] = lambda step, terms: terms

    @property
    def encoder(self) -> nn.Module:
        return self.linear

    def views(self, batch: Batch, rng: Rng) -> Views:
        x = batch["x"].float()
        return {"a": x + 0.1 * rng.sample.normal(DIM), "b": x + 0.1 * rng.sample.fork("b").normal(DIM), "x": x}

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        a, b = self.linear(views["a"]), self.linear(views["b"])
        target = views["x"][:, :3]
        terms = {"agree": F.mse_loss(a, b), "copy": F.mse_loss(a, target)}
        return self.poison(progress.step, terms)

    def after_step(self, progress: Progress) -> None:
        self.seen += 1

    def diagnostics(self, views: Views) -> dict[str, Watched]:
        f = self.linear(views["a"])
        return {"encoder": Watched(f, f)}


class Game(Toy):
    """Two players over one encoder: `first` copies, `second` undoes it."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Linear(3, 1)
        nn.init.constant_(self.critic.weight, 0.5)
        nn.init.zeros_(self.critic.bias)

    def players(self) -> dict[str, Any]:
        return {"first": list(self.linear.parameters()), "second": list(self.critic.parameters())}

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        score = self.critic(self.linear(views["a"])).square().mean()
        terms = {"game": score if player == "first" else -score}
        return self.poison(progress.step, terms) if player == "second" else terms


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({"epochs": 4, "batch": 8, "lr": 0.05, "check_every": 1000} | changes)


def new_run(folder: Path, **settings: Any) -> Run:
    return Run.open(folder, "pretrain", {"settings": settings}, "f00d", "a: 1\n", False)


def trainer(folder: Path, learner: Learner | None = None, source: Any = None, **options: Any) -> Trainer:
    """A trainer in a (new or continued) run folder; options that TrainConfig knows go there."""
    mine = {k: options.pop(k) for k in list(options) if k in TrainConfig.model_fields}
    run = new_run(folder)
    return Trainer(
        learner or Toy(), source or Source(), config(**mine), run, device=CPU, metadata=lambda step: {}, **options
    )


def stop_at(*steps: int) -> Callable[[int], None]:
    """A hook that breaks the run when the batch of one of these steps is asked for, once each."""
    left = set(steps)

    def hook(step: int) -> None:
        if step in left:
            left.remove(step)
            raise Noise

    return hook


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def losses(folder: Path) -> list[tuple[int, Any]]:
    timed = ("samples_per_second", "data_wait")
    return [(row["step"], sorted((k, v) for k, v in row.items() if k not in timed)) for row in rows(folder)]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the tensors' files of the newest checkpoint."""
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in newest.glob("*.safetensors")}


def everything(t: Trainer) -> dict[str, Tensor]:
    """Weights, buffers and optimisers' tensors, copied."""
    state = {f"model/{k}": v for k, v in t.learner.state_dict().items()}
    for player, optimiser in t.optimisers.items():
        for i, of in optimiser.state_dict()["state"].items():
            state |= {f"{player}/{i}/{k}": v for k, v in of.items() if v is not None}
    return {k: torch.as_tensor(v).clone() for k, v in state.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bitwise, NaN included."""
    return a.keys() == b.keys() and all(a[k].numpy().tobytes() == b[k].numpy().tobytes() for k in a)
