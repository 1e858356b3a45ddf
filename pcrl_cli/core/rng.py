"""Stateless randomness: a random number is a function of (seed, step, position of the sample, count of the draw).

Nothing here is sequential over samples, so a sample is augmented alike in any batch, on any number of ranks, and a
resumed run needs only its step. The generator is a keyed integer hash (two rounds of the 32-bit `lowbias32` mixer, a
key word injected before each), evaluated over the whole batch at once on the batch's device. It is meant for
augmentation, not for cryptography.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

_M1, _M2 = 0x7FEB352D, 0x846CA68B - (1 << 32)  # lowbias32's multipliers, as signed 32-bit words


def mix(x: Int32[Tensor, "*s"]) -> Int32[Tensor, "*s"]:
    """lowbias32: a bijection of 32-bit words."""
    x = _fold(x, 16).mul_(_M1)
    x = _fold(x, 15).mul_(_M2)
    return _fold(x, 16)


def _fold(x: Int32[Tensor, "*s"], shift: int) -> Int32[Tensor, "*s"]:
    """x ^ (x >> shift), the shift made logical by a mask; a new tensor, whose memory every step reuses."""
    return (x >> shift).bitwise_and_((1 << (32 - shift)) - 1).bitwise_xor_(x)


def _words(*parts: int | str) -> tuple[int, int]:
    """Two signed 32-bit words from anything nameable, the same on every machine and in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "little", signed=True), int.from_bytes(digest[4:8], "little", signed=True)


class Stream:
    """One independent stream of numbers a sample; every draw has the samples as its first axis."""

    def __init__(self, keys: Int32[Tensor, "b 2"]) -> None:
        self.keys = keys
        self.count = 0

    @classmethod
    def of(cls, *parts: int | str, device: torch.device | str = "cpu") -> "Stream":
        """A single stream (b = 1) named by its parts."""
        words = [torch.full((1, 1), w, dtype=torch.int32, device=device) for w in _words(*parts)]
        return cls(torch.cat(words, dim=1))  # filled there: copying numbers to a GPU would wait for it

    @property
    def device(self) -> torch.device:
        return self.keys.device

    def __len__(self) -> int:
        return len(self.keys)

    def keyed(self, index: Int[Tensor, " n"]) -> "Stream":
        """A stream for each 64-bit index, below this single one."""
        index = index.long()
        low, high = (index & 0xFFFFFFFF), (index >> 32)
        low, high = (torch.where(w >= 2**31, w - 2**32, w).to(torch.int32) for w in (low, high))
        k0 = mix(mix(low ^ self.keys[:, 0]) + high)
        return type(self)(torch.stack([k0, mix(k0 ^ self.keys[:, 1]) + mix(low + self.keys[:, 0])], dim=1))

    def fork(self, name: str) -> "Stream":
        """The streams' children called `name`: what they give does not depend on what was drawn before."""
        a, b = _words(name)
        return type(self)(torch.stack([mix(self.keys[:, 0] ^ a), mix(self.keys[:, 1] + b)], dim=1))

    def each(self, n: int) -> "Stream":
        """n streams a sample, sample-major: (b * n) streams for views of shape (b, n, ...)."""
        i = torch.arange(n, dtype=torch.int32, device=self.device)
        k0 = mix(self.keys[:, :1] + mix(i + 0x3C6EF372))
        k1 = mix(self.keys[:, 1:] ^ k0)
        return type(self)(torch.stack([k0, k1], dim=2).reshape(-1, 2))

    def bits(self, n: int) -> Int32[Tensor, "b n"]:
        """n words of 32 random bits a sample; advances the count of draws by n."""
        counter = self._counter(n)
        self.count += n
        return mix(mix(counter ^ self.keys[:, :1]).add_(self.keys[:, 1:]))

    def _counter(self, n: int) -> Int32[Tensor, " n"]:
        """The numbers of the next n draws."""
        if self.device.type != "cpu" or n <= 256:
            return torch.arange(self.count, self.count + n, dtype=torch.int32, device=self.device)
        # A sum, since arange of n takes longer than a hash.
        rows = torch.arange(self.count, self.count + n, 256, dtype=torch.int32)
        return (rows[:, None] + torch.arange(256, dtype=torch.int32)).flatten()[:n]

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Float[Tensor, "b *shape"]:
        """U[low, high), 24 random bits each; rounding may reach `high` itself where `low` is not 0."""
        words = self.bits(math.prod(shape)).bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)
        return words.float().mul_((high - low) * 2.0**-24).add_(low).reshape(len(self), *shape)

    def normal(self, *shape: int) -> Float[Tensor, "b *shape"]:
        """N(0, 1) by Box and Muller; both halves of every pair are used."""
        n = math.prod(shape)
        half = (n + 1) // 2
        radius, angle = self.uniform(2, half).unbind(1)
        radius.neg_().add_(1).log_().mul_(-2).sqrt_()  # 1 - u is exact, and faster than log1p
        angle.mul_(2 * math.pi)
        pairs = torch.cat([angle.cos().mul_(radius), angle.sin().mul_(radius)], dim=1)
        return pairs[:, :n].reshape(len(self), *shape)

    def integers(self, high: int, *shape: int) -> Int[Tensor, "b *shape"]:
        """Uniform over 0 .. high - 1 (high far below 2^24)."""
        return (self.uniform(*shape) * high).long().clamp_(max=high - 1)


@dataclass(frozen=True)
class Rng:
    """What `Learner.views` is given.

    step: a single stream on the CPU keyed by (seed, step), equal on all ranks: draws that the whole batch shares.
    sample: streams on the batch's device keyed by (seed, step, global position of the sample).
    """

    step: Stream
    sample: Stream

    @classmethod
    def at(cls, seed: int, step: int, positions: Int[Tensor, " b"]) -> "Rng":
        sample = Stream.of("sample", seed, step, device=positions.device).keyed(positions)
        return cls(Stream.of("step", seed, step), sample)
