import threading
from itertools import islice

import numpy as np
import pytest
import torch

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.plan import Drawn
from pcrl_cli.core.source import Source
from pcrl_cli.data.cache import Cache, gather_manifest, open_cache, write_shard, write_split
from pcrl_cli.data.crops import VolumeCrops, crop_range
from pcrl_cli.pure.volumes import PADDED

CPU, PAD, SIZE = torch.device("cpu"), -200, (8, 6, 5)
SHAPES = {"a": (20, 18, 16), "b": (9, 30, 12), "c": (6, 12, 4)}  # c is smaller than a crop
BOXES = {"a": ((3, 2, 1), (12, 10, 9)), "b": ((1, 10, 4), (5, 12, 3)), "c": ((0, 0, 0), (6, 12, 4))}


def fill(shape):
    """Every voxel holds its place: 32 x 32 x 32 are told apart."""
    x, y, z = np.indices(shape)
    return (x + 32 * y + 1024 * z + 1).astype(np.int16)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    folder = tmp_path_factory.mktemp("cache")
    (folder / "shards").mkdir()
    for k, (case, shape) in enumerate(SHAPES.items()):
        mask = (np.indices(shape).sum(0) % 5).astype(np.uint8)
        foreground = np.array([[2, 11, 5], [5, 20, 6]], np.int32) if case != "a" else np.array([[14, 11, 9]], np.int32)
        if case == "c":
            foreground = np.zeros((0, 3), np.int32)
        arrays = {
            "image": np.stack([fill(shape), -fill(shape)]),
            "mask": mask,
            "box": np.array(BOXES[case], np.int32),
            "foreground": foreground,
        }
        drawn = Drawn(arrays, chunks={"image": (1, 8, 8, 8), "mask": (8, 8, 8)}, packed=frozenset({"mask"}))
        write_shard(folder, case, {"volumes": drawn}, {"patient": f"p{k}", "settings": "f00d", "source": {}})
    write_split(folder, ["p0", "p1", "p2"], 0)
    gather_manifest(folder, {"reader": "test", "fingerprint": "f00d"})
    return open_cache(folder)


def crops(cache, batch=3, seed=0, where="ram", cases=("a", "b", "c"), **options):
    return VolumeCrops(cache, cases, SIZE, batch, seed, CPU, where, pad=PAD, **options)


def take(source, n, step=0):
    batches = source.batches(step)
    try:
        return list(islice(batches, n))
    finally:
        batches.close()


def equal(a, b):
    return all(
        torch.equal(p, q) and all(torch.equal(x[k], y[k]) for k in x) for (p, x), (q, y) in zip(a, b, strict=True)
    )


def places(batch):
    """Which voxel of its case each crop's first voxel in the scan is, and how many voxels lie before it."""
    for image in batch["image"][:, 0].numpy():
        inside = np.argwhere(image != PAD)[0]
        value = int(image[tuple(inside)]) - 1
        yield np.array([value % 32, value // 32 % 32, value // 1024]) - inside


def test_it_is_a_source_of_image_and_mask(cache):
    source = crops(cache)
    assert isinstance(source, Source)
    assert source.residency.startswith("ram (")
    (positions, batch), *_ = take(source, 1)
    assert positions.tolist() == [0, 1, 2]
    assert {k: (v.dtype, tuple(v.shape)) for k, v in batch.items()} == {
        "image": (torch.int16, (3, 2, *SIZE)),
        "mask": (torch.uint8, (3, *SIZE)),
    }


@pytest.mark.parametrize("step", [0, 5])
@pytest.mark.parametrize("foreground", [0.0, 0.6])
def test_memory_and_disk_give_the_same_crops(cache, step, foreground):
    a, b = (take(crops(cache, where=where, foreground=foreground, crops=2), 6, step) for where in ("ram", "disk"))
    assert equal(a, b)


def test_image_mask_and_padding_are_those_of_one_place(cache):
    whole = {case: cache.read_box(case, "volumes", "image") for case in SHAPES}
    masks = {case: cache.read_box(case, "volumes", "mask") for case in SHAPES}
    for _, batch in take(crops(cache), 8):
        for image, mask, start in zip(batch["image"].numpy(), batch["mask"].numpy(), places(batch), strict=True):
            found = []
            for case in SHAPES:
                wide = [(20, 20)] * 3
                padded = np.pad(whole[case], [(0, 0), *wide], constant_values=PAD)
                box = tuple(slice(int(s) + 20, int(s) + 20 + n) for s, n in zip(start, SIZE, strict=True))
                if np.array_equal(padded[(slice(None), *box)], image):
                    found.append(np.array_equal(np.pad(masks[case], wide, constant_values=PADDED)[box], mask))
            assert found
            assert all(found)


def test_what_a_step_holds_depends_on_seed_and_step_alone(cache):
    long = take(crops(cache, crops=4), 9)
    for step in (1, 4, 7):
        assert equal(take(crops(cache, crops=4), 2, step), long[step : step + 2])
    assert not equal(take(crops(cache, seed=1, crops=4), 9), long)


def test_ranks_share_a_batch(cache):
    whole = take(crops(cache, batch=4, crops=4), 3)
    parts = [take(crops(cache, batch=4, crops=4, rank=r, ranks=2), 3) for r in (0, 1)]
    for (positions, batch), (p0, b0), (p1, b1) in zip(whole, *parts, strict=True):
        assert torch.equal(positions[0::2], p0)
        assert torch.equal(positions[1::2], p1)
        for name in batch:
            assert torch.equal(batch[name][0::2], b0[name])
            assert torch.equal(batch[name][1::2], b1[name])


def test_an_epoch_takes_every_case_equally_often(cache):
    source = crops(cache, batch=2, crops=4)
    assert source.steps_per_epoch == 6
    for epoch in range(3):
        drawn = source.order(epoch) % 3
        assert sorted(drawn.tolist()) == [0] * 4 + [1] * 4 + [2] * 4


def test_few_cases_fill_a_batch_with_more_crops_of_each(cache):
    assert crops(cache, batch=3).crops == 1
    assert crops(cache, batch=8).crops == 3
    assert crops(cache, batch=4, cases=("a",)).steps_per_epoch == 1
    with pytest.raises(ConfigError, match="larger than an epoch"):
        crops(cache, batch=8, crops=2)
    with pytest.raises(ConfigError, match="larger than an epoch"):
        crops(cache, batch=2, cases=())


def starts(source, case, n=400):
    return np.array([source.start(position, case) for position in range(n)])


def test_starts_are_uniform_in_the_box(cache):
    found = starts(crops(cache), 0, 3000)
    for axis, (first, size) in enumerate(zip(*BOXES["a"], strict=True)):
        values, counts = np.unique(found[:, axis], return_counts=True)
        assert values.tolist() == list(range(first, first + size - SIZE[axis] + 1))
        assert counts.min() > 0.8 * 3000 / len(values)


def test_a_box_that_is_too_small_lies_in_the_crop_and_the_crop_in_the_scan(cache):
    found = starts(crops(cache), 1)
    shape, (first, size) = np.array(SHAPES["b"]), np.array(BOXES["b"])
    assert (found >= 0).all()
    assert (found + SIZE <= shape).all()
    short = size < SIZE
    assert short.tolist() == [True, False, True]
    assert (found <= first)[:, short].all()
    assert (found + SIZE >= first + size)[:, short].all()
    assert len(np.unique(found[:, 0])) == 2  # 0 and 1: all that the scan's 9 voxels leave


def test_a_scan_that_is_too_small_is_padded_on_both_sides(cache):
    source = crops(cache, cases=("c",), batch=2)
    assert source.padded == ("c",)
    assert crops(cache, cases=("a", "b")).padded == ()
    found = starts(source, 0)
    assert np.unique(found[:, 0]).tolist() == [-1]
    assert np.unique(found[:, 2]).tolist() == [0]
    image = take(source, 1)[0][1]["image"][0, 0]
    assert (image[0] == PAD).all()
    assert (image[-1] == PAD).all()
    assert (image[..., -1] == PAD).all()
    assert (image[1:-1, :, :-1] != PAD).all()


def test_foreground_crops_hold_a_listed_voxel_and_lie_in_the_scan(cache):
    source = crops(cache, foreground=1.0)
    for case in (0, 1):
        found, listed = starts(source, case), source.seeds[case]
        held = ((listed[None] >= found[:, None]) & (listed[None] < found[:, None] + SIZE)).all(-1).any(1)
        assert held.all()
        assert (found >= source.low[case]).all()
        assert (found <= source.high[case]).all()
    assert len(np.unique(starts(source, 1), axis=0)) > 5
    plain, aware = (
        starts(crops(cache, cases=("c",), batch=2), 0),
        starts(crops(cache, cases=("c",), batch=2, foreground=1.0), 0),
    )
    assert len(np.unique(plain, axis=0)) == len(np.unique(aware, axis=0))  # no foreground: as the others


def test_a_share_of_0_draws_as_the_paper_does_and_a_half_moves_a_half(cache):
    big = np.array([[[0, 0, 0], [100, 100, 100]]])
    source = crops(cache, foreground=0.5)
    source.low, source.high = (np.repeat(r, 3, 0) for r in crop_range(np.array([[100, 100, 100]]), big, SIZE))
    source.seeds = [np.array([[50, 50, 50]])] * 3
    found = starts(source, 0, 1000)
    held = ((found <= 50) & (found + SIZE > 50)).all(1).mean()
    assert 0.45 < held < 0.55


def test_the_range_covers_every_case():
    low, high = crop_range(
        np.array([[10, 10, 10]] * 2), np.array([[[2, 2, 2], [6, 2, 8]], [[0, 0, 9], [10, 10, 1]]]), (4, 4, 11)
    )
    assert low.tolist() == [[2, 0, 0], [0, 0, 0]]
    assert high.tolist() == [[4, 2, 0], [6, 6, 0]]


def test_the_thread_ends_with_the_batches(cache):
    take(crops(cache, where="disk"), 2)
    assert not [t for t in threading.enumerate() if t.name == "pcrl-read-ahead"]
