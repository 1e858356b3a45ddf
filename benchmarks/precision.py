"""What bfloat16 does to a gradient and to a training on a CPU, and what another batch or seed does; docs/performance.md.

    python -m benchmarks.precision CACHE [--width 8] [--poolings 5] [--batch 8] [--after 0 30] [--steps 200]

CACHE: of `pcrl prep luna|folder`. Cosines are those of the gradients of all weights with the float32 one, of one batch:

    bf16       autocast, small maps in float32: what `--precision bf16` computes
    rounded    float32 arithmetic; what goes into and comes out of convolutions, linear layers and batch norms, forwards and
               backwards, is rounded to bfloat16: what any right kernel computes, but for the order of its sums
    other      float32, the batch that follows
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.stability import TERMS, Arm, loader_of, run_arm
from benchmarks.step import at_scale, backward
from pcrl_cli.core.learner import Learner, Views
from pcrl_cli.core.rng import Rng
from pcrl_cli.data.cache import Cache, open_cache
from pcrl_cli.engine.layout import arrange
from pcrl_cli.engine.trainer import fill_gradients, make_optimisers
from pcrl_cli.stages.pretrain import build_learner

How = Literal["fp32", "bf16", "rounded"]
CPU = torch.device("cpu")


class Rounded(torch.autograd.Function):
    """To bfloat16 and back, of the value and of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.bfloat16().float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].bfloat16().float()


def _round(x: Tensor) -> Tensor:
    return Rounded.apply(x)


@contextmanager
def rounding() -> Iterator[None]:
    """Within it, the operations that autocast runs in bfloat16 round their operands and results, in float32 arithmetic."""

    def product(of: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, w, *rest, **named: _round(of(_round(x), _round(w), *rest, **named))

    def norm(of: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, *rest, **named: _round(of(x, *rest, **named))

    changes = {"conv3d": product, "conv_transpose3d": product, "linear": product, "batch_norm": norm}
    old = {name: getattr(F, name) for name in changes}
    for name, change in changes.items():
        setattr(F, name, change(old[name]))
    try:
        yield
    finally:
        for name, function in old.items():
            setattr(F, name, function)


def gradient(learner: Learner, views: Views, how: How) -> tuple[float, Tensor]:
    """The loss and the gradient of all weights, flat; 0 where a scale does not reach."""
    with rounding() if how == "rounded" else nullcontext():
        loss = backward(learner, views, bf16=how == "bf16")
    parameters = list(learner.parameters())
    fill_gradients(parameters)
    return float(loss), torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def cosines(arm: Arm, cache: Cache, after: list[int]) -> Iterator[dict[str, Any]]:
    """A row a scale, of the learner after so many steps in float32."""
    settings = arm.settings()
    torch.manual_seed(arm.seed)
    learner = arrange(build_learner(settings, cache), CPU).train()
    (optimiser,) = make_optimisers(learner, settings.train).values()
    source, done = enumerate(loader_of(arm, cache, CPU).batches(0)), 0

    def views() -> Views:
        step, (positions, batch) = next(source)
        with torch.no_grad():
            return learner.views(batch, Rng.at(arm.seed, step, positions))

    for steps in after:
        while done < steps:
            gradient(learner, views(), "fp32")
            optimiser.step()
            done += 1
        one, two = views(), views()
        for scale in range(1, settings.learner.poolings + 1):
            loss, exact = gradient(learner, at_scale(one, scale), "fp32")
            row: dict[str, Any] = {"steps": steps, "scale": f"F{scale}", "loss": f"{loss:.3f}"}
            for how in ("bf16", "rounded"):
                value, found = gradient(learner, at_scale(one, scale), how)
                row[f"loss, {how}"], row[how] = f"{value:.3f}", _cosine(exact, found)
            row["other"] = _cosine(exact, gradient(learner, at_scale(two, scale), "fp32")[1])
            yield row


def _cosine(a: Tensor, b: Tensor) -> str:
    return f"{float(F.cosine_similarity(a.double(), b.double(), dim=0)):.3f}"


def trainings(arm: Arm, cache: Cache) -> Iterator[dict[str, Any]]:
    """A row a training: the means of its last quarter, and the effective rank of the encoder's features at its end."""
    for precision, seed in (("fp32", 0), ("bf16", 0), ("fp32", 1), ("bf16", 1)):
        with tempfile.TemporaryDirectory() as folder:
            rows = run_arm(replace(arm, precision=precision, seed=seed), cache, Path(folder) / "run")
        last = rows[-max(1, len(rows) // 4) :]
        ranks = [row["rank/encoder"] for row in rows if row.get("rank/encoder") is not None]
        yield {
            "precision": precision,
            "seed": seed,
            "steps": len(rows),
            **{term: f"{mean(row[f'loss/{term}'] for row in last):.4f}" for term in TERMS},
            "rank": f"{ranks[-1]:.1f}" if ranks else "",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    for name, value in (("--width", 8), ("--poolings", 5), ("--batch", 8), ("--steps", 200)):
        parser.add_argument(name, type=int, default=value)
    parser.add_argument("--after", type=int, nargs="+", default=[0, 30])
    options = parser.parse_args()
    torch.set_num_threads(1)
    cache = open_cache(options.cache)
    arm = Arm("precision", options.steps, width=options.width, batch=options.batch, poolings=options.poolings)
    for rows in (cosines(arm, cache, options.after), trainings(arm, cache)):
        for i, row in enumerate(rows):
            if i == 0:
                print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
            print("| " + " | ".join(map(str, row.values())) + " |", flush=True)
        print()


if __name__ == "__main__":
    main()
