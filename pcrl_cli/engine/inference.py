"""How a fine-tuned network is run when it is not trained: layout, precision, torch.compile."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from pcrl_cli.core.errors import ConfigError, MachineError, Preempted
from pcrl_cli.core.learner import Task
from pcrl_cli.engine import compiling
from pcrl_cli.engine.layout import arrange

AnyTask = TypeVar("AnyTask", bound=Task)


@dataclass(frozen=True)
class Inference:
    """The defaults give the same numbers again: what an epoch is chosen by, and what is published.

    precision: bf16 is autocast; sums, norms and probabilities stay float32.
    compile: torch.compile of the network; its sums are made in another order.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False

    @classmethod
    def of(cls, precision: str, compile: bool) -> "Inference":
        """As asked for; auto is fp32."""
        return cls("bf16" if precision == "bf16" else "fp32", compile)

    @property
    def mark(self) -> str:
        """What differs from the defaults, for a folder's name; empty where nothing does."""
        return "-".join(name for name, on in (("bf16", self.precision == "bf16"), ("compile", self.compile)) if on)

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers must know."""
        said = [text for text, on in ((BF16, self.precision == "bf16"), (COMPILED, self.compile)) if on]
        return [f"{text}; leave the option out for the run's own numbers" for text in said]


BF16 = "the network was run in bfloat16, by which probabilities change in the second or third digit"
COMPILED = "the network was compiled, by which probabilities change by rounding"


def ready(task: AnyTask, device: torch.device, how: Inference) -> AnyTask:
    """The task on the device in eval mode, its network run as asked, in the layout that training has.

    Raises:
        ConfigError: the task has no `network`, and is to be run otherwise than as it is.
    """
    task = arrange(task, device).eval()
    if not how.mark:
        return task
    network = getattr(task, "network", None)
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"{type(task).__name__} has no part called network, which --precision bf16 and --compile run; leave them out"
        )
    forward = _compiled(network) if how.compile else network.forward

    def run(x: Tensor) -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=how.precision == "bf16"):
            return forward(x)

    network.forward = run
    return task


def _stopped(error: BaseException | None) -> Preempted | None:
    """The signal that an error of the compiler is about, if it is about one."""
    while error is not None:
        inner = getattr(error, "inner_exception", None)
        for found in (error, inner):
            if isinstance(found, Preempted):
                return found
        error = error.__cause__ or error.__context__
    return None


def _compiled(network: nn.Module) -> Callable[[Tensor], Any]:
    """The network's forward pass, compiled for a number of samples, and once more for any.

    Raises, when it is called:
        MachineError: there is no working compiler.
    """
    from torch._dynamo.exc import BackendCompilerFailed, InternalTorchDynamoError

    made: Any = torch.compile(network.forward, backend=compiling.BACKEND)

    def forward(x: Tensor) -> Any:
        try:
            return made(x)
        except (BackendCompilerFailed, InternalTorchDynamoError) as error:
            stopped = _stopped(error)
            if stopped is not None:  # a signal came while it compiled
                raise stopped from None
            if not isinstance(error, BackendCompilerFailed):
                raise
            first = f"{error.inner_exception}".strip().splitlines()[0]
            raise MachineError(
                f"torch.compile finds no working compiler here ({first}); leave --compile out"
            ) from error

    return forward
