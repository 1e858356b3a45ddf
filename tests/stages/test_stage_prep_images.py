"""`prep nih | chexpert | folder` in 2D: a shard holds many images, and everything is counted by image."""

import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import Heard, contents, settings

from pcrl_cli.core.errors import ConfigError, DataError
from pcrl_cli.data.cache import open_cache
from pcrl_cli.data.loader import Loader
from pcrl_cli.phantoms import radiograph
from pcrl_cli.readers import nih, shards
from pcrl_cli.readers.image_io import read_image, write_png
from pcrl_cli.stages.inspect import inspect
from pcrl_cli.stages.prep import PrepResult, prep, require

sys.path.append(str(Path(__file__).parents[1] / "readers"))
from pictures import bomb, ramp, save

SIDE = 32
SMALL = settings(size=SIDE)
FEW = 8  # images a shard


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SMALLEST", FEW)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("nih")
    radiograph.make(root, 12)
    return root


@pytest.fixture
def raw(source, tmp_path) -> Path:
    """A copy that a test may spoil."""
    (tmp_path / "raw/images").mkdir(parents=True)
    for path in source.rglob("*.*"):
        if path.is_file():
            (tmp_path / "raw" / path.relative_to(source)).write_bytes(path.read_bytes())
    return tmp_path / "raw"


def of(raw: Path, out: Path, name: str = "nih", jobs: int = 1, layers=SMALL, **more) -> PrepResult:
    result = prep(name, data=raw, out=out, layers=layers, jobs=jobs, **more)
    assert isinstance(result, PrepResult)
    return result


def images(raw: Path) -> list[str]:
    return sorted(path.name for path in (raw / "images").iterdir())


def sealed(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(out).items() if name.endswith(".h5")}


def ids(out: Path) -> list[str]:
    cache = open_cache(out)
    return [name.decode() for name in cache.read("images", ("id",), cache.cases()).arrays["id"]]


# ------------------------------------------------------------------------------------------------- what is prepared


def test_every_image_is_cached_with_its_label_and_patient(source, tmp_path):
    done = of(source, tmp_path / "c")
    cache, names = open_cache(tmp_path / "c"), images(source)
    assert (done.unit, done.made, done.bad, len(done.cases)) == ("images", len(names), 0, -(-len(names) // FEW))
    items = cache.read("images", ("image", "label", "id", "patient"), cache.cases()).arrays
    assert (items["image"].dtype, items["image"].shape) == (np.uint8, (len(names), 1, SIDE, SIDE))
    assert [name.decode() for name in items["id"]] == names
    refs = {ref.id: ref for case in nih.cases(source) for ref in case.images}
    for name, patient, label, image in zip(names, items["patient"], items["label"], items["image"], strict=True):
        assert (patient.decode(), tuple(label.tolist())) == (refs[name].patient, refs[name].label)
        np.testing.assert_array_equal(image[0], read_image(refs[name].path, SIDE).pixels)
    assert cache.manifest["dim"] == 2
    assert tuple(cache.manifest["classes"]) == nih.CLASSES
    assert cache.manifest["modality"] == "xray"


def test_the_split_is_by_patient_and_rows_find_its_images(source, tmp_path):
    of(source, tmp_path / "c")
    cache, seen = open_cache(tmp_path / "c"), []
    for part in ("train", "val", "test"):
        patients, cases = cache.patients(part), cache.cases(part)
        rows = cache.rows("images", "patient", cases, patients)
        found = cache.read("images", ("patient",), cases, rows=rows).arrays["patient"]
        assert {name.decode() for name in found} == set(patients)
        seen += found.tolist()
    assert len(seen) == len(images(source))


def test_positives_are_counted_by_finding(source, tmp_path):
    counts = of(source, tmp_path / "c").totals["images"]
    total = np.sum([ref.label for case in nih.cases(source) for ref in case.images], axis=0)
    assert {name: counts[f"with {name}"] for name in nih.CLASSES} == dict(zip(nih.CLASSES, total.tolist(), strict=True))
    assert counts["kept"] == len(images(source))


def test_both_aspects_are_options(raw, tmp_path):
    save(raw / "images" / images(raw)[0], np.full((40, 80), 200, np.uint8))
    of(raw, tmp_path / "s")
    of(raw, tmp_path / "p", layers=settings(size=SIDE, aspect="pad"))
    first = [open_cache(tmp_path / n).read("images", ("image",), ["images-00000"]).arrays["image"][0] for n in "sp"]
    assert (first[0].min(), (first[1] == 0).mean()) == (200, 0.5)


def test_inspect_says_how_many_images_of_what(source, tmp_path):
    of(source, tmp_path / "c")
    facts = inspect(tmp_path / "c").facts
    n = len(images(source))
    assert facts["shards"] == f"{-(-n // FEW)} with {n} of {n} images"
    assert (facts["size"], facts["modality"], facts["classes"][0]) == (SIDE, "xray", "Atelectasis")


# ------------------------------------------------------------------------------------- the same however it was made


def test_two_processes_seal_the_same_bytes_as_one(source, tmp_path):
    of(source, tmp_path / "a", layers=settings(size=SIDE))
    of(source, tmp_path / "b", jobs=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(sealed(tmp_path / "a")) > 2


def test_an_interrupted_call_is_continued_to_the_same_bytes(source, tmp_path):
    class Impatient(Heard):
        def advance(self, done: int, **values: float) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        of(source, tmp_path / "a", listener=Impatient())
    assert len(sealed(tmp_path / "a")) == 1
    again = of(source, tmp_path / "a")
    assert (again.skipped, again.made) == (FEW, len(images(source)) - FEW)
    of(source, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert of(source, tmp_path / "a").made == 0


def test_shards_of_several_processes_are_the_whole(source, tmp_path):
    for i in (1, 2, 3):
        of(source, tmp_path / "a", shard=(i, 3))
    of(source, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_limit_counts_images_and_the_rest_can_follow(source, tmp_path):
    done = of(source, tmp_path / "a", limit=FEW + 3)
    assert (done.made, sum(done.patients.values())) == (FEW + 3, 12)
    assert ids(tmp_path / "a") == images(source)[: FEW + 3]
    rest = of(source, tmp_path / "a")
    assert (rest.skipped, rest.made) == (FEW, len(images(source)) - FEW)
    of(source, tmp_path / "b")
    assert sealed(tmp_path / "a") == sealed(tmp_path / "b")


def test_a_limit_never_makes_a_finished_shard_smaller_and_the_plan_says_so(source, tmp_path):
    def planned(limit):
        plan = prep("nih", data=source, out=tmp_path / "a", layers=SMALL, jobs=1, limit=limit, dry_run=True)
        return plan.figures["there already"], plan.figures["to prepare"]

    total = len(images(source))
    of(source, tmp_path / "a", limit=FEW + 3)
    before = sealed(tmp_path / "a")
    assert planned(FEW + 1) == (FEW + 3, 0)
    assert planned(None) == (FEW, total - FEW)  # the cut shard has to be made again
    assert of(source, tmp_path / "a", limit=FEW + 1).made == 0
    assert sealed(tmp_path / "a") == before
    of(source, tmp_path / "a")
    whole = contents(tmp_path / "a")
    assert planned(3) == (FEW, 0)
    assert of(source, tmp_path / "a", limit=3).skipped == FEW
    assert contents(tmp_path / "a") == whole


def test_a_limit_on_a_shard_whose_images_have_changed_makes_it_again(raw, tmp_path):
    of(raw, tmp_path / "c")
    write_png(ramp(), raw / "images" / images(raw)[0])
    plan = prep("nih", data=raw, out=tmp_path / "c", layers=SMALL, jobs=1, limit=3, dry_run=True)
    assert (plan.figures["there already"], plan.figures["to prepare"]) == (0, 3)
    assert of(raw, tmp_path / "c", limit=3).made == 3


def test_the_plan_counts_images(source, tmp_path):
    plan = prep("nih", data=source, out=tmp_path / "c", layers=SMALL, jobs=1, dry_run=True)
    assert (plan.figures["images"], plan.figures["to prepare"]) == (len(images(source)),) * 2
    assert not (tmp_path / "c").exists()


def test_a_changed_image_or_label_makes_its_shard_again_and_no_other(raw, tmp_path):
    of(raw, tmp_path / "c")
    write_png(ramp(), raw / "images" / images(raw)[FEW])
    assert of(raw, tmp_path / "c").made == min(FEW, len(images(raw)) - FEW)
    table = raw / radiograph.LAST
    lines = table.read_text("utf-8").splitlines()
    cells = lines[1].split(",")
    lines[1] = ",".join([cells[0], "Hernia" if cells[1] != "Hernia" else "Mass", *cells[2:]])
    table.write_text("\n".join(lines), encoding="utf-8")
    assert of(raw, tmp_path / "c").made == FEW


def test_no_image_is_in_two_shards_when_the_listing_is_cut_otherwise(raw, tmp_path, monkeypatch):
    of(raw, tmp_path / "c")
    monkeypatch.setattr(shards, "SMALLEST", 2 * FEW)
    of(raw, tmp_path / "c")
    assert ids(tmp_path / "c") == images(raw)
    for name in images(raw)[:-3]:
        (raw / "images" / name).unlink()
    of(raw, tmp_path / "c")
    assert ids(tmp_path / "c") == images(raw)
    assert len(sealed(tmp_path / "c")) == 1


# -------------------------------------------------------------------------------------------------------- bad input


def test_bad_images_are_named_with_reason_and_patient_and_the_rest_is_prepared(raw, tmp_path):
    names = images(raw)
    (raw / "images" / names[1]).write_bytes(b"no picture")
    bomb(raw / "images" / names[FEW], 40000, 40000)
    heard = Heard()
    done = of(raw, tmp_path / "c", listener=heard)
    assert (done.made, done.bad, done.totals["images"]["unreadable"]) == (len(names) - 2, 2, 2)
    assert set(done.bad_cases) == {names[1], names[FEW]}
    rows = [json.loads(line) for line in (tmp_path / "c/bad_cases.jsonl").read_text("utf-8").splitlines()]
    assert [(row["case"], row["patient"]) for row in rows] == [(n, str(int(n[:8]))) for n in (names[1], names[FEW])]
    assert "is no PNG" in rows[0]["reason"]
    assert "not decoded" in rows[1]["reason"]
    assert sum("left out" in line for line in heard.warnings) == 2
    assert set(ids(tmp_path / "c")) == set(names) - set(done.bad_cases)
    again = of(raw, tmp_path / "c")
    assert (again.skipped, again.bad) == (len(names) - 2, 2)


def test_too_many_bad_images_are_an_error_counted_by_image(raw, tmp_path):
    names = images(raw)
    for name in names[:2]:
        (raw / "images" / name).write_bytes(b"no picture")
    done = of(raw, tmp_path / "c")
    require(done, 2 / len(names))
    with pytest.raises(DataError, match=rf"2 of {len(names)} images could not be used, more than --max-bad"):
        require(done, 1.9 / len(names))


def test_a_shard_without_one_readable_image_harms_no_other(raw, tmp_path):
    for name in images(raw)[:FEW]:
        (raw / "images" / name).write_bytes(b"")
    done = of(raw, tmp_path / "c")
    assert (done.bad, done.made) == (FEW, len(images(raw)) - FEW)
    assert ids(tmp_path / "c") == images(raw)[FEW:]
    assert "images-00000" not in open_cache(tmp_path / "c").cases()


def test_missing_images_are_counted_and_no_bad_cases(raw, tmp_path):
    (raw / "images" / images(raw)[0]).unlink()
    done = of(raw, tmp_path / "c")
    assert (done.absent_rows, done.bad, done.made) == (1, 0, len(images(raw)))


def test_many_refusals_are_not_said_one_by_one(raw, tmp_path):
    for name in images(raw)[:22]:
        (raw / "images" / name).write_bytes(b"")
    heard = Heard()
    of(raw, tmp_path / "c", listener=heard)
    said = [line for line in heard.warnings if "no image has" not in line]
    assert len(said) == 21
    assert said[-1].startswith("and 2 others: see")


@pytest.mark.parametrize(
    ("name", "values", "options", "what"),
    [
        ("nih", {"uncertain": "one"}, {}, "--uncertain is not for the reader nih"),
        ("nih", {"view": "frontal"}, {}, "--view is not for the reader nih"),
        ("nih", {"classes": ["a"]}, {}, "classes come from the data set"),
        ("nih", {}, {"labels": Path("x.csv")}, "--labels is not for the reader nih"),
        ("nih", {"spacing_mm": 2}, {}, "unknown setting spacing_mm"),
        ("luna", {"size": 64}, {}, "unknown setting size"),
        ("luna", {}, {"labels": Path("x.csv")}, "--labels is not for the reader luna"),
    ],
)
def test_what_a_data_set_has_no_use_for_is_refused(source, tmp_path, name, values, options, what):
    with pytest.raises(ConfigError, match=what):
        prep(name, data=source, out=tmp_path / "c", layers=[("flags", values)], options=options, jobs=1)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("values", [{"size": 4}, {"size": 5000}, {"aspect": "crop"}])
def test_a_value_that_no_picture_has_is_refused(source, tmp_path, values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        prep("nih", data=source, out=tmp_path / "c", layers=settings(**values), jobs=1)


def test_another_size_is_another_cache(source, tmp_path):
    of(source, tmp_path / "c")
    with pytest.raises(ConfigError, match=r"other settings \(different: size\)"):
        of(source, tmp_path / "c", layers=settings(size=40))


# --------------------------------------------------------------------------------------------------- official parts


def lists(raw: Path, test: set[str]) -> None:
    """The official lists with these patients in the test part."""
    of_test = [name for name in images(raw) if str(int(name[:8])) in test]
    (raw / "test_list.txt").write_text("\n".join(of_test), encoding="utf-8")
    (raw / "train_val_list.txt").write_text("\n".join(set(images(raw)) - set(of_test)), encoding="utf-8")


def test_official_lists_decide_the_parts_if_asked(raw, tmp_path):
    lists(raw, {"2", "5"})
    asked = settings(size=SIDE, official_split=True)
    of(raw, tmp_path / "c", layers=asked)
    cache = open_cache(tmp_path / "c")
    assert cache.patients("test") == ("2", "5")
    assert len(cache.patients("val")) == 1
    assert len(cache.patients("train")) == 9
    with pytest.raises(ConfigError, match=r"different: official_split"):
        of(raw, tmp_path / "c")


def test_a_patient_in_two_official_lists_ends_it_before_anything_is_made(raw, tmp_path):
    lists(raw, {"2"})
    twice = next(name for name in images(raw) if name.startswith("00000003"))
    with (raw / "test_list.txt").open("a", encoding="utf-8") as file:
        file.write(f"\n{twice}\n")
    with pytest.raises(DataError, match="the patient 3 is in two of the official parts"):
        of(raw, tmp_path / "c", layers=settings(size=SIDE, official_split=True))
    assert not (tmp_path / "c").exists()


# ------------------------------------------------------------------------------------------------- other data sets


def test_chexpert_is_prepared_with_its_uncertain_labels(tmp_path):
    from test_chexpert import TRAIN, VALID, table

    root = tmp_path / "CheXpert-v1.0-small"
    for path in (*TRAIN, *VALID):
        save(root / path)
    table(root, "train.csv", TRAIN)
    table(root, "valid.csv", VALID)
    done = of(root, tmp_path / "c", "chexpert", layers=settings(size=SIDE, uncertain="ignore"))
    assert done.totals["images"]["unknown Edema"] == 2
    frontal = of(tmp_path, tmp_path / "d", "chexpert", layers=settings(size=SIDE, view="frontal", official_split=True))
    assert (done.made, frontal.made, frontal.absent_rows) == (4, 3, 0)
    assert open_cache(tmp_path / "d").patients("test") == ("patient64541",)


def test_a_folder_with_a_table_of_labels_is_prepared(tmp_path):
    for name in "abcd":
        save(tmp_path / f"raw/{name}.png")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,patient,wet,cold\na.png,P,1,0\nb.png,P,,1\nc.png,Q,0,0\n", encoding="utf-8")
    heard = Heard()
    done = of(tmp_path / "raw", tmp_path / "c", "folder", options={"labels": labels}, listener=heard)
    cache = open_cache(tmp_path / "c")
    assert (done.made, cache.manifest["classes"], cache.manifest["dim"]) == (3, ["wet", "cold"], 2)
    assert cache.read("images", ("label",), cache.cases()).arrays["label"].tolist() == [[1, 0], [-1, 1], [0, 0]]
    assert any("1 pictures are not in" in line for line in heard.warnings)
    labels.write_text("path,patient,wet,cold\na.png,P,1,0\nb.png,Q,,1\nc.png,Q,0,0\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"1 images of .* belonged to other patients.*b\.png to P, now Q"):
        of(tmp_path / "raw", tmp_path / "c", "folder", options={"labels": labels})


def test_a_folder_of_pictures_needs_no_table(tmp_path):
    for name in "abc":
        save(tmp_path / f"raw/{name}.png")
    of(tmp_path / "raw", tmp_path / "c", "folder")
    cache = open_cache(tmp_path / "c")
    assert cache.manifest["classes"] == []
    assert cache.read("images", ("label",), cache.cases()).arrays["label"].shape == (3, 0)


# ------------------------------------------------------------------------------------------------------- the loader


HAS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("where", ["disk", pytest.param("gpu", marks=HAS_GPU)])
def test_images_come_in_the_same_order_from_wherever_they_lie(source, tmp_path, where):
    of(source, tmp_path / "c")
    cache = open_cache(tmp_path / "c")
    patients, cases = cache.patients("train"), cache.cases("train")
    rows = cache.rows("images", "image", cases, patients)

    def taken(place):
        device = torch.device("cuda" if place == "gpu" else "cpu")
        loader = Loader(cache, "images", ("image", "label"), cases, 4, 3, device, place, rows=rows)
        batches = loader.batches(0)
        found = list(islice(batches, 2 * loader.per_epoch // 4 + 1))
        batches.close()
        return found

    for (p, a), (q, b) in zip(taken("ram"), taken(where), strict=True):
        assert torch.equal(p.cpu(), q.cpu())
        assert all(torch.equal(a[name], b[name].cpu()) for name in ("image", "label"))


# -------------------------------------------------------------------------------------------------------- real films


@pytest.mark.real
def test_real_films_are_prepared(real_data, tmp_path):
    raw = real_data / "ChestXray14"
    done = of(raw, tmp_path / "c", layers=settings(size=64))
    assert (done.made, done.bad, done.absent_rows, done.notes) == (497, 0, 0, [])
    assert done.patients == {"train": 348, "val": 50, "test": 99}
    assert (done.totals["images"]["with Infiltration"], done.totals["images"]["with Pneumonia"]) == (104, 22)
    cache = open_cache(tmp_path / "c")
    pixels = cache.read("images", ("image",), cache.cases()).arrays["image"]
    assert 90 < pixels.mean() < 160
    assert (pixels.std((1, 2, 3)) > 15).all()


@pytest.mark.real
def test_a_folder_of_real_films_with_labels_is_prepared(real_data, tmp_path):
    """NIH's rows written as one's own table: the same patients, the same labels."""
    raw = real_data / "ChestXray14"
    refs = [ref for case in nih.cases(raw) for ref in case.images][:40]
    lines = [f"images/{ref.id},{ref.patient},{','.join(map(str, ref.label))}" for ref in refs]
    (tmp_path / "l.csv").write_text("\n".join([f"path,patient,{','.join(nih.CLASSES)}", *lines]), encoding="utf-8")
    of(raw, tmp_path / "own", "folder", layers=settings(size=64), options={"labels": tmp_path / "l.csv"})
    of(raw, tmp_path / "nih", layers=settings(size=64), limit=40)
    own, theirs = open_cache(tmp_path / "own"), open_cache(tmp_path / "nih")
    for name in ("image", "label", "patient"):
        a, b = (c.read("images", (name,), c.cases()).arrays[name] for c in (own, theirs))
        np.testing.assert_array_equal(a, b)
