"""Stateless randomness against plain unsigned arithmetic, and as a source of numbers."""

import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from pcrl_cli.core import rng
from pcrl_cli.core.rng import Rng, Stream

WORD = 1 << 32


def mix(x):
    """lowbias32 in Python's own integers."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) % WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) % WORD
    return x ^ (x >> 16)


def words(*parts):
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return [int(n) for n in np.frombuffer(digest[:8], "<u4")]


def keyed(key, index):
    low, high = index % WORD, index // WORD
    k0 = mix((mix(low ^ key[0]) + high) % WORD)
    return [k0, (mix(k0 ^ key[1]) + mix((low + key[0]) % WORD)) % WORD]


def fork(key, name):
    a, b = words(name)
    return [mix(key[0] ^ a), mix((key[1] + b) % WORD)]


def each(key, i):
    k0 = mix((key[0] + mix((i + 0x3C6EF372) % WORD)) % WORD)
    return [k0, mix(key[1] ^ k0)]


def bits(key, counters):
    return [mix((mix(c ^ key[0]) + key[1]) % WORD) for c in counters]


def unsigned(words_):
    return (words_.long() % WORD).tolist()


def streams(n, *parts):
    return Stream.of(*parts).keyed(torch.arange(n))


def test_the_mixer_equals_plain_unsigned_arithmetic():
    inputs = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 12345, 0xDEADBEEF]
    words_ = torch.tensor([x - WORD if x >= WORD // 2 else x for x in inputs], dtype=torch.int32)
    assert unsigned(rng.mix(words_)) == [mix(x) for x in inputs]


def test_every_way_to_a_stream_equals_plain_unsigned_arithmetic():
    positions = [0, 1, 7, 2**31, 2**32 + 5, 2**40 + 2**31 + 3]
    stream = Stream.of("sample", 3, 11).keyed(torch.tensor(positions)).fork("global").each(3)
    root = words("sample", 3, 11)
    keys = [each(fork(keyed(root, p), "global"), i) for p in positions for i in range(3)]
    assert [unsigned(k) for k in stream.keys] == keys
    first, second = stream.bits(5), stream.bits(4)
    assert [unsigned(row) for row in torch.cat([first, second], dim=1)] == [bits(key, range(9)) for key in keys]


def test_uniform_numbers_are_the_upper_24_bits():
    stream = streams(4, "uniform")
    drawn = Stream(stream.keys).bits(6)
    expected = torch.tensor([[(w % WORD >> 8) / 2**24 for w in row] for row in drawn.tolist()])
    assert torch.equal(stream.uniform(2, 3), expected.view(4, 2, 3))


@pytest.mark.parametrize(
    "drawn",
    [
        lambda: streams(20000, "a").uniform(),
        lambda: Stream.of("b").uniform(20000),
        lambda: Stream.of("c").each(20000).uniform(),
        lambda: torch.cat([Stream.of("step", 0, s).uniform() for s in range(5000)]),
        lambda: torch.cat([Stream.of("d").fork(str(s)).uniform() for s in range(5000)]),
        lambda: torch.cat([streams(8, "sample", 0, s).fork("global").each(2).uniform(2).flatten() for s in range(600)]),
    ],
    ids=["positions", "draws", "each", "steps", "forks", "as in training"],
)
def test_uniform_numbers_pass_kolmogorov_smirnov_along_every_axis(drawn):
    u = drawn().flatten().numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    neighbours = np.corrcoef(u[:-1], u[1:])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(len(u))


def test_streams_of_positions_steps_forks_and_each_are_uncorrelated():
    one = streams(64, "sample", 0, 5)
    rows = [one.uniform(512), streams(64, "sample", 0, 6).uniform(512), one.fork("a").uniform(512)]
    rows += [one.fork("b").uniform(512), one.fork("a").each(2).uniform(512)]
    matrix = np.corrcoef(torch.cat(rows).numpy())
    np.fill_diagonal(matrix, 0)
    pairs = matrix[np.triu_indices_from(matrix, 1)] * np.sqrt(512)
    assert np.abs(pairs).max() < 6  # the largest of 73,000 standard normals is about 4.5
    assert abs(pairs.std() - 1) < 0.03


def test_no_two_of_many_streams_share_a_first_word_more_often_than_by_chance():
    words_ = streams(2**16, "collisions").bits(1).flatten()
    assert len(words_) - len(words_.unique()) <= 5  # 0.5 expected


def test_one_bit_of_the_position_changes_half_of_the_bits():
    base = torch.arange(500) * 977
    reference = Stream.of("avalanche").keyed(base).bits(4).numpy().view(np.uint32)
    for bit in (0, 1, 7, 15, 31, 40):
        other = Stream.of("avalanche").keyed(base ^ (1 << bit)).bits(4).numpy().view(np.uint32)
        changed = np.unpackbits((reference ^ other).view(np.uint8)).mean()
        assert abs(changed - 0.5) < 0.01


def test_normal_numbers_are_standard_normal_and_uncorrelated():
    drawn = streams(50, "normal").normal(401)  # odd: half of a pair is left over
    flat = drawn.flatten().numpy()
    assert drawn.shape == (50, 401)
    assert stats.kstest(flat, "norm").pvalue > 1e-3
    assert abs(stats.skew(flat)) < 0.08
    assert abs(stats.kurtosis(flat)) < 0.15
    halves = np.corrcoef(drawn[:, :200].flatten(), drawn[:, 201:].flatten())[0, 1]
    assert abs(halves) < 0.04


@pytest.mark.parametrize("high", [2, 3, 17, 1000])
def test_integers_are_uniform_over_all_values_below_the_bound(high):
    drawn = streams(40, "integers").integers(high, 1000).flatten()
    counts = torch.bincount(drawn, minlength=high).numpy()
    assert len(counts) == high
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_draw_does_not_depend_on_who_else_is_in_the_batch():
    positions = torch.tensor([5, 0, 9, 2**33, 4])
    rows = torch.tensor([3, 0])

    def draws(p):
        streams_ = Rng.at(1, 7, p).sample.fork("global").each(2)
        return [x.unflatten(0, (-1, 2)) for x in (streams_.uniform(3), streams_.normal(5), streams_.integers(9, 2))]

    for whole, part in zip(draws(positions), draws(positions[rows]), strict=True):
        assert torch.equal(whole[rows], part)


def test_a_fork_does_not_depend_on_what_was_drawn_before():
    early, late = streams(3, "fork"), streams(3, "fork")
    late.uniform(100)
    assert torch.equal(early.fork("x").uniform(4), late.fork("x").uniform(4))


def test_the_step_stream_is_the_same_for_any_positions():
    one, other = Rng.at(0, 3, torch.tensor([0, 1])), Rng.at(0, 3, torch.tensor([900, 4, 5]))
    assert torch.equal(one.step.bits(8), other.step.bits(8))
    assert len(one.step) == 1


@pytest.mark.parametrize("change", [(1, 3), (0, 4)])
def test_another_seed_or_step_gives_other_numbers(change):
    positions = torch.arange(4)
    one, other = Rng.at(0, 3, positions), Rng.at(*change, positions)
    assert not torch.equal(one.step.bits(2), other.step.bits(2))
    assert (one.sample.bits(4) != other.sample.bits(4)).all()


def test_positions_of_32_bits_give_what_64_bits_give():
    wide = torch.tensor([3, 2**31 - 1])
    assert torch.equal(Stream.of("x").keyed(wide).keys, Stream.of("x").keyed(wide.int()).keys)


def test_global_generators_are_neither_read_nor_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = streams(3, "global").normal(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(streams(3, "global").normal(4), first)
