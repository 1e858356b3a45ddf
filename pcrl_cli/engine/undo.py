"""A step that must not have happened: what it changed is put back bit for bit, without asking the device how it went."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor, nn


class Flat:
    """Copies of tensors in one flat tensor a type and device: a few kernels for hundreds of small buffers."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for t in tensors:
            groups.setdefault((t.dtype, t.device), []).append(t.detach())
        self.groups = [(group, _joined(group)) for group in groups.values()]

    def restore(self, keep: Bool[Tensor, ""] | None = None) -> None:
        """Puts the copies back; where `keep`, a flag on the device, is true, everything stays as it is now."""
        for group, before in self.groups:
            value = before if keep is None else torch.where(keep.to(before.device), _joined(group), before)
            parts = value.split([t.numel() for t in group])
            torch._foreach_copy_(group, [part.view(t.shape) for part, t in zip(parts, group, strict=True)])


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


class Snapshot:
    """What a step may change before its numbers are known: buffers, and the parameters `moved` that it moves by itself.

    With several players also the parameters and the states of the optimisers `earlier`, all but the last one: they have
    moved by the time that the last player's loss is known. The last one moves when every number is known to be finite.
    """

    def __init__(
        self,
        learner: nn.Module,
        earlier: Sequence[torch.optim.Optimizer] = (),
        moved: Iterable[nn.Parameter] = (),
    ) -> None:
        self.buffers = [
            (module, name, buffer)
            for module in learner.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self.without_state = [optimiser for optimiser in earlier if not optimiser.state]
        theirs = [t for optimiser in earlier for t in _held(optimiser)]
        self.copies = Flat([*(buffer for *_, buffer in self.buffers), *theirs, *moved])

    @torch.no_grad()
    def undo(self) -> None:
        """Everything is as it was."""
        for module, name, buffer in self.buffers:  # a step may also have put another tensor in its place
            module._buffers[name] = buffer
        self.copies.restore()
        for optimiser in self.without_state:
            optimiser.state.clear()

    @torch.no_grad()
    def undo_unless(self, sound: Bool[Tensor, ""]) -> None:
        """The same, decided on the device, where each optimiser had its state before."""
        for module, name, buffer in self.buffers:
            now = module._buffers[name]
            if now is not buffer:
                module._buffers[name] = buffer.copy_(torch.where(sound, now, buffer))  # type: ignore[arg-type]
        self.copies.restore(sound)


def _held(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """What an optimiser's step writes to: its parameters and the tensors of its state, which it keeps in place."""
    parameters = [p for group in optimiser.param_groups for p in group["params"] if p.requires_grad]
    return [*parameters, *(t for of in optimiser.state.values() for t in of.values() if isinstance(t, Tensor))]
