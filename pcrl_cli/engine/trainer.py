"""The loop that trains any Learner: device, precision, schedule, finite check, checkpoints, signals."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from pcrl_cli.core.config import Settings
from pcrl_cli.core.errors import MachineError, NumericalError, Preempted
from pcrl_cli.core.learner import Batch, Learner, Progress, Views
from pcrl_cli.core.listener import Listener
from pcrl_cli.core.rng import Rng
from pcrl_cli.core.source import Source
from pcrl_cli.engine.collapse import CollapseWatch, measure
from pcrl_cli.engine.compiling import compiled, require_compilable
from pcrl_cli.engine.distributed import World
from pcrl_cli.engine.layout import arrange
from pcrl_cli.engine.reduce import Averager
from pcrl_cli.engine.run import Checkpoint, Run, optimiser_tensors, restore_optimisers
from pcrl_cli.engine.schedule import Schedule, factor
from pcrl_cli.engine.signals import StopFlag
from pcrl_cli.engine.stopwatch import Stopwatch
from pcrl_cli.engine.sync_norm import synchronise
from pcrl_cli.engine.tensorboard import TensorBoard, require_tensorboard
from pcrl_cli.engine.tf32 import tf32
from pcrl_cli.engine.undo import Snapshot

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]


class TrainConfig(Settings):
    """Optimisation. Section 4.3 of the paper, completed."""

    epochs: int = Field(240, ge=1)
    steps: int | None = Field(None, ge=1, description="instead of epochs")
    batch: int = Field(32, ge=2, description="samples a step, over all ranks; batch norm needs two")
    optimiser: Literal["sgd", "adam"] = "sgd"
    lr: float = Field(1e-2, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-5, ge=0)
    schedule: Schedule = "cosine"
    halve_every_epochs: int = Field(50, ge=1)
    step_epochs: tuple[int, ...] = Field((), description="of schedule steps: from each of these on a tenth of the rate")
    warmup_steps: int = Field(0, ge=0, description="linear; at most a tenth of the run")
    clip_norm: float | None = Field(None, gt=0, description="gradient clipping, off by default")
    skip_loss_above: float | None = Field(None, description="released code: such a step is skipped")
    skip_loss_after_epoch: int = 10
    seed: int = Field(0, ge=0)
    precision: Precision = "auto"
    log_every: int | None = Field(
        None, ge=1, description="steps whose losses are fetched from the device at once; none: 1 on a CPU, 10 on a GPU"
    )
    compile: bool = Field(False, description="torch.compile, one graph a scale; its error is that of other fused sums")
    sync_batch_norm: bool = Field(False, description="batch norm over the samples of all ranks, not of each")
    deals: int = Field(
        1,
        ge=1,
        description="parts into which items are dealt for the whole run; ranks then keep only their parts in memory",
    )
    check_every: int = Field(50, ge=1, description="steps between two looks at rank and std of the features")
    stop_on_collapse: bool = False
    keep: int = Field(2, ge=2, description="checkpoints kept")
    checkpoint_minutes: float = Field(10.0, gt=0)
    tensorboard: bool = Field(False, description="also write RUN/tensorboard; pip install pcrl[tensorboard]")

    def warmup(self, steps: int) -> int:
        """Warm-up steps of a run of so many: `warmup_steps`, but never more than a tenth of the run."""
        return min(self.warmup_steps, steps // 10)


@dataclass
class Spent:
    """What all legs of a run took together, up to the last checkpoint of each.

    waited: seconds of `seconds` that were spent waiting for data.
    """

    seconds: float = 0.0
    waited: float = 0.0
    samples: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a training ended; times and rates are of all its legs."""

    steps: int
    seconds: float
    samples_per_second: float
    data_wait: float
    """Share of the time that was spent waiting for data."""
    alarms: list[str] = field(default_factory=list)
    best: dict[str, Any] | None = None


@dataclass
class Made:
    """A step that was made. Its numbers lie on the device until `Trainer._known` fetches those of several steps."""

    step: int
    row: dict[str, Any]
    terms: dict[str, tuple[str, ...]]
    """By player, in the order in which they move."""
    numbers: list[Float[Tensor, " n"]]
    """Of each player: its terms' means, the wishes to stop and to save, its gradient's norm, 1 if its weights moved."""
    positions: Tensor
    batch: Batch


Validate = Callable[[Learner, int], dict[str, float | None]]
"""(learner, step) -> figures to log; called after every epoch, in eval mode, without gradients, in float32."""


def resolve_device(device: Device) -> torch.device:
    """The device to train on.

    Raises:
        MachineError: `cuda` was asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise MachineError("--device cuda, but this machine shows no CUDA GPU; leave --device out or run `pcrl doctor`")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` is bf16 autocast on CUDA, fp32 on the CPU. What bf16 does to gradients: docs/performance.md."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


def make_optimisers(
    learner: Learner, config: TrainConfig, fused: bool | None = None
) -> dict[str, torch.optim.Optimizer]:
    """One optimiser a player; a group may bring its own `lr`, and `fixed=True` keeps it off the schedule.

    fused: one kernel for all parameters, which can also leave them as they are at the word of a flag on the device.
    """
    optimisers: dict[str, torch.optim.Optimizer] = {}
    for player, parameters in learner.players().items():
        if config.optimiser == "sgd":
            optimiser: torch.optim.Optimizer = torch.optim.SGD(
                parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused
            )
        else:
            optimiser = torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
        for group in optimiser.param_groups:
            group.setdefault("base_lr", group["lr"])
            group.setdefault("fixed", False)
        optimisers[player] = optimiser
    return optimisers


def fill_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """An untouched parameter's gradient is 0, so momentum and decay go on."""
    missing = [p for p in parameters if p.grad is None]
    for p in missing:
        p.grad = torch.empty_like(p)
    if missing:
        torch._foreach_zero_([p.grad for p in missing if p.grad is not None])


def require_trainable(config: TrainConfig, learner: type[Learner]) -> None:
    """What can be refused before a run's folder is made.

    Raises:
        ConfigError: `compile` does not fit the learner.
        MachineError: TensorBoard is asked for and not installed.
    """
    if config.compile:
        require_compilable(learner)
    if config.tensorboard:
        require_tensorboard()


class Trainer:
    """Trains a learner from a source into a run folder; `fit` can be interrupted anywhere and called again.

    Args:
        learner: on any device; it is moved.
        source: batches as a function of the step.
        run: where metrics and checkpoints go, and where a previous part of the same run is found.
        metadata: of the weights: the contract.
        validate: called after every epoch.
        best: the validated figure whose maximum is kept in `best/`; None keeps the last weights only.
    """

    def __init__(
        self,
        learner: Learner,
        source: Source,
        config: TrainConfig,
        run: Run,
        *,
        device: torch.device,
        metadata: Callable[[int], dict[str, str]],
        world: World | None = None,
        validate: Validate | None = None,
        best: str | None = None,
        listener: Listener | None = None,
    ) -> None:
        self.config, self.run, self.source, self.device = config, run, source, device
        self.world = world or World()
        self.metadata, self.validate, self.best_name = metadata, validate, best
        self.listener = listener if listener is not None and self.world.talks else Listener()
        require_trainable(config, type(learner))
        self.precision = resolve_precision(config.precision, device)
        self.learner = arrange(learner, device)
        if self.world.size > 1:
            self.learner.together = self.world.gather  # type: ignore[method-assign]
        if config.sync_batch_norm and self.world.size > 1:
            synchronise(self.learner)
        self.log_every = config.log_every or (10 if device.type == "cuda" else 1)
        self.optimisers = make_optimisers(
            self.learner, config, fused=device.type == "cuda" or self.log_every > 1 or None
        )
        self.averagers = {player: Averager(self._parameters(player), self.world) for player in self.optimisers}
        self.terms = compiled(self.learner) if config.compile else self.learner
        self.per_epoch = source.steps_per_epoch
        self.steps = config.steps or config.epochs * self.per_epoch
        self.watch = CollapseWatch()
        self.step = 0
        self.best: dict[str, Any] | None = None
        self.alarms: list[str] = []
        self.spent, self.clock = Spent(), time.perf_counter()
        self.stop = StopFlag()
        self.board: TensorBoard | None = None
        self.saved_at = time.monotonic()
        self.wish_to_stop = self.wish_to_save = False  # of any rank, as of the last exchange
        self.watch_clock = Stopwatch(device)
        self.made: list[Made] = []
        self.sound = torch.ones((), dtype=torch.bool, device=device)  # no step since the last look was not finite

    # ---- the loop ------------------------------------------------------------------------------------------------

    def fit(self) -> Outcome:
        """Trains to the end.

        Raises:
            NumericalError: a non-finite loss or gradient (weights unchanged, batch captured), or a collapse that
                `stop_on_collapse` stops.
            Preempted: a signal came; everything is saved.
        """
        self._resume()
        self.world.broadcast(self.learner)
        with ExitStack() as stack:
            stack.enter_context(tf32(False))  # fp32 means fp32, and validation is what `pcrl evaluate` computes
            self.listener.begin("training", self.steps, "steps", self.step)
            stack.callback(self.listener.end)
            if self.config.tensorboard and self.world.talks:
                self.board = TensorBoard(self.run.folder / "tensorboard", self.step)
                stack.callback(self.board.close)
            stack.enter_context(self.stop.listening())
            batches = self.source.batches(self.step)
            stack.callback(getattr(batches, "close", lambda: None))  # ends a thread that reads ahead
            return self._loop(batches)

    def _loop(self, batches: Iterator[tuple[Tensor, Batch]]) -> Outcome:
        self.clock, self.saved_at = time.perf_counter(), time.monotonic()
        self.watch_clock.restart()
        while self.step < self.steps:
            self.watch_clock.ask()
            positions, batch = next(batches)
            self.watch_clock.got()
            rows: list[dict[str, Any]] = []
            if self._may_be_blind():
                views = self._blind_step(positions, batch)
                if not self._must_look():
                    continue
                rows = self._known()
                if self._looks():
                    rows[-1] |= self._check(views)
            else:
                rows = [self._one_step(positions, batch)]
            self._timed(rows)
            at_end = self.step % self.per_epoch == 0 or self.step == self.steps
            if at_end and self.validate is not None:
                rows[-1] |= self._validated()
            for row in rows:
                self._log(row)
            self._save_or_stop(at_end)
            self.watch_clock.restart()
        if self._has_collapsed():  # before, in a run that ended so
            raise self._collapse()
        self._tick()
        seconds = max(self.spent.seconds, 1e-9)
        rate, waited = self.spent.samples / seconds, self.spent.waited / seconds
        return Outcome(self.step, self.spent.seconds, rate, waited, self.alarms, self.best)

    def _timed(self, rows: list[dict[str, Any]]) -> None:
        """Rate and wait of the steps since the last look, the same for each of them."""
        seconds, waited = self.watch_clock.window()
        samples = len(rows) * self.source.batch_size
        self.spent.waited += waited
        self.spent.samples += samples
        for row in rows:
            row |= {"samples_per_second": samples / seconds, "data_wait": waited / seconds}

    def _must_look(self) -> bool:
        """Whether the numbers of the steps made so far are needed now: every n steps, and before anything is written."""
        at_end = self.step % self.per_epoch == 0 or self.step == self.steps
        asked = self.world.size == 1 and (self.stop.on or self._due())
        return self.step % self.log_every == 0 or at_end or asked or self._looks()

    def _tick(self) -> None:
        """Adds the time since the last tick to what the run took."""
        now = time.perf_counter()
        self.spent.seconds, self.clock = self.spent.seconds + now - self.clock, now

    def _save_or_stop(self, at_end: bool) -> None:
        """What follows a step: a checkpoint when one is due; the end if a signal came or the features collapsed."""
        alone = self.world.size == 1  # several ranks must agree, so they go by what they last told each other
        stop = self.stop.on if alone else self.wish_to_stop
        collapsed = self._looks() and self._has_collapsed()
        if at_end or stop or collapsed or (self._due() if alone else self.wish_to_save):
            self.save()
        if collapsed:
            raise self._collapse()
        if stop:
            raise Preempted(
                f"stopped by a signal at step {self.step} of {self.steps}, everything is saved in "
                f"{self.run.folder}; run the same command again to go on"
            )

    def _has_collapsed(self) -> bool:
        return self.config.stop_on_collapse and bool(self.watch.collapsed)

    def _collapse(self) -> NumericalError:
        return NumericalError(
            f"the features {', '.join(self.watch.collapsed)} have collapsed by step {self.step}: see rank/ and std/ in "
            f"{self.run.metrics_path}; lower train.lr or raise the batch, or leave --stop-on-collapse out"
        )

    def _due(self) -> bool:
        return time.monotonic() - self.saved_at > 60 * self.config.checkpoint_minutes

    def _looks(self) -> bool:
        """Whether rank and std of the features were looked at after the step just made."""
        return self.step % self.config.check_every == 0 or self.step == self.steps

    def _one_step(self, positions: Tensor, batch: Batch) -> dict[str, Any]:
        """Views, losses, a step of every player; the row to log. Changes nothing if a number is not finite."""
        progress = Progress(self.step, self.steps)
        before = Snapshot(self.learner, self._earlier())
        views, row = self._begin(positions, batch)
        for player, optimiser in self.optimisers.items():
            names, values = self._gradients(views, progress, player)
            terms, norm = self._heard(names, values.tolist())  # the step's only wait
            row |= self._part_of_row(player, terms, norm)
            if not math.isfinite(sum(terms.values()) + norm):  # of the means over the ranks: all come here or none
                before.undo()
                self._not_finite(batch, positions, terms, norm)
            if self._may_skip() and sum(terms.values()) > self._skipped_above:
                before.undo()
                row["skipped"] = 1
                break
            optimiser.step()
        else:
            self.learner.after_step(progress)
        self.step += 1
        if self._looks():
            row |= self._check(views)
        return row

    def _begin(self, positions: Tensor, batch: Batch) -> tuple[Views, dict[str, Any]]:
        """The views of a step, and its row as far as the host knows it."""
        self.learner.train()
        self.wish_to_stop = self.wish_to_save = False
        with torch.no_grad():
            views = self.learner.views(batch, Rng.at(self.config.seed, self.step, positions))
        return views, {"step": self.step, "epoch": self.step // self.per_epoch, "lr": self._set_lr()}

    def _earlier(self) -> list[torch.optim.Optimizer]:
        """The optimisers that move before the last player's numbers are known."""
        return list(self.optimisers.values())[:-1]

    def _part_of_row(self, player: str, terms: dict[str, float], norm: float) -> dict[str, Any]:
        prefix = f"{player}/" if len(self.optimisers) > 1 else ""
        return {f"loss/{prefix}{name}": value for name, value in terms.items()} | {f"{prefix}gradient_norm": norm}

    def _may_be_blind(self) -> bool:
        """Whether the next step may go on before its numbers are known; the first one makes the optimisers' states."""
        return self.log_every > 1 and all(o.state for o in self.optimisers.values())

    def _blind_step(self, positions: Tensor, batch: Batch) -> Views:
        """The same step without asking the device for a number.

        Whether everything is finite is a flag there. Where it is not, the optimisers' kernels return at once, what moved
        before and the buffers are put back, and so it stays in the steps that follow, until `_known` finds the first of
        them and stops the run.
        """
        progress = Progress(self.step, self.steps)
        before = Snapshot(self.learner, self._earlier(), self._moved_after_steps())
        views, row = self._begin(positions, batch)
        made = Made(self.step, row, {}, [], positions, batch)
        moved = self.sound
        for player, optimiser in self.optimisers.items():
            made.terms[player], values = self._gradients(views, progress, player)
            finite = values.isfinite().all()
            self.sound = self.sound & (finite | ~moved)  # after a loss so large that the step is skipped nobody asks
            moved = moved & finite
            if self._may_skip():
                moved = moved & (values[: len(made.terms[player])].sum() <= self._skipped_above)
            optimiser.found_inf = (~moved).float()  # type: ignore[attr-defined]
            optimiser.step()
            optimiser.found_inf = None  # type: ignore[attr-defined]
            made.numbers.append(torch.cat([values, moved.reshape(1).to(values)]))
        self.learner.after_step(progress)
        before.undo_unless(moved)
        self.made.append(made)
        self.step += 1
        return views

    def _moved_after_steps(self) -> list[nn.Parameter]:
        """Parameters of nobody's, which the learner moves by itself after a step."""
        if type(self.learner).after_step is Learner.after_step:
            return []
        owned = {id(p) for player in self.optimisers for p in self._parameters(player)}
        return [p for p in self.learner.parameters() if id(p) not in owned]

    def _known(self) -> list[dict[str, Any]]:
        """The rows of the steps made since the last look; waits for the device.

        Raises:
            NumericalError: one of them was not finite; what follows it is forgotten, and it changed nothing.
        """
        made, self.made = self.made, []
        values = iter(torch.cat([part for m in made for part in m.numbers]).tolist())  # the only wait of so many steps
        rows: list[dict[str, Any]] = []
        for m in made:
            row = m.row
            parts = [list(islice(values, len(part))) for part in m.numbers]
            for (player, names), (*mine, moved) in zip(m.terms.items(), parts, strict=True):
                terms, norm = self._heard(names, mine)
                row |= self._part_of_row(player, terms, norm)
                if not math.isfinite(sum(terms.values()) + norm):
                    self._timed(rows)
                    for known in rows:
                        self._log(known)
                    self.step, self.sound = m.step, torch.ones_like(self.sound)
                    self._not_finite(m.batch, m.positions, terms, norm)
                if not moved:
                    row["skipped"] = 1
                    break
            rows.append(row)
        return rows

    def _parameters(self, player: str) -> list[nn.Parameter]:
        groups = self.optimisers[player].param_groups
        return [p for group in groups for p in group["params"] if p.requires_grad]

    def _gradients(self, views: Views, progress: Progress, player: str) -> tuple[tuple[str, ...], Float[Tensor, " _"]]:
        """Fills every gradient of the player (zeros where the losses do not reach).

        Returns the terms' names; their means over the ranks, whether any rank wishes to stop and to save, and the norm.
        """
        parameters, averager = self._parameters(player), self.averagers[player]
        self.learner.zero_grad(set_to_none=True)
        averager.begin()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            terms = self.terms(views, progress, player)
        values = torch.stack([t.float() for t in terms.values()])
        values.sum().backward()
        fill_gradients(parameters)
        averager.finish()
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.config.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.config.clip_norm, norm)
        return tuple(terms), torch.cat([self._told(values.detach()), norm.reshape(1)])

    def _told(self, terms: Float[Tensor, " n"]) -> Float[Tensor, " n+2"]:
        """The terms' means over the ranks, and whether any rank was asked to stop, or to save by rank 0's clock."""
        wishes = [float(self.stop.on), float(self.world.talks and self._due())]
        return self.world.mean(torch.cat([terms, *(terms.new_full((1,), wish) for wish in wishes)]))

    def _heard(self, names: Sequence[str], values: list[float]) -> tuple[dict[str, float], float]:
        """The terms by name and the norm; notes what the ranks wish."""
        *means, stop, save, norm = values
        self.wish_to_stop |= stop > 0
        self.wish_to_save |= save > 0
        return dict(zip(names, means, strict=True)), norm

    @property
    def _skipped_above(self) -> float:
        return math.inf if self.config.skip_loss_above is None else self.config.skip_loss_above

    def _may_skip(self) -> bool:
        """Whether a step with a large loss is skipped now (released code)."""
        c = self.config
        return c.skip_loss_above is not None and self.step >= c.skip_loss_after_epoch * self.per_epoch

    def _set_lr(self) -> float:
        c = self.config
        warmup = c.warmup(self.steps)
        f = factor(c.schedule, self.step, self.steps, warmup, self.per_epoch, c.halve_every_epochs, c.step_epochs)
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = group["base_lr"] * (1.0 if group["fixed"] else f)
        return c.lr * f

    def _not_finite(self, batch: Batch, positions: Tensor, terms: dict[str, float], norm: float) -> None:
        bad = [name for name, value in terms.items() if not math.isfinite(value)] or ["the gradient"]
        state = {
            "step": self.step,
            "steps": self.steps,
            "seed": self.config.seed,
            "terms": {k: repr(v) for k, v in terms.items()},
            "gradient_norm": repr(norm),
        }
        where = self.run.capture(self.step, {**batch, "positions": positions}, state, self.world.rank)
        self.save()
        raise NumericalError(
            f"{', '.join(bad)} is not finite at step {self.step}: no weight was changed and the batch is kept in {where}; "
            "lower train.lr, set train.clip_norm, or look for NaN in the data"
        )

    # ---- looking -------------------------------------------------------------------------------------------------

    def _check(self, views: Views) -> dict[str, float]:
        """Rank and std of the features and the learner's own figures.

        With batch statistics as in training, leaving no trace in the buffers.
        """
        before = Snapshot(self.learner)
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            watched, extra = self.learner.diagnostics(views), self.learner.figures(views)
        before.undo()
        figures = measure(watched) | {name: float(value) for name, value in extra.items()}
        if self.world.size > 1 and figures:  # the ranks' own batches; they must come to one judgement
            means = self.world.mean(torch.tensor(list(figures.values()), device=self.device)).tolist()
            figures = dict(zip(figures, means, strict=True))
        for text in self.watch.judge(figures):
            self.alarms.append(f"step {self.step}: {text}")
            self.listener.warn(f"at step {self.step} {text}")
        return figures

    def _validated(self) -> dict[str, Any]:
        assert self.validate is not None
        self.learner.eval()
        self.world.broadcast_buffers(self.learner)
        with torch.no_grad():  # in float32, so that `pcrl evaluate` finds the number that chose the epoch
            figures = self.validate(self.learner, self.step)
        value = figures.get(self.best_name) if self.best_name else None
        if value is not None and math.isfinite(value) and (self.best is None or value > self.best["value"]):
            self.best = {"name": self.best_name, "value": value, "step": self.step}
            if self.world.talks:
                self.run.save_best(self._checkpoint(), self.metadata(self.step))
        return dict(figures)

    def _log(self, row: dict[str, Any]) -> None:
        if self.world.talks:
            self.run.log(row)
        if self.board is not None:
            self.board.log(row)
        loss = sum(v for k, v in row.items() if k.startswith("loss/"))
        self.listener.advance(self.step, loss=loss, samples_per_second=row["samples_per_second"])

    # ---- saving --------------------------------------------------------------------------------------------------

    def _checkpoint(self) -> Checkpoint:
        self._tick()
        state = {
            "step": self.step,
            "steps": self.steps,
            "seed": self.config.seed,
            "best": self.best,
            "watch": self.watch.low,
            "alarms": self.alarms,
            "spent": asdict(self.spent),
        }
        return Checkpoint(self.learner.state_dict(), optimiser_tensors(self.optimisers), state)

    def save(self) -> None:
        """Seals a checkpoint of the present step."""
        if self.world.talks:
            self.run.save(self._checkpoint(), self.metadata(self.step), self.config.keep)
        if self.board is not None:
            self.board.flush()
        self.saved_at = time.monotonic()
        self.world.barrier()

    def _resume(self) -> None:
        """Takes up the newest sound checkpoint, or starts.

        Raises:
            IntegrityError: there are checkpoints and none is sound.
            MachineError: the ranks do not see the same ones.
        """
        if self.world.talks:
            self.run.tidy()
        self.world.barrier()
        checkpoint = self.run.newest(self.listener.warn)
        if checkpoint is not None:
            self._restore(checkpoint)
            self.listener.say(f"continuing at step {self.step} of {self.steps}")
        if not self.world.agrees(self.step, self.device):
            raise MachineError(
                f"the ranks see different checkpoints in {self.run.folder}; put it on a disk that all nodes share"
            )
        damaged = self.run.rewind_metrics(self.step) if self.world.talks else 0
        if damaged:
            self.listener.warn(f"{self.run.metrics_path} had {damaged} damaged rows, which are left out")

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.learner.load_state_dict(checkpoint.model)
        restore_optimisers(self.optimisers, checkpoint.optim)
        self.step = int(checkpoint.state["step"])
        self.best, self.alarms = checkpoint.state["best"], list(checkpoint.state["alarms"])
        self.watch.low = dict(checkpoint.state["watch"])
        self.spent = Spent(**checkpoint.state.get("spent", {}))
        if self.best is not None and not self.run.best_is_sound():
            self.listener.warn(f"{self.run.folder / 'best'} is damaged; the next validation begins it anew")
            self.best = None
