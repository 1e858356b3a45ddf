"""A step that must not have happened: what it changed is put back bit for bit, without asking the device how it went."""

import copy
from collections.abc import Iterable, Mapping, Sequence

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

    With several optimisers their states and all parameters too: the first player has moved by the time that the second
    one's loss is known. With one, nothing moves before every number is known to be finite.
    """

    def __init__(
        self, learner: nn.Module, optimisers: Mapping[str, torch.optim.Optimizer], moved: Iterable[nn.Parameter] = ()
    ) -> None:
        self.buffers = [
            (module, name, buffer)
            for module in learner.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        several = len(optimisers) > 1
        also = learner.parameters() if several else moved
        self.copies = Flat([*(buffer for *_, buffer in self.buffers), *also])
        self.states = [(o, copy.deepcopy(o.state_dict()["state"])) for o in optimisers.values()] if several else []

    @torch.no_grad()
    def undo(self) -> None:
        """Everything is as it was."""
        for module, name, buffer in self.buffers:  # a step may also have put another tensor in its place
            module._buffers[name] = buffer
        self.copies.restore()
        for optimiser, state in self.states:
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})

    @torch.no_grad()
    def undo_unless(self, sound: Bool[Tensor, ""]) -> None:
        """The same, decided on the device; for one optimiser, which decides about its own parameters by itself."""
        assert not self.states
        for module, name, buffer in self.buffers:
            now = module._buffers[name]
            if now is not buffer:
                module._buffers[name] = buffer.copy_(torch.where(sound, now, buffer))  # type: ignore[arg-type]
        self.copies.restore(sound)
