"""The same image under two names in one cache, which no split by patient keeps apart: said where it is made and used."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chain import Heard, settings, tissue, write_scan

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.data.cache import Cache, Items, open_cache
from pcrl_cli.data.copies import copies_in
from pcrl_cli.data.volume import Volume
from pcrl_cli.pure.split import Split
from pcrl_cli.readers.volume_io import write_nifti
from pcrl_cli.stages.evaluate import evaluate
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.pretrain import pretrain
from pcrl_cli.stages.workspace import Workspace

sys.path.append(str(Path(__file__).parents[1] / "readers"))
from pictures import save

PAIRS = settings(pairs={"pairs": 1, "global_shape": [32, 32, 16], "n_locals": 2})
PICTURES = settings(size=16)
MASKED = settings(prepare={"size": 16})
KINDS = ["crops", "labelled scans", "images", "masked", "masked_images"]


def table(path: Path, names: list[str], parts: dict[str, str] | None = None) -> Path:
    """Every file a patient of its own, with a label."""
    rows = [f"{n},P{n},{i % 2},{(parts or {}).get(n, 'train')}" for i, n in enumerate(names)]
    path.write_text("path,patient,sick,part\n" + "\n".join(rows) + "\n", "utf-8")
    return path


def make(kind: str, tmp_path: Path, seeds: dict[str, int], heard: Heard, parts: dict[str, str] | None = None):
    """A cache of files that are equal where their seeds are; masks are all alike."""
    raw, three = tmp_path / "raw", kind in ("crops", "labelled scans", "masked")
    ending = ".nii.gz" if three else ".png"
    for name, seed in seeds.items():
        path = raw / f"{name}{ending}"
        if three:
            write_scan(path, seed=seed)
        else:
            save(path, np.random.default_rng(seed).integers(0, 255, (20, 24)).astype(np.uint8))
        if kind.startswith("masked"):
            there = tmp_path / f"masks/{name}{ending}"
            there.parent.mkdir(parents=True, exist_ok=True)
            if three:
                mask = np.zeros(tissue().array.shape, np.int16)
                mask[20:30, 20:30, 10:20] = 1
                write_nifti(Volume(mask, np.ones(3), np.zeros(3), np.eye(3)), there)
            else:
                save(there, np.full((20, 24), 1, np.uint8))
    if kind in ("images", "labelled scans"):
        table(tmp_path / "t.csv", [f"{n}{ending}" for n in seeds], parts)
    return prep("folder", data=raw, out=tmp_path / "c", **call(kind, tmp_path), jobs=1, listener=heard)


def call(kind: str, tmp_path: Path) -> dict[str, Any]:
    """Settings and options of a cache of this kind."""
    whole = settings(pairs={"pairs": 0}, whole={"shape": [8, 8, 8]})
    layers = {
        "crops": PAIRS,
        "labelled scans": whole,
        "images": PICTURES,
        "masked": settings(),
        "masked_images": MASKED,
    }
    options = {"masks": tmp_path / "masks"} if kind.startswith("masked") else {"labels": tmp_path / "t.csv"}
    return {"layers": layers[kind], "options": {} if kind == "crops" else options}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_cache_says_that_two_patients_share_an_image(kind, tmp_path, heard):
    done = make(kind, tmp_path, {"a": 1, "b": 2, "c": 1}, heard)
    assert (done.bad, done.copies["same"], done.copies["other_patients"]) == (0, 2, 2)
    (said,) = [note for note in done.notes if "same as another one" in note]
    assert said in heard.warnings
    assert said.startswith(f"2 {done.unit} are the same as another one")
    assert "give both the same patient with --patients, or remove one of them, and prepare again" in said
    assert copies_in(open_cache(done.cache)).counts == done.copies
    again = prep("folder", data=tmp_path / "raw", out=tmp_path / "c", **call(kind, tmp_path), jobs=1)
    assert (again.made, [note for note in again.notes if "same as another one" in note]) == (0, [said])


def test_different_images_are_no_copies(tmp_path, heard):
    done = make("images", tmp_path, {"a": 1, "b": 2, "c": 3}, heard)
    assert set(done.copies.values()) == {0}
    assert not any("same as" in text for text in heard.warnings)


def test_copies_in_two_parts_are_named_with_their_parts_at_prep_and_wherever_they_are_used(tmp_path):
    heard, parts = Heard(), {"c.png": "test", "d.png": "val"}
    done = make("images", tmp_path, {"a": 1, "b": 2, "c": 1, "d": 3, "e": 3, "f": 4, "g": 5}, heard, parts)
    assert done.copies == {"same": 4, "other_patients": 4, "other_parts": 4}
    pairs = ("a.png in train, c.png in test", "e.png in train, d.png in val")
    assert sum(pair in text for pair in pairs for text in heard.warnings) == 1
    assert "lie in different parts of the split" in heard.warnings[-1]
    workspace, later = Workspace(tmp_path / "w"), Heard()
    layers = settings(train={"steps": 1, "batch": 2}, learner={"side": 16, "resize": 16}, width=4)
    tuned = finetune(done.cache, task="classify", workspace=workspace, layers=layers, listener=later)
    assert any("lie in different parts" in note and note in later.warnings for note in tuned.notes)
    small = settings(learner={"width": 4}, train={"steps": 1, "batch": 2})
    pretrain(done.cache, dim="2d", workspace=workspace, layers=small, dry_run=True, listener=(pre := Heard()))
    assert any("lie in different parts" in text for text in pre.warnings)


def test_empty_pictures_are_equal_by_nature_and_no_copies(tmp_path, heard):
    for name in "ab":
        save(tmp_path / f"raw/{name}.png", np.full((20, 24), 7, np.uint8))
        save(tmp_path / f"masks/{name}.png", np.full((20, 24), 1, np.uint8))
    done = prep("folder", data=tmp_path / "raw", out=tmp_path / "c", layers=PICTURES, jobs=1)
    assert (done.made, done.copies["same"]) == (2, 0)
    masked = call("masked_images", tmp_path)
    done = prep("folder", data=tmp_path / "raw", out=tmp_path / "m", **masked, jobs=1)
    assert (done.made, done.copies["same"]) == (2, 0)


def test_one_patients_copies_leak_nothing_and_are_said_to_count_twice(tmp_path, heard):
    for name in "ab":
        save(tmp_path / f"raw/{name}.png")
    (tmp_path / "p.csv").write_text("path,patient\na.png,P\nb.png,P\n", "utf-8")
    done = prep(
        "folder",
        data=tmp_path / "raw",
        out=tmp_path / "c",
        layers=PICTURES,
        options={"patients": tmp_path / "p.csv"},
        jobs=1,
    )
    assert done.copies == {"same": 2, "other_patients": 0, "other_parts": 0}
    assert any("(the first: a.png and b.png), always of one patient: nothing leaks" in note for note in done.notes)


def test_a_hundred_thousand_pictures_are_compared_without_opening_a_shard_unless_two_are_equal(monkeypatch):
    n, a_shard, opened = 112_000, 2048, []
    records = []
    for k in range(0, n, a_shard):
        rows = range(k, min(n, k + a_shard))
        items = {
            "id": [f"{i}.png" for i in rows],
            "patient": [f"p{i}" for i in rows],
            "scan_id": [f"s{i}" for i in rows],
        }
        arrays = {"images": {"image": {"shape": [len(rows), 1, 2, 2], "dtype": "|u1"}}}
        records.append({"case": f"shard{k}", "patient": "", "scan_ids": [], "items": items, "arrays": arrays})
    split = Split(seed=0, train=tuple(f"p{i}" for i in range(n - 1)), val=(), test=(f"p{n - 1}",), order=())
    cache = Cache(Path("nowhere"), {"cases": records}, split)

    def read(self, group, arrays, case_ids, rows=None):
        opened.extend(case_ids)
        return Items({"image": np.arange(4 * len(rows), dtype=np.uint8).reshape(-1, 1, 2, 2)}, rows)

    monkeypatch.setattr(Cache, "read", read)
    assert (copies_in(cache).counts["same"], opened) == (0, [])
    for k, record in enumerate(records[:10]):  # 10 x 100 pictures, each with its copy in the last shards
        record["items"]["scan_id"][:100] = [f"twice{k}-{i}" for i in range(100)]
        records[-2 - k]["items"]["scan_id"][:100] = [f"twice{k}-{i}" for i in range(100)]
    records[-1]["items"]["scan_id"][-1] = "twice0-0"
    assert copies_in(cache).counts == {"same": 2001, "other_patients": 2001, "other_parts": 3}
    assert len(opened) == 10


def test_an_empty_picture_in_two_parts_is_no_leak_and_another_copy_is(tmp_path):
    workspace, seeds = Workspace(tmp_path / "w"), {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}
    for name, seed in seeds.items():
        pixels = np.random.default_rng(seed).integers(0, 255, (20, 24)).astype(np.uint8)
        save(tmp_path / f"raw/{name}.png", np.full((20, 24), 7, np.uint8) if name in "af" else pixels)
    table(tmp_path / "t.csv", [f"{n}.png" for n in seeds], {"e.png": "test", "f.png": "test"})
    layers = settings(train={"steps": 1, "batch": 2}, learner={"side": 16, "resize": 16}, width=4)

    def tuned(out: str):
        made = prep("folder", data=tmp_path / "raw", out=tmp_path / out, **call("images", tmp_path), jobs=1)
        return made, finetune(
            made.cache, task="classify", workspace=workspace, layers=layers, out=tmp_path / f"{out}-run"
        )

    made, run = tuned("empty")
    assert made.copies["same"] == 0
    evaluate(run.run, workspace=workspace)
    save(tmp_path / "raw/f.png", np.random.default_rng(2).integers(0, 255, (20, 24)).astype(np.uint8))
    made, run = tuned("copy")
    assert made.copies["other_parts"] == 2
    with pytest.raises(ConfigError, match=r"1 of 2 patients of the test part .* were trained on"):
        evaluate(run.run, workspace=workspace)
