"""One step again, watched: which number was the first that is not finite."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pcrl_cli.core.learner import Batch, Learner, Progress
from pcrl_cli.core.rng import Rng
from pcrl_cli.engine.tf32 import tf32

Kind = Literal["weight", "batch", "view", "module", "loss", "gradient"]
MOST = 5
"""Findings of each kind that are told."""


@dataclass(frozen=True)
class Finding:
    """A tensor with values that are not finite.

    kind: a weight or buffer; an array of the batch; a view; the output of a module, in the forward pass; a term of the
    loss; a gradient, of a module's output or of a parameter, in the order of the backward pass.
    """

    kind: Kind
    name: str
    bad: int
    """Values that are NaN or infinite ..."""
    of: int
    """... of so many."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({self.bad} of {self.of} values)"


@dataclass
class Replayed:
    """A step's terms and gradient norm by player, and what was not finite, in the order in which it came to be."""

    terms: dict[str, dict[str, float]] = field(default_factory=dict)
    gradient_norm: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def first(self) -> Finding | None:
        return self.findings[0] if self.findings else None


def replay_step(
    learner: Learner, batch: Batch, seed: int, step: int, steps: int, precision: Literal["fp32", "bf16"]
) -> Replayed:
    """Views, losses and gradients of one step, as training computes them; no optimiser moves anything.

    Args:
        learner: on the device, with the weights of that step.
        batch: with `positions`, on the same device.

    With several players every one is looked at with the weights of before the step.
    """
    done, device = Replayed(), next(learner.parameters()).device
    learner.train()
    _note(done, "weight", learner.state_dict())
    _note(done, "batch", batch)
    positions = batch["positions"]
    arrays = {name: value for name, value in batch.items() if name != "positions"}
    with torch.no_grad():
        views = learner.views(arrays, Rng.at(seed, step, positions))
    _note(done, "view", dict(_tensors(views)))
    for player, groups in learner.players().items():
        with ExitStack() as stack, tf32(False):
            backward = _watch(learner, done, stack)
            learner.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                terms = learner(views, Progress(step, steps), player)
            values = torch.stack([term.float() for term in terms.values()])
            done.terms[player] = dict(zip(terms, values.tolist(), strict=True))
            _note(done, "loss", {name: value.detach() for name, value in terms.items()})
            values.sum().backward()
        done.findings += backward[:MOST]
        names = {id(p): name for name, p in learner.named_parameters()}
        gradients = {names[id(p)]: p.grad for p in _parameters(groups) if p.grad is not None}
        done.gradient_norm[player] = float(nn.utils.get_total_norm(gradients.values())) if gradients else 0.0
        _note(done, "gradient", gradients)
    return done


def _watch(learner: Learner, done: Replayed, stack: ExitStack) -> list[Finding]:
    """Hooks that note every module's output that is not finite; returns where its gradients will be noted."""
    backward: list[Finding] = []
    noted = 0

    def watch(name: str, module: nn.Module) -> None:
        def forward(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal noted
            for where, tensor in _tensors(output, name):
                bad = _bad(tensor)
                if bad and noted < MOST:
                    noted += 1
                    done.findings.append(Finding("module", where, bad, tensor.numel()))
                if tensor.requires_grad:
                    tensor.register_hook(lambda g, where=where: _gradient(where, g))

        stack.callback(module.register_forward_hook(forward).remove)

    def _gradient(name: str, gradient: Tensor) -> None:
        bad = _bad(gradient)
        if bad:
            backward.append(Finding("gradient", f"of {name}'s output", bad, gradient.numel()))

    for name, module in learner.named_modules():
        if name:  # the learner itself gives the losses
            watch(name, module)
    return backward


def _note(done: Replayed, kind: Kind, tensors: Mapping[str, Tensor]) -> None:
    found = [Finding(kind, name, _bad(tensor), tensor.numel()) for name, tensor in tensors.items() if _bad(tensor)]
    done.findings += found[:MOST]


def _bad(tensor: Tensor) -> int:
    """Values that are NaN or infinite."""
    if not tensor.is_floating_point() and not tensor.is_complex():
        return 0
    return int((~torch.isfinite(tensor.detach())).sum())


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested containers, by its path."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _tensors(item, f"{name}[{i}]")


def _parameters(groups: Iterable[Any]) -> Iterator[nn.Parameter]:
    """A player's parameters, which may come in optimiser groups."""
    for group in groups:
        yield from group["params"] if isinstance(group, dict) else (group,)
