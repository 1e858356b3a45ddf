from collections.abc import Callable

import numpy as np
import pydantic
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pcrl_cli.augment import chains, spatial
from pcrl_cli.augment.chains import Drawn, Ranges, draw_global, draw_local, global_views, local_views, take, views
from pcrl_cli.augment.intensity import constant
from pcrl_cli.augment.reference import views_by_torchio, views_from_drawn
from pcrl_cli.augment.spatial import affine
from pcrl_cli.core.rng import Stream

SHAPE = (24, 20, 16)
QUIET = Ranges(
    flip_axes=(), scale=(1, 1), rotation_deg=(0, 0), blur_sigma_voxel=(0, 0), noise_std=(0, 0), log_gamma=(0, 0)
)


def tensors(drawn: object) -> list[Tensor]:
    if isinstance(drawn, Tensor):
        return [drawn]
    return [t for value in getattr(drawn, "__dict__", {}).values() for t in tensors(value)]


def global_states() -> list[object]:
    """torch's and NumPy's; Python's own is left out, because the shape checker of the tests draws from it."""
    key, position = np.random.get_state(legacy=False)["state"].values()  # noqa: NPY002
    return [torch.get_rng_state().tolist(), key.tolist(), position]


def far_off(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    difference = (ours - theirs).abs()
    return difference.mean().item(), (difference > 1e-3).float().mean().item()


def test_global_chain_equals_torchio(make_views: Callable, make_stream: Callable) -> None:
    x01 = make_views(4, (64, 64, 32))
    drawn = draw_global(make_stream("global", 4), (64, 64, 32), Ranges())
    (target, seen), (their_target, their_input) = views(x01, drawn), views_from_drawn(x01, drawn)
    assert ((target - their_target).abs() > 1e-5).float().mean() <= 2e-5
    mean, share = far_off(seen, their_input)
    assert mean < 3e-4
    assert share < 1e-3


def test_local_chain_equals_torchio(make_views: Callable, make_stream: Callable) -> None:
    x01, drawn = make_views(12, (16, 16, 16)), draw_local(make_stream("local", 12), Ranges())
    (target, seen), (their_target, their_input) = views(x01, drawn), views_from_drawn(x01, drawn)
    assert ((target - their_target).abs() > 1e-5).sum() <= 2
    mean, share = far_off(seen, their_input)
    assert mean < 1e-4
    assert share < 1e-3


def test_target_is_taken_after_the_spatial_part_alone(make_views: Callable, make_stream: Callable) -> None:
    x01, stream = make_views(3, SHAPE), make_stream("target", 3)
    drawn = draw_global(stream, SHAPE, Ranges())
    target, seen = global_views(x01, stream)
    assert torch.equal(target, affine(x01, drawn.affine))
    assert seen.mean(dim=(1, 2, 3, 4)).abs().max() < 1e-5
    assert (seen.std(dim=(1, 2, 3, 4)) - 1).abs().max() < 1e-4


def test_empty_ranges_only_normalise(make_views: Callable, make_stream: Callable) -> None:
    x01 = make_views(3, SHAPE)
    target, seen = global_views(x01, make_stream("quiet", 3), QUIET.model_copy(update={"swap_count": 0}))
    assert torch.equal(target, x01)
    assert torch.allclose(seen, (x01 - x01.mean((1, 2, 3, 4), True)) / x01.std((1, 2, 3, 4), keepdim=True), atol=1e-5)


def test_swap_is_for_global_views_only(make_views: Callable, make_stream: Callable) -> None:
    x01, stream = make_views(2, SHAPE), make_stream("swap", 2)
    assert draw_local(stream, Ranges()).swap is None
    seen, plain = global_views(x01, stream, QUIET)[1], local_views(x01, stream, QUIET)
    assert not torch.equal(seen, plain)
    assert torch.allclose(seen.flatten(1).mean(1), plain.flatten(1).mean(1), atol=1e-5)


def test_batch_equals_each_view_alone(make_views: Callable, make_stream: Callable) -> None:
    x01, stream = make_views(5, SHAPE, c=2), make_stream("alone", 5)
    drawn = draw_global(stream, SHAPE, Ranges())
    together = views(x01, drawn)
    for i in range(5):
        keyed = type(stream)(stream.keys[i : i + 1])
        for alone in (views(x01[i : i + 1], take(drawn, slice(i, i + 1))), global_views(x01[i : i + 1], keyed)):
            assert torch.equal(together[0][i : i + 1], alone[0])
            assert torch.allclose(together[1][i : i + 1], alone[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("block", [1, 2 * 24 * 20 * 16, 2**40])
def test_blocks_do_not_show(
    make_views: Callable, make_stream: Callable, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x01, stream = make_views(5, SHAPE), make_stream("blocks", 5)
    expected = global_views(x01, stream)
    monkeypatch.setattr(chains, "BLOCK_VOXELS", block)
    for ours, theirs in zip(global_views(x01, stream), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)


def test_views_follow_from_the_stream_alone(make_views: Callable, make_stream: Callable) -> None:
    x01 = make_views(2, SHAPE)
    once, again = (global_views(x01, make_stream("same", 2)) for _ in range(2))
    other = global_views(x01, make_stream("other", 2))
    for a, b, c in zip(once, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_two_views_of_a_crop_differ(make_views: Callable, make_stream: Callable) -> None:
    x01 = make_views(1, SHAPE).expand(2, -1, -1, -1, -1).contiguous()
    target, seen = global_views(x01, make_stream("pair", 1).each(2))
    assert not torch.equal(target[0], target[1])
    assert not torch.equal(seen[0], seen[1])


def test_the_input_is_left_alone_and_views_are_float32(make_views: Callable, make_stream: Callable) -> None:
    x01 = make_views(2, SHAPE)
    before = x01.clone()
    out = [*global_views(x01, make_stream("pure", 2)), local_views(x01, make_stream("pure", 2))]
    assert torch.equal(x01, before)
    assert all(view.dtype == torch.float32 for view in out)


@pytest.mark.parametrize("limit", [0, 2**24])
def test_nothing_depends_on_a_value_on_the_host(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values: reading one (`.item()`, a branch) would raise, and on a GPU it would wait."""
    monkeypatch.setattr(spatial, "GATHER_LIMIT", limit)
    with FakeTensorMode():
        stream, x01 = Stream(torch.zeros(4, 2, dtype=torch.int32)), torch.zeros(4, 2, *SHAPE)
        for out in (*global_views(x01, stream), local_views(x01, stream)):
            assert out.shape == x01.shape
        assert constant(x01).shape == (4,)


def test_global_random_state_is_untouched(make_views: Callable, make_stream: Callable) -> None:
    x01, stream = make_views(2, SHAPE), make_stream("state", 2)
    before = global_states()
    global_views(x01, stream)
    local_views(x01, stream)
    views_by_torchio(x01, stream)
    assert global_states() == before


def test_a_transforms_draws_do_not_depend_on_the_others_ranges(make_stream: Callable) -> None:
    one = draw_global(make_stream("fork", 3), SHAPE, Ranges())
    two = draw_global(make_stream("fork", 3), SHAPE, Ranges(swap_count=7, rotation_deg=(-30, 30)))
    assert torch.equal(one.gamma.exponent, two.gamma.exponent)
    assert torch.equal(one.noise.keys, two.noise.keys)
    assert not torch.equal(one.affine.rotation_deg, two.affine.rotation_deg)


def test_take_cuts_every_tensor(make_stream: Callable) -> None:
    drawn = draw_global(make_stream("take", 5), SHAPE, Ranges())
    part: Drawn = take(drawn, slice(1, 3))
    assert len(tensors(part)) == len(tensors(drawn)) == 10
    for cut, whole in zip(tensors(part), tensors(drawn), strict=True):
        assert torch.equal(cut, whole[1:3])
    assert part.blur.reach == drawn.blur.reach


def test_ranges_refuse_unknown_names_and_are_frozen() -> None:
    with pytest.raises(pydantic.ValidationError):
        Ranges(noise=1.0)  # type: ignore[call-arg]
    with pytest.raises(pydantic.ValidationError):
        Ranges().swap_count = 3
    for wrong in ({"scale": (1.1, 0.9)}, {"scale": (0.0, 1.0)}, {"noise_std": (-1, 1)}, {"flip_axes": (3,)}):
        with pytest.raises(pydantic.ValidationError):
            Ranges.model_validate(wrong)
