"""A slowly following copy of a network, and the queue of the keys that it gave. All of it is in the state."""

import copy
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from pcrl_cli.pure.contrast import info_nce, nce, nce_constant, similarities

Module = TypeVar("Module", bound=nn.Module)
Passed = TypeVar("Passed", Tensor, list[Tensor])


def momentum_copy(student: Module) -> Module:
    """A copy whose parameters no optimiser moves; `follow` does."""
    teacher = copy.deepcopy(student)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return teacher


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float = 0.999) -> None:
    """teacher <- m teacher + (1 - m) student, parameters only: buffers are the teacher's own batch statistics."""
    for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
        t.lerp_(s, 1.0 - momentum)


def trainable(module: nn.Module) -> Iterable[nn.Parameter]:
    return (p for p in module.parameters() if p.requires_grad)


class Queue(nn.Module):
    """The last keys, first in, first out; at the beginning random unit vectors."""

    keys: Float[Tensor, "k d"]
    pointer: Int64[Tensor, ""]

    def __init__(self, length: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(length, channels), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Float[Tensor, "b d"]) -> None:
        """Puts keys in the place of the oldest; the end of the queue is followed by its beginning."""
        length = len(self.keys)
        keys = keys[-length:].to(self.keys.dtype)
        places = (self.pointer + torch.arange(len(keys), device=self.keys.device)) % length
        self.keys.index_copy_(0, places, keys)
        self.pointer.copy_((self.pointer + len(keys)) % length)


class Contrast(nn.Module):
    """A contrastive loss whose negatives are the keys of past steps.

    Args:
        samples: N of the binary noise-contrastive estimation; None: InfoNCE.
    """

    z: Float[Tensor, ""]

    def __init__(self, length: int, channels: int, temperature: float, samples: int | None = None) -> None:
        super().__init__()
        self.queue, self.temperature, self.samples = Queue(length, channels), temperature, samples
        self.register_buffer("z", torch.zeros(()))  # of NCE; 0 until the first batch has told it
        self.noted: tuple[Tensor, Tensor] | None = None

    def logits(self, q: Float[Tensor, "b d"], k: Float[Tensor, "b d"]) -> Float[Tensor, "b n"]:
        """Of the positive key (first) and of the queue's keys."""
        return similarities(
            q, k, self.queue.keys.clone(), self.temperature
        )  # the queue moves on before a late backward

    def forward(self, logits: Float[Tensor, "b n"]) -> Float[Tensor, ""]:
        if self.samples is None:
            return info_nce(logits)
        return nce(logits, torch.where(self.z > 0, self.z, nce_constant(logits, self.samples)), self.samples)

    def note(self, k: Float[Tensor, "b d"], logits: Float[Tensor, "b n"]) -> None:
        """What `remember` will take up, if the step is made."""
        z = self.z if self.samples is None else nce_constant(logits, self.samples)
        self.noted = F.normalize(k.detach().float(), dim=1), torch.where(self.z > 0, self.z, z)

    @torch.no_grad()
    def remember(self, together: Callable[[Tensor], Tensor]) -> None:
        """Keys, those of all ranks, into the queue; the first batch's constant is kept."""
        if self.noted is not None:
            keys, z = self.noted
            self.queue.push(together(keys))
            self.z.copy_(together(z.reshape(1)).mean())
        self.noted = None


def in_groups(forward: Callable[[Tensor], Passed], x: Tensor, order: Int[Tensor, " b"], groups: int = 2) -> Passed:
    """forward(x), a tensor or a list of them, by groups of a shuffled batch, put back in order.

    Every group has its own batch statistics: keys whose statistics are not those of their queries cannot be told by them
    (ShuffleBN on one device). A batch of fewer than two samples a group passes whole.
    """
    groups = max(1, min(groups, len(x) // 2))
    passed, back = [forward(part) for part in x[order].tensor_split(groups)], order.argsort()
    if isinstance(passed[0], list):
        return [torch.cat(level)[back] for level in zip(*passed, strict=True)]
    return torch.cat(passed)[back]
