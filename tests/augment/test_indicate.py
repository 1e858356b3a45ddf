"""Indicators name transformations, and transformations can be undone."""

import pytest
import torch

from pcrl_cli.augment.indicate import draw_turn, indicator, invert, of_indicator, transform
from pcrl_cli.core.rng import Stream

SHAPES = pytest.mark.parametrize("shape", [(8, 8, 5), (9, 9), (8, 6, 4)])


def streams(n):
    return Stream.of("indicate").each(n)


@SHAPES
def test_told_transformed_read_and_undone_a_view_is_itself_bitwise(shape):
    batch, drawn = torch.rand(40, 2, *shape), draw_turn(streams(40), shape)
    code = indicator(drawn)
    assert code.shape == (40, len(shape) + 4)
    assert torch.equal(code[:, -4:].sum(dim=1), torch.ones(40))
    assert torch.equal(invert(transform(batch, drawn), of_indicator(code)), batch)


@pytest.mark.parametrize(("shape", "kinds"), [((8, 8, 5), 32), ((9, 9), 16), ((8, 6, 4), 16)])
def test_every_indicator_is_reached(shape, kinds):
    codes = indicator(draw_turn(streams(3000), shape))
    assert len(codes.unique(dim=0)) == kinds


def test_the_transformation_is_flips_first_and_then_quarter_turns():
    batch, drawn = torch.rand(20, 1, 6, 6, 3), draw_turn(streams(20), (6, 6, 3))
    expected = []
    for view, flips, k in zip(batch, drawn.flip, drawn.turns.tolist(), strict=True):
        expected.append(torch.rot90(view.flip([1 + a for a in flips.nonzero().flatten().tolist()]), k, (1, 2)))
    assert torch.equal(transform(batch, drawn), torch.stack(expected))
