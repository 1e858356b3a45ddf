import os
import shutil
import threading
from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest
import torch

from pcrl_cli.core.errors import ConfigError, IntegrityError
from pcrl_cli.core.plan import Drawn
from pcrl_cli.core.source import Source
from pcrl_cli.data.ahead import AHEAD
from pcrl_cli.data.cache import gather_manifest, open_cache, shard_path, write_shard, write_split
from pcrl_cli.data.direct import Direct
from pcrl_cli.data.loader import Loader, shuffled

ITEMS = {"a": 5, "b": 1, "c": 7, "d": 4}  # 17; `number` counts them
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    (folder / "shards").mkdir()
    first = 0
    for case, n in ITEMS.items():
        voxels = np.random.default_rng(first).integers(-1000, 1000, (n, 1, 3, 2), dtype=np.int16)
        drawn = Drawn({"voxels": voxels, "number": np.arange(first, first + n, dtype=np.int64)}, Counter(kept=n))
        write_shard(folder, case, {"g": drawn}, {"patient": f"p-{case}", "settings": "f00d", "source": {}})
        first += n
    write_split(folder, [f"p-{case}" for case in ITEMS], 0)
    gather_manifest(folder, {"reader": "test", "fingerprint": "f00d"})
    return open_cache(folder)


def loader(cache, batch=4, seed=0, where="ram", **options):
    return Loader(
        cache, "g", ("voxels", "number"), options.pop("cases", cache.cases()), batch, seed, CPU, where, **options
    )


def take(source, n, step=0):
    batches = source.batches(step)
    try:
        return list(islice(batches, n))
    finally:
        batches.close()


def numbers(taken):
    return [batch["number"].tolist() for _, batch in taken]


def epoch_of(source, epoch):
    return list(chain(*numbers(take(source, 4, 4 * epoch))))


def equal(a, b):
    return len(a) == len(b) and all(
        torch.equal(p, q)
        and x.keys() == y.keys()
        and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)
        for (p, x), (q, y) in zip(a, b, strict=True)
    )


def readers():
    return [t for t in threading.enumerate() if t.name == "pcrl-read-ahead"]


def test_a_loader_is_a_source(cache):
    assert isinstance(loader(cache), Source)
    assert loader(cache).batch_size == 4
    assert loader(cache).residency.startswith("ram (")


@pytest.mark.parametrize("step", [0, 3, 7])
def test_ram_and_disk_give_the_same_bytes_in_the_same_order(cache, step):
    assert equal(take(loader(cache, where="ram"), 9, step), take(loader(cache, where="disk"), 9, step))


def test_a_read_that_gives_less_than_asked_for_goes_on(cache, monkeypatch):
    expected, read = take(loader(cache, where="ram"), 3), os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, wanted, at: read(file, [wanted[0][:3]], at))
    assert equal(take(loader(cache, where="disk"), 3), expected)


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_voxels_belong_to_their_numbers(cache, where):
    stored = cache.read("g", ("voxels", "number"), cache.cases()).arrays
    by_number = dict(zip(stored["number"].tolist(), stored["voxels"], strict=True))
    for _, batch in take(loader(cache, where=where), 8):
        assert batch["voxels"].dtype == torch.int16
        for number, voxels in zip(batch["number"].tolist(), batch["voxels"], strict=True):
            assert np.array_equal(by_number[number], voxels)


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_changing_a_batch_leaves_the_next_epoch_alone(cache, where):
    source = loader(cache, batch=17, where=where)
    for _, batch in take(source, 1):
        batch["voxels"].zero_()
    assert any(batch["voxels"].any() for _, batch in take(source, 1))


def test_an_epoch_is_a_permutation_and_the_last_short_batch_is_dropped(cache):
    source = loader(cache)
    assert source.steps_per_epoch == 4
    for epoch in range(5):
        seen = epoch_of(source, epoch)
        assert len(set(seen)) == len(seen) == 16
        assert set(seen) < set(range(17))
    whole = loader(cache, batch=17)
    assert sorted(numbers(take(whole, 1))[0]) == list(range(17))


def test_every_item_is_left_out_sometimes(cache):
    left = {(set(range(17)) - set(epoch_of(loader(cache), e))).pop() for e in range(120)}
    assert len(left) > 12


def test_epochs_and_seeds_differ_and_repeat(cache):
    first, second = numbers(take(loader(cache), 4, 0)), numbers(take(loader(cache), 4, 4))
    assert first != second
    assert first != numbers(take(loader(cache, seed=1), 4, 0))
    assert first == numbers(take(loader(cache), 4, 0))


def test_the_order_is_uniform():
    order = shuffled(4, 0)
    counts = np.zeros((4, 4))
    for epoch in range(2000):
        counts[np.arange(4), order(epoch)] += 1
    assert (abs(counts / 2000 - 0.25) < 0.05).all()


@pytest.mark.parametrize("where", ["ram", "disk"])
@pytest.mark.parametrize("step", [1, 4, 6, 11])
def test_starting_at_a_step_equals_skipping_to_it(cache, where, step):
    source = loader(cache, where=where)
    assert equal(take(source, 5, step), take(source, step + 5)[step:])


def test_positions_count_samples_from_the_start_of_the_run(cache):
    positions = torch.cat([p for p, _ in take(loader(cache), 6, 2)])
    assert positions.tolist() == list(range(8, 32))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_ranks_of_a_step_make_up_the_single_ranks_batch_in_order(cache, ranks):
    alone = take(loader(cache, batch=6), 5)
    parts = [take(loader(cache, batch=6, rank=r, ranks=ranks), 5) for r in range(ranks)]
    for step, (positions, batch) in enumerate(alone):
        gathered = torch.cat([parts[r][step][0] for r in range(ranks)])
        order = gathered.argsort()
        assert torch.equal(gathered[order], positions)
        for name in batch:
            assert torch.equal(torch.cat([parts[r][step][1][name] for r in range(ranks)])[order], batch[name])


def test_an_order_of_ones_own_decides_the_epoch(cache):
    source = loader(cache, order=lambda epoch: np.array([3, 3, 16, 0, 1]) + 0 * epoch, batch=2)
    assert source.steps_per_epoch == 2
    assert numbers(take(source, 3)) == [[3, 3], [16, 0], [3, 3]]


def test_only_the_given_cases_are_used(cache):
    source = loader(cache, cases=("c", "a"), batch=12)
    assert source.items == 12
    assert sorted(numbers(take(source, 1))[0]) == [*range(5), *range(6, 13)]


# ---- refusals


def test_a_batch_larger_than_the_cache_is_refused(cache):
    with pytest.raises(
        ConfigError, match=r"the batch \(18\) is larger than an epoch \(17 items of 4 cases in .*; set a"
    ):
        loader(cache, batch=18)
    with pytest.raises(ConfigError, match="larger than an epoch"):
        loader(cache, batch=2, cases=())


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused(cache):
    with pytest.raises(ConfigError, match="set --batch to a multiple of 3"):
        loader(cache, batch=4, ranks=3)


def test_one_sample_a_rank_is_refused(cache):
    with pytest.raises(ConfigError, match="batch norm needs two; set --batch to 4 or more"):
        loader(cache, batch=2, ranks=2)


def test_the_gpu_on_a_cpu_run_is_refused(cache):
    with pytest.raises(ConfigError, match="--cache-on gpu, but the run is on the CPU"):
        loader(cache, where="gpu")


def test_an_unknown_array_is_refused(cache):
    with pytest.raises(ConfigError, match="has no g/nothing"):
        Loader(cache, "g", ("nothing",), cache.cases(), 4, 0, CPU)


# ---- where the items lie


def test_auto_is_ram_where_they_fit_and_disk_where_they_do_not(cache, monkeypatch):
    class Memory:
        available = 0

    source = loader(cache, where="auto")
    assert source.place == "ram"
    assert source.bytes == 17 * (6 * 2 + 8)
    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    source = loader(cache, where="auto")
    assert source.place == "disk"
    assert source.residency.startswith("disk, read ahead (")


# ---- the thread that reads ahead


def test_closing_the_batches_ends_the_thread(cache):
    assert not readers()
    batches = loader(cache, where="disk").batches(0)
    next(batches)
    assert len(readers()) == 1
    batches.close()
    assert not readers()


def test_an_error_while_reading_ahead_is_raised_and_ends_the_thread(cache, tmp_path):
    shutil.copytree(cache.path, tmp_path / "torn")
    torn = open_cache(tmp_path / "torn")
    source = loader(torn, where="disk")
    shard_path(torn.path, "c").write_bytes(b"no HDF5")
    with pytest.raises(IntegrityError, match=r"c\.h5 is torn or unreadable: run `pcrl prep` again"):
        take(source, 8)
    assert not readers()
    with pytest.raises(IntegrityError):
        loader(torn, where="ram")


def test_a_slow_consumer_does_not_make_the_thread_read_everything(cache, monkeypatch):
    asked, read = [], Direct.read
    monkeypatch.setattr(Direct, "read", lambda *args: (asked.append(1), read(*args))[1])
    batches = loader(cache, where="disk").batches(0)
    next(batches)
    threading.Event().wait(0.3)
    batches.close()
    assert 2 <= len(asked) <= AHEAD + 2


# ---- items straight from their files


def test_items_read_directly_are_those_that_h5py_reads(cache):
    direct = Direct(cache, "g", ("voxels", "number"), cache.cases())
    for items in (np.arange(17), np.array([16, 0, 5, 5, 12]), np.empty(0, np.int64)):
        out = direct.room(len(items))
        direct.read(items, out)
        expected = cache.read("g", ("voxels", "number"), cache.cases(), rows=items).arrays
        assert all(np.array_equal(out[k], expected[k]) and out[k].dtype == expected[k].dtype for k in expected)
    assert all(offsets is not None for offsets in direct.offsets.values())
    direct.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("pcrl-read")]


def test_what_is_packed_or_chunked_otherwise_is_read_too(tmp_path):
    (tmp_path / "shards").mkdir()
    draw = np.random.default_rng(0)
    arrays = {"packed": draw.integers(0, 9, (5, 4), np.int16), "large": draw.integers(0, 9, (5, 8, 4), np.int16)}
    drawn = Drawn(arrays, Counter(), {"large": (2, 4, 4)}, frozenset({"packed"}))
    write_shard(tmp_path, "a", {"g": drawn}, {"patient": "p", "settings": "f00d", "source": {}})
    write_split(tmp_path, ["p"], 0)
    gather_manifest(tmp_path, {"reader": "test", "fingerprint": "f00d"})
    for name in arrays:
        direct = Direct(open_cache(tmp_path), "g", (name,), ("a",))
        out = direct.room(3)
        direct.read(np.array([4, 0, 2]), out)
        assert direct.offsets == {0: None}
        assert np.array_equal(out[name], arrays[name][[4, 0, 2]])


def test_a_shard_that_is_cut_short_while_training_is_named(cache, tmp_path):
    shutil.copytree(cache.path, tmp_path / "cut")
    direct = Direct(open_cache(tmp_path / "cut"), "g", ("voxels",), cache.cases())
    direct.read(np.arange(17), direct.room(17))
    path = shard_path(tmp_path / "cut", "c")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(IntegrityError, match=r"c\.h5 is torn or unreadable: run `pcrl prep` again"):
        direct.read(np.arange(17), direct.room(17))
    path.unlink()
    with pytest.raises(IntegrityError, match=r"c\.h5 is missing"):
        direct.read(np.arange(17), direct.room(17))


# ---- caches beyond one memory


def dealt_loader(cache, rank=0, ranks=1, where="ram", deals=6):
    return loader(cache, batch=6, rank=rank, ranks=ranks, where=where, deals=deals)


@pytest.mark.parametrize("where", ["ram", "disk"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_dealt_items_come_in_the_same_order_for_any_number_of_ranks(cache, ranks, where):
    alone = numbers(take(dealt_loader(cache), 7))
    parts = [numbers(take(dealt_loader(cache, r, ranks, where), 7)) for r in range(ranks)]
    assert [[parts[k % ranks][s][k // ranks] for k in range(6)] for s in range(7)] == alone


@pytest.mark.parametrize(("ranks", "share"), [(1, 1), (2, 2), (3, 3)])
def test_a_rank_keeps_its_parts_only(cache, ranks, share):
    kept = []
    for r in range(ranks):
        source = dealt_loader(cache, r, ranks)
        kept.append(len(source.resident["number"]))
        seen = set(chain(*numbers(take(source, 30))))
        assert seen <= set(source.resident["number"].tolist())
    assert sum(kept) == 17
    assert max(kept) <= 17 / share + 3


def test_every_dealt_item_is_seen_and_an_epoch_repeats_none(cache):
    source = dealt_loader(cache)
    epochs = [list(chain(*numbers(take(source, 2, 2 * e)))) for e in range(40)]
    assert all(len(set(e)) == len(e) == 12 for e in epochs)
    assert set(chain(*epochs)) == set(range(17))


def test_parts_that_do_not_fit_the_batch_are_refused(cache):
    with pytest.raises(ConfigError, match=r"train\.deals \(4\) does not divide the batch \(6\)"):
        dealt_loader(cache, deals=4)
    with pytest.raises(ConfigError, match="leave it out"):
        loader(cache, batch=2, deals=2, order=lambda epoch: np.arange(4))


def test_ranks_of_one_machine_share_its_memory(cache, monkeypatch):
    class Memory:
        available = 5 * 17 * (6 * 2 + 8)

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    assert loader(cache, where="auto").place == "ram"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert loader(cache, where="auto").place == "disk"
    assert "for each of 3 ranks here" in loader(cache, where="auto").residency
