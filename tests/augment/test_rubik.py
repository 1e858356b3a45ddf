"""The cube's moves: undone exactly, moving voxels and inventing none."""

import pytest
import torch

from pcrl_cli.augment.chains import take
from pcrl_cli.augment.rubik import Moves, at_once, draw_moves, inverse, turn
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.rng import Stream

SHAPE = (64, 64, 32)
CHANGED = {4: (0.08, 0.33, 0.56, 0.74, 0.86), 8: (0.16, 0.58, 0.75, 0.84, 0.88), 16: (0.33, 0.75, 0.81, 0.87, 0.87)}
MOVES = (1, 5, 10, 20, 40)


def streams(name, n):
    return Stream.of("rubik", name).each(n)


def distinct(n, shape=SHAPE):
    return torch.arange(torch.tensor(shape).prod()).float().view(1, 1, *shape).repeat(n, 1, 1, 1, 1)


@pytest.mark.parametrize("side", [4, 8, 16])
def test_moves_are_undone_bitwise_and_only_move_voxels(side):
    batch = torch.rand(3, 2, *SHAPE)
    moves = draw_moves(streams("inverse", 3), SHAPE, side, 12)
    out = turn(batch, moves)
    assert torch.equal(turn(out, inverse(moves)), batch)
    assert torch.equal(out.flatten(2).sort(dim=2).values, batch.flatten(2).sort(dim=2).values)
    assert not torch.equal(out, batch)


def test_no_moves_change_nothing():
    batch = torch.rand(2, 1, 16, 16, 16)
    assert torch.equal(turn(batch, draw_moves(streams("none", 2), (16, 16, 16), 8, 0)), batch)


def test_a_layer_as_thick_as_the_volume_is_a_plain_rotation():
    batch = torch.rand(1, 1, 8, 8, 8)
    moves = draw_moves(streams("whole", 1), (8, 8, 8), side=8, count=1)
    axis, turns = int(moves.axis), int(moves.turns)
    plane = [2 + a for a in range(3) if a != axis]
    assert torch.equal(turn(batch, moves), torch.rot90(batch, turns, plane))


@pytest.mark.parametrize("side", CHANGED)
def test_as_many_voxels_change_place_as_measured(side):
    small = tuple(n // side * 2 for n in SHAPE)  # the same cube with fewer voxels a sub-cube: shares stay
    for count, expected in zip(MOVES, CHANGED[side], strict=True):
        moves = draw_moves(Stream.of("mm", count, side).each(600), small, 2, count)
        changed = turn(distinct(600, small), moves) != distinct(600, small)
        assert abs(changed.float().mean() - expected) < 0.05


def test_quarter_turns_only_where_the_plane_is_square_and_every_layer_and_turn_is_drawn():
    moves = draw_moves(streams("square", 200), SHAPE, 8, 20)
    assert set(moves.turns[moves.axis == 2].tolist()) == {1, 2, 3}
    assert set(moves.turns[moves.axis != 2].tolist()) == {2}
    for axis, layers in enumerate((8, 8, 4)):
        assert set(moves.layer[moves.axis == axis].tolist()) == set(range(layers))


@pytest.mark.parametrize(
    ("shape", "side", "count"),
    [((16, 16, 8), 4, 40), ((8, 12, 16), 4, 20), ((6, 6, 6), 6, 3), ((9, 9, 9), 3, 30), ((8, 8, 8), 2, 0)],
)
def test_all_moves_at_once_are_the_moves_one_by_one(shape, side, count):
    batch, moves = torch.rand(5, 2, *shape), draw_moves(streams("once", 5), shape, side, count)
    for some in (moves, inverse(moves)):
        assert torch.equal(at_once(batch, some), turn(batch, some))


def test_sub_cubes_that_do_not_fill_the_view_are_refused():
    with pytest.raises(ConfigError, match="side 8 do not fill a view of 20x16x16"):
        draw_moves(streams("bad", 1), (20, 16, 16), 8, 1)


def test_a_batch_is_turned_as_its_views_alone():
    batch, moves = torch.rand(4, 1, 16, 16, 8), draw_moves(streams("alone", 4), (16, 16, 8), 4, 6)
    alone = [turn(batch[i : i + 1], take(moves, slice(i, i + 1))) for i in range(4)]
    assert torch.equal(turn(batch, moves), torch.cat(alone))
    drawn = [draw_moves(Stream(streams("alone", 4).keys[i : i + 1]), (16, 16, 8), 4, 6) for i in range(4)]
    assert torch.equal(torch.cat([d.turns for d in drawn]), moves.turns)
    assert isinstance(moves, Moves)
