import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pcrl_cli.core.case import Case, Points
from pcrl_cli.core.errors import ConfigError, DataError, IntegrityError, MachineError
from pcrl_cli.core.files import temporary
from pcrl_cli.core.plan import Prepared
from pcrl_cli.data import build as module
from pcrl_cli.data.build import auto_jobs, build, case_rng
from pcrl_cli.data.cache import open_cache, shard_path
from pcrl_cli.data.volume import scan_id
from pcrl_cli.pure.crops import CandidateBlocks, CropPairs

PAIRS = CropPairs(
    pairs=2,
    global_sizes=((12, 12, 6), (16, 16, 12)),
    local_sizes=((2, 2, 2), (6, 6, 4)),
    global_shape=(8, 8, 4),
    local_shape=(4, 4, 4),
    n_locals=2,
)
PLANS = [PAIRS, CandidateBlocks(side_mm=6, negatives=2)]
HEADER = {"settings": {"spacing_mm": 1.0}, "licence": "none"}
ROOT = Path(__file__).parents[2]


def read(case: Case) -> Prepared:
    """A scan from a `.txt` that says its seed, or what is wrong with it."""
    word = case.path.read_text("utf-8").strip()
    if word == "torch":
        raise DataError(f"torch loaded: {'torch' in sys.modules}")
    if word == "torn":
        raise IntegrityError("torn: the file ends early")
    if word == "crash":
        os._exit(3)
    if word == "bug":
        raise ZeroDivisionError
    if word == "stale":
        raise OSError(errno.ESTALE, "Stale file handle", str(case.path))
    if word == "slow":
        time.sleep(60)
    shape = (24, 24, 4) if word == "small" else (24, 24, 16)
    values = np.random.default_rng(int(word) if word.isdigit() else 0).normal(size=shape)
    values = (values * 100).astype(np.float32)
    return Prepared(values, np.ones(3), np.zeros(3), np.eye(3), -150.0, -1000.0, (scan_id(values),))


def make_cases(folder: Path, words: list[str]) -> list[Case]:
    folder.mkdir(exist_ok=True)
    cases = []
    for i, word in enumerate(words):
        path = folder / f"scan{i}.txt"
        path.write_text(word)
        points = Points(np.full((3, 3), 8.0 + i), np.array([0, 1, 0], np.uint8), ("x", "y", "z"))
        cases.append(Case(f"scan{i}", f"patient{i}", path, points))
    return cases


def run(cases, out, **options):
    return build(cases, read, PLANS, out, HEADER, **({"jobs": 1, "root": cases[0].path.parent} | options))


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").glob("*.h5"))}


def test_a_build_opens_as_a_cache(tmp_path):
    cases = make_cases(tmp_path / "raw", ["1", "2", "3"])
    seen = []
    result = run(cases, tmp_path / "out", progress=lambda *row: seen.append(row))
    assert seen == [(1, 3, "scan0", "made"), (2, 3, "scan1", "made"), (3, 3, "scan2", "made")]
    cache = open_cache(tmp_path / "out")
    assert cache.manifest == json.loads(json.dumps(result.manifest))
    assert cache.groups == ("candidates", "pairs")
    assert cache.verify("full") == 3
    assert cache.read("pairs", ["globals", "boxes"], cache.cases()).arrays["globals"].shape == (6, 2, 1, 8, 8, 4)
    assert cache.read("candidates", ["id"], ["scan1"]).arrays["id"].tolist() == [b"x", b"y", b"z"]
    assert cache.manifest["totals"]["counts"]["candidates"]["candidates_0"] == 6
    assert (tmp_path / "out" / "bad_cases.jsonl").read_text("utf-8") == ""


def test_bytes_do_not_depend_on_jobs_order_or_time(tmp_path):
    cases = make_cases(tmp_path / "raw", ["1", "2", "3"])
    run(cases, tmp_path / "one")
    result = run(cases[::-1], tmp_path / "two", jobs=2)  # spawning takes seconds: another time of day
    assert sorted(result.made) == ["scan0", "scan1", "scan2"]
    assert shards(tmp_path / "one") == shards(tmp_path / "two")
    for name in ("manifest.json", "split.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_another_seed_gives_other_crops(tmp_path):
    cases = make_cases(tmp_path / "raw", ["1"])
    run(cases, tmp_path / "one", seed=1)
    run(cases, tmp_path / "two", seed=2)
    assert shards(tmp_path / "one") != shards(tmp_path / "two")


def test_a_cases_generator_depends_on_seed_case_and_group_only():
    draws = {case_rng(*key).integers(2**60) for key in [(0, "a", "g"), (1, "a", "g"), (0, "b", "g"), (0, "a", "h")]}
    assert len(draws) == 4
    assert case_rng(0, "a", "g").integers(2**60) in draws


def test_finished_cases_are_not_made_again(tmp_path):
    cases = make_cases(tmp_path / "raw", ["1", "small", "3"])
    run(cases, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").glob("scan[02].*")}
    again = run(cases, tmp_path / "out")
    assert (again.made, again.skipped, list(again.bad)) == ([], ["scan0", "scan2"], ["scan1"])
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_refused_case_is_tried_again_though_its_source_is_unchanged(tmp_path):
    cases = make_cases(tmp_path / "raw", ["1", "small"])
    assert list(run(cases, tmp_path / "out").bad) == ["scan1"]

    def mended(case: Case) -> Prepared:
        return replace_values(read(case))

    again = build(cases, mended, PLANS, tmp_path / "out", HEADER, jobs=1, root=cases[0].path.parent)
    assert (again.made, again.skipped, again.bad) == (["scan1"], ["scan0"], {})
    assert open_cache(tmp_path / "out").refused == ()


def replace_values(scan: Prepared) -> Prepared:
    return replace(scan, values=np.ones((24, 24, 16), np.float32))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_lost_mount_is_the_machines_error_and_refuses_no_case(tmp_path, jobs):
    cases = make_cases(tmp_path / "raw", ["1", "stale"])
    with pytest.raises(MachineError, match=r"cannot read .*scan1\.txt: stale file handle; mend"):
        run(cases, tmp_path / "out", jobs=jobs)
    cache = open_cache(tmp_path / "out")
    assert (cache.cases(), cache.refused) == (("scan0",), ())
    assert not list((tmp_path / "out" / "shards").glob("*.bad.json"))
    cases[1].path.write_text("2")
    assert run(cases, tmp_path / "out").made == ["scan1"]


def test_a_source_that_cannot_be_looked_at_is_the_machines_error(tmp_path):
    def denied(case: Case) -> list[Path]:
        raise PermissionError(errno.EACCES, "Permission denied", str(case.path))

    with pytest.raises(MachineError, match="permission denied"):
        run(make_cases(tmp_path / "raw", ["1"]), tmp_path / "out", files=denied)


def test_a_change_of_any_file_that_the_reader_names_makes_the_case_again(tmp_path):
    cases = make_cases(tmp_path / "raw", ["1"])
    voxels = tmp_path / "raw" / "voxels0.raw"
    voxels.write_bytes(b"old")
    options = {"files": lambda case: [case.path, voxels]}
    assert run(cases, tmp_path / "out", **options).made == ["scan0"]
    assert run(cases, tmp_path / "out", **options).skipped == ["scan0"]
    voxels.write_bytes(b"changed")
    assert run(cases, tmp_path / "out", **options).made == ["scan0"]


def test_a_scan_has_one_id_under_every_name_and_patient(tmp_path):
    cases = make_cases(tmp_path / "raw", ["1", "1", "2"])
    run(cases, tmp_path / "out")
    ids = [record["scan_ids"][0] for record in open_cache(tmp_path / "out").manifest["cases"]]
    assert ids[0] == ids[1] != ids[2]
    assert all(len(i) == 20 and int(i, 16) >= 0 for i in ids)


def test_the_id_depends_on_values_and_shape_and_not_on_memory_order_or_type():
    values = np.random.default_rng(0).normal(0, 500, (9, 10, 11)).astype(np.float32)
    same = [
        np.asfortranarray(values),
        values.astype(np.float64),
        values + np.float32(0),
        np.where(values > 1000, 1500, values),
    ]
    assert {scan_id(other) for other in [values, *same]} == {scan_id(values)}
    other = values.copy()
    other[4, 4, 4] += 2 if abs(other[4, 4, 4]) < 900 else -300 * np.sign(other[4, 4, 4])
    assert len({scan_id(v) for v in (values, other, values[:, :, :10], values.transpose(2, 1, 0))}) == 4


def test_small_scans_on_an_empty_ground_are_told_apart_by_any_voxel():
    """Every fourth voxel alone took nodules of different people, cut out of their surroundings, for one scan."""
    empty = np.full((64, 64, 33), -1000.0)
    one, other = empty.copy(), empty.copy()
    one[30, 30, 17], other[31, 30, 17] = 50.0, 50.0
    assert len({scan_id(v) for v in (empty, one, other)}) == 3


def test_a_record_of_before_there_were_ids_is_made_again(tmp_path):
    cases = make_cases(tmp_path / "raw", ["1"])
    run(cases, tmp_path / "out")
    path = tmp_path / "out" / "shards" / "scan0.json"
    record = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({key: value for key, value in record.items() if key != "scan_ids"}))
    assert run(cases, tmp_path / "out").made == ["scan0"]
    assert json.loads(path.read_text("utf-8")) == record


def test_a_refusal_is_recorded_with_its_kind_and_counts(tmp_path):
    cases = make_cases(tmp_path / "raw", ["small", "torn", "1", "torch"])
    strict = PAIRS.model_copy(update={"max_background": 0.0, "max_tries": 3})
    result = build(cases[:2], read, [PAIRS], tmp_path / "out", HEADER, jobs=1)
    kinds = [(row["case"], row["patient"], row["slug"], row["reason"][:4]) for row in result.manifest["refused"]]
    assert kinds == [("scan0", "patient0", "too_small", "too "), ("scan1", "patient1", "unreadable", "torn")]
    assert result.manifest["totals"]["refused"] == {"too_small": 1, "unreadable": 1}
    assert result.manifest["bad_cases"] == 2

    def airy(case: Case) -> Prepared:
        return replace(read(case), background=1e6)

    build(cases[2:3], airy, [strict], tmp_path / "airy", HEADER, jobs=1)
    record = json.loads((tmp_path / "airy" / "shards" / "scan2.bad.json").read_text("utf-8"))
    assert record["slug"] == "no_crops"
    assert record["counts"]["pairs"] == {
        "tried": 3, "kept": 0, "refused_iou": 0, "refused_background": 3, "unfit_sizes": 0,
    }  # fmt: skip
    assert (
        build(cases[3:], read, [PAIRS], tmp_path / "t", HEADER, jobs=1).manifest["refused"][0]["slug"] == "unreadable"
    )


def test_a_changed_source_table_or_setting_makes_the_case_again(tmp_path):
    cases = make_cases(tmp_path / "raw", ["1", "small", "3"])
    run(cases, tmp_path / "out")
    cases[1].path.write_text("22")
    assert run(cases, tmp_path / "out").made == ["scan1"]
    assert not (tmp_path / "out" / "shards" / "scan1.bad.json").exists()
    assert cases[2].points is not None
    moved = replace(cases[2].points, world=cases[2].points.world + 1)
    cases[2] = replace(cases[2], points=moved)
    assert run(cases, tmp_path / "out").made == ["scan2"]
    other = build(cases, read, [PAIRS], tmp_path / "out", HEADER, jobs=1, root=tmp_path / "raw")
    assert other.made == ["scan0", "scan1", "scan2"]


def test_moving_the_data_folder_makes_nothing_again(tmp_path):
    cases = make_cases(tmp_path / "raw", ["1"])
    run(cases, tmp_path / "out")
    (tmp_path / "raw").rename(tmp_path / "elsewhere")
    moved = [replace(case, path=tmp_path / "elsewhere" / case.path.name) for case in cases]
    assert run(moved, tmp_path / "out").skipped == ["scan0"]


def test_a_lost_or_truncated_shard_is_made_again_with_the_same_bytes(tmp_path):
    cases = make_cases(tmp_path / "raw", ["1", "2", "3"])
    run(cases, tmp_path / "out")
    good = shards(tmp_path / "out")
    shard_path(tmp_path / "out", "scan0").unlink()
    shard_path(tmp_path / "out", "scan1").write_bytes(good["scan1.h5"][:-10])
    (tmp_path / "out" / "shards" / "scan2.json").write_text('{"torn')
    assert run(cases, tmp_path / "out").made == ["scan0", "scan1", "scan2"]
    assert shards(tmp_path / "out") == good


def test_one_bad_scan_does_not_stop_the_others(tmp_path):
    cases = make_cases(tmp_path / "raw", ["small", "2", "torn", "4"])
    assert list(run(cases, tmp_path / "out").bad) == ["scan0", "scan2"]
    assert open_cache(tmp_path / "out").cases() == ("scan1", "scan3")
    lines = [json.loads(line) for line in (tmp_path / "out" / "bad_cases.jsonl").read_text("utf-8").splitlines()]
    assert [(line["case"], line["reason"][:4]) for line in lines] == [("scan0", "too "), ("scan2", "torn")]


def test_shards_of_the_work_add_up_to_the_whole(tmp_path):
    cases = make_cases(tmp_path / "raw", ["1", "2", "3", "4", "small"])
    run(cases, tmp_path / "whole")
    made = [run(cases, tmp_path / "parts", shard=(i, 2)).made for i in (1, 2)]
    assert made == [["scan0", "scan2"], ["scan1", "scan3"]]
    assert shards(tmp_path / "whole") == shards(tmp_path / "parts")
    for name in ("manifest.json", "split.json", "bad_cases.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    with pytest.raises(ConfigError, match="shard 3/2"):
        run(cases, tmp_path / "parts", shard=(3, 2))


def test_the_split_is_of_all_patients_whatever_the_limit(tmp_path):
    cases = make_cases(tmp_path / "raw", ["1", "2", "3", "4"])
    run(cases[:1], tmp_path / "few", patients=[case.patient for case in cases])
    run(cases, tmp_path / "all")
    assert (tmp_path / "few" / "split.json").read_bytes() == (tmp_path / "all" / "split.json").read_bytes()


def test_workers_do_not_load_torch(tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'tests/data'); from pathlib import Path; import test_build as t\n"
        f"cases = t.make_cases(Path({str(tmp_path / 'raw')!r}), ['torch', 'torch'])\n"
        f"r = t.run(cases, Path({str(tmp_path / 'out')!r}), jobs=2)\n"
        "print(dict(sorted(r.bad.items())), 'torch' in sys.modules)\n"
    )
    code = "if __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in code.splitlines())
    script = tmp_path / "script.py"
    script.write_text(code)
    done = run_script(script)
    assert done.stdout.strip() == "{'scan0': 'torch loaded: False', 'scan1': 'torch loaded: False'} False", done.stderr


def run_script(script: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "data")])}
    command = [sys.executable, str(script)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60, check=False)


def test_a_dead_worker_is_the_machines_error_and_what_was_finished_is_kept(tmp_path):
    cases = make_cases(tmp_path / "raw", ["1", "2", "3"])
    run(cases[:1], tmp_path / "out")
    cases[1].path.write_text("crash")
    with pytest.raises(MachineError, match=r"worker process died.*fewer --jobs"):
        run(cases, tmp_path / "out", jobs=2)
    assert "scan0" in open_cache(tmp_path / "out").records


def test_a_bug_in_a_reader_is_not_hidden_as_a_bad_case(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(make_cases(tmp_path / "raw", ["bug"]), tmp_path / "out")


def test_too_little_memory_for_a_scan_is_the_machines_error(tmp_path):
    def hungry(case: Case) -> Prepared:
        raise MemoryError

    cases = make_cases(tmp_path / "raw", ["1"])
    with pytest.raises(MachineError, match="not enough memory for the scan scan0"):
        build(cases, hungry, PLANS, tmp_path / "out", HEADER, jobs=1)


def test_an_interruption_keeps_what_is_sealed_and_the_next_run_does_the_rest(tmp_path):
    cases = make_cases(tmp_path / "raw", ["1", "2", "3"])

    def stop(done, total, case, status):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cases, tmp_path / "out", progress=stop)
    assert open_cache(tmp_path / "out").cases() == ("scan0", "scan1")
    again = run(cases, tmp_path / "out")
    assert (again.skipped, again.made) == (["scan0", "scan1"], ["scan2"])


def test_killed_at_any_time_the_cache_is_whole_and_no_worker_survives(tmp_path):
    cases = make_cases(tmp_path / "raw", ["1", "2", "slow", "slow", "5"])
    script = tmp_path / "script.py"
    script.write_text(
        "if __name__ == '__main__':\n"
        "    from pathlib import Path; import os, test_build as t\n"
        f"    cases = t.make_cases(Path({str(tmp_path / 'raw')!r}), ['1', '2', 'slow', 'slow', '5'])\n"
        f"    t.run(cases, Path({str(tmp_path / 'out')!r}), jobs=2)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "data")])}
    process = subprocess.Popen([sys.executable, str(script)], env=environment, start_new_session=True)
    shard_folder = tmp_path / "out" / "shards"
    deadline = time.monotonic() + 60
    while not (shard_folder / "scan1.json").exists() or not (shard_folder / "scan0.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    mine = temporary(shard_path(tmp_path / "out", "scan2"))
    draft = mine.with_name(mine.name.replace(f"-{os.getpid()}.", f"-{process.pid}."))
    draft.write_bytes(b"half a shard")
    while members(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    good = shards(tmp_path / "out")
    for case in cases[2:4]:
        case.path.write_text("3")
    again = run(cases, tmp_path / "out")
    assert again.skipped == ["scan0", "scan1"]
    assert again.made == ["scan2", "scan3", "scan4"]
    assert good.items() <= shards(tmp_path / "out").items()
    assert not draft.exists()


def members(group: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text("utf-8").rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def test_automatic_jobs_follow_cores_and_memory(monkeypatch):
    monkeypatch.setattr(module, "_cores", lambda: 8)
    monkeypatch.setattr(module, "_free_memory", lambda: 10 << 30)
    assert [auto_jobs(peak) for peak in (1 << 30, 1 << 20, 100 << 30)] == [7, 8, 1]
    monkeypatch.undo()
    assert 1 <= auto_jobs() <= (os.cpu_count() or 1)
