import errno
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest

from pcrl_cli.core.errors import ConfigError, IntegrityError, MachineError
from pcrl_cli.core.files import (
    fingerprint,
    read_json,
    remove_leftovers,
    sha256_file,
    temporary,
    write_atomic,
    write_json,
    write_sealed,
)
from pcrl_cli.core.plan import Drawn
from pcrl_cli.data import cache as module
from pcrl_cli.data.cache import gather_manifest, open_cache, shard_path, write_bad, write_shard, write_split

HEADER = {"reader": "test", "fingerprint": "f00d"}
ITEMS = {"a": 3, "b": 0, "c": 2, "d": 4}


def facts(case):
    return {"patient": f"p-{case}", "settings": "f00d", "source": {}}


def drawn(case, n, seed=0):
    rng = np.random.default_rng([seed, ord(case)])
    names = np.array([f"{case * (1 + i)}".encode() for i in range(n)], dtype=np.bytes_)
    blocks = rng.integers(-1000, 1000, (n, 1, 4, 4, 4), dtype=np.int16)
    return Drawn({"blocks": blocks, "id": names, "lesions": rng.normal(size=(2, 4))}, Counter(kept=n, tried=n + 1))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shards").mkdir()
    for case, n in ITEMS.items():
        write_shard(tmp_path, case, {"candidates": drawn(case, n)}, facts(case))
    write_split(tmp_path, [f"p-{case}" for case in ITEMS], 0)
    gather_manifest(tmp_path, HEADER)
    return tmp_path


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# --------------------------------------------------------------------------------------------------------- files


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    write_atomic(tmp_path / "x", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match=r"x: no space left on device; free some space"):
        write_atomic(tmp_path / "x", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x", b"old")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_without_permission_is_the_machines_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MachineError, match="permission"):
        write_atomic(tmp_path / "x", b"")


def test_json_comes_back_and_torn_json_is_an_integrity_error(tmp_path):
    write_json(tmp_path / "x.json", {"b": [1, 2.5], "a": "ä"})
    assert read_json(tmp_path / "x.json") == {"a": "ä", "b": [1, 2.5]}
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(IntegrityError, match="torn"):
        read_json(tmp_path / "x.json")
    with pytest.raises(IntegrityError, match="missing"):
        read_json(tmp_path / "y.json")


def test_a_fingerprint_depends_on_values_only():
    assert (
        fingerprint({"a": 1, "b": (2, 3)}) == fingerprint({"b": [2, 3], "a": 1}) != fingerprint({"a": 1, "b": [3, 2]})
    )
    assert len(fingerprint(None)) == 16


def test_only_leftovers_of_dead_processes_are_removed(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    mine = temporary(tmp_path / "case.h5")
    dead = mine.with_name(mine.name.replace(f"-{os.getpid()}.", f"-{int(ended.stdout)}."))
    elsewhere = mine.with_name(".case.h5.another_host-1.tmp")
    for path in (mine, dead, elsewhere, tmp_path / ".other.tmp"):
        path.touch()
    assert remove_leftovers(tmp_path) == 1
    assert not dead.exists()
    assert mine.exists()
    assert elsewhere.exists()


# --------------------------------------------------------------------------------------------------------- shards


def test_equal_arrays_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "shards").mkdir(parents=True)
        record = write_shard(tmp_path / name, "a", {"candidates": drawn("a", 3), "pairs": drawn("b", 1)}, facts("a"))
        assert record["sha256"] == sha256_file(shard_path(tmp_path / name, "a"))
    one, two = (shard_path(tmp_path / name, "a").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_shard_too_large_for_memory_is_built_in_a_file_and_holds_the_same(folder, monkeypatch):
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    record = write_shard(folder, "a", {"candidates": drawn("a", 3)}, facts("a"))
    path = shard_path(folder, "a")
    assert (record["bytes"], record["sha256"]) == (path.stat().st_size, sha256_file(path))
    assert not list((folder / "shards").glob(".*"))
    gather_manifest(folder, HEADER)
    np.testing.assert_array_equal(
        open_cache(folder).read("candidates", ["blocks"], ["a"]).arrays["blocks"], drawn("a", 3).arrays["blocks"]
    )


def test_items_are_chunks_and_raw(folder):
    with h5py.File(shard_path(folder, "a"), "r") as file:
        blocks = file["candidates/blocks"]
        assert blocks.chunks == (1, 1, 4, 4, 4)
        assert blocks.compression is None


def test_the_manifest_is_gathered_from_the_records(folder):
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert manifest["schema"] == "pcrl.cache/1"
    assert manifest["reader"] == "test"
    assert [record["case"] for record in manifest["cases"]] == ["a", "b", "c", "d"]
    assert manifest["totals"]["counts"] == {"candidates": {"kept": 9, "tried": 13}}
    assert manifest["totals"]["bytes"] == sum(path.stat().st_size for path in folder.glob("shards/*.h5"))


def test_records_of_other_settings_are_not_gathered(folder):
    write_shard(folder, "old", {"candidates": drawn("e", 1)}, facts("e") | {"settings": "beef"})
    assert len(gather_manifest(folder, HEADER)["cases"]) == 4


def test_a_case_refused_later_leaves_the_cache_and_comes_back_when_it_succeeds(folder):
    write_bad(folder, "a", "too small", facts("a"))
    assert [r["case"] for r in gather_manifest(folder, HEADER)["cases"]] == ["b", "c", "d"]
    line = {"case": "a", "patient": "p-a", "reason": "too small"}
    assert [json.loads(text) for text in (folder / "bad_cases.jsonl").read_text("utf-8").splitlines()] == [line]
    row = {**line, "slug": "unusable", "counts": {}}
    assert open_cache(folder).refused == (row,)
    write_shard(folder, "a", {"candidates": drawn("a", 3)}, facts("a"))
    assert len(gather_manifest(folder, HEADER)["cases"]) == 4
    assert open_cache(folder).refused == ()
    assert (folder / "bad_cases.jsonl").read_text("utf-8") == ""


def test_a_case_sealed_while_gathering_is_not_lost(folder, monkeypatch):
    real, calls = module.write_sealed, []

    def late(path, value):
        real(path, value)
        if path.name == "manifest.json" and not calls:
            calls.append(1)
            write_shard(folder, "late", {"candidates": drawn("e", 1)}, facts("e"))

    monkeypatch.setattr(module, "write_sealed", late)
    gather_manifest(folder, HEADER)
    assert "late" in open_cache(folder).records


# -------------------------------------------------------------------------------------------------------- reading


def test_reading_joins_cases_in_the_order_asked_for(folder):
    cache = open_cache(folder)
    items = cache.read("candidates", ["blocks", "id"], ["d", "b", "a"])
    expected = np.concatenate([drawn(case, ITEMS[case]).arrays["blocks"] for case in "dba"])
    np.testing.assert_array_equal(items.arrays["blocks"], expected)
    np.testing.assert_array_equal(items.case, [0, 0, 0, 0, 2, 2, 2])
    assert items.arrays["id"].tolist() == [b"d", b"dd", b"ddd", b"dddd", b"a", b"aa", b"aaa"]
    np.testing.assert_array_equal(cache.sizes("candidates", "blocks", ["d", "b", "a"]), [4, 0, 3])


def test_rows_are_read_as_if_everything_had_been(folder):
    cache = open_cache(folder)
    rows = np.array([6, 0, 0, 3])
    some, everything = (cache.read("candidates", ["blocks", "id"], ["d", "b", "a"], r) for r in (rows, None))
    np.testing.assert_array_equal(some.case, everything.case[rows])
    for name in ("blocks", "id"):
        np.testing.assert_array_equal(some.arrays[name], everything.arrays[name][rows])


def test_cases_and_patients_follow_the_split(folder):
    cache = open_cache(folder)
    parts = [cache.cases(part) for part in ("train", "val", "test")]
    assert sorted(sum(parts, ())) == list(cache.cases("all")) == ["a", "b", "c", "d"]
    assert cache.patients("train") == tuple(f"p-{case}" for case in parts[0])
    assert cache.cases("all", patients=["p-c"]) == ("c",)


def test_an_array_that_the_cache_lacks_is_a_configuration_error(folder):
    with pytest.raises(ConfigError, match=r"no pairs/globals .its groups: candidates."):
        open_cache(folder).read("pairs", ["globals"], ["a"])


def test_no_cache_or_another_schema_is_a_configuration_error(folder, tmp_path):
    with pytest.raises(ConfigError, match="is no cache"):
        open_cache(tmp_path / "nowhere")
    write_json(folder / "manifest.json", {"schema": "pcrl.cache/0"})
    with pytest.raises(ConfigError, match=r"schema pcrl\.cache/0, and this version reads pcrl\.cache/1"):
        open_cache(folder)
    write_json(folder / "manifest.json", [])
    with pytest.raises(ConfigError, match="schema None"):
        open_cache(folder)


def test_a_cache_without_a_usable_case_is_a_configuration_error(folder):
    gather_manifest(folder, {"fingerprint": "beef"})
    with pytest.raises(ConfigError, match="no usable case"):
        open_cache(folder)


@pytest.mark.parametrize("name", ["manifest.json", "split.json"])
def test_a_torn_manifest_or_split_is_an_integrity_error(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(IntegrityError, match=f"{name} is torn"):
        open_cache(folder)


def test_a_missing_or_foreign_split_is_an_integrity_error(folder):
    write_sealed(folder / "split.json", {"train": []})
    with pytest.raises(IntegrityError, match="not a split"):
        open_cache(folder)
    (folder / "split.json").unlink()
    with pytest.raises(IntegrityError, match="missing"):
        open_cache(folder)


# ------------------------------------------------------------------------------------------------------ integrity


def test_a_flipped_byte_is_found_by_the_full_check_only(folder):
    cache = open_cache(folder)
    assert cache.verify("full") == 4
    flip_a_byte(shard_path(folder, "c"))
    assert cache.verify("quick") == 0
    with pytest.raises(IntegrityError, match=r"c\.h5 was changed or damaged.*only the damaged case is made again"):
        cache.verify("full")


def test_what_was_hashed_once_is_remembered_until_the_file_changes(folder, tmp_path):
    cache, memory = open_cache(folder), tmp_path / "verified.json"
    assert [cache.verify("full", memory) for _ in range(2)] == [4, 0]
    os.utime(shard_path(folder, "a"), ns=(0, 0))
    assert cache.verify("full", memory) == 1
    flip_a_byte(shard_path(folder, "a"))
    with pytest.raises(IntegrityError, match="damaged"):
        cache.verify("full", memory)


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_a_truncated_or_missing_shard_is_found(folder, mode):
    cache, path = open_cache(folder), shard_path(folder, "a")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="torn"):
        cache.verify(mode)
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        cache.verify(mode)


def test_reading_a_torn_missing_or_foreign_shard_names_the_file_and_the_way_out(folder):
    cache, path = open_cache(folder), shard_path(folder, "a")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(IntegrityError, match=r"a\.h5 is torn or unreadable: run `pcrl prep` again"):
        cache.read("candidates", ["blocks"], ["a"])
    path.write_bytes(shard_path(folder, "c").read_bytes())
    with pytest.raises(IntegrityError, match="not the file that its record describes"):
        cache.read("candidates", ["blocks"], ["a"])
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        cache.read("candidates", ["blocks"], ["a"])
