import errno
import gc
import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save as library_save
from toys import Noise, Source, digests, losses, new_run, rows, stop_at, trainer

from pcrl_cli.core import files
from pcrl_cli.core.errors import ConfigError, IntegrityError, MachineError
from pcrl_cli.engine import lock
from pcrl_cli.engine import run as module
from pcrl_cli.engine.run import Checkpoint, Run, read_metrics, unseal


def checkpoint(step, **values):
    model = {"w": torch.full((3, 2), float(step)), "n": torch.tensor(step)}
    return Checkpoint(model, {"main/0/momentum_buffer": torch.ones(2)}, {"step": step} | values)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != lock.NAME)


def opened(folder, settings, fingerprint="f00d", verb="pretrain", overwrite=False):
    return Run.open(folder, verb, settings, fingerprint, "a: 1\n", overwrite)


# ---- torn checkpoints


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def other_step(path):
    path.write_text(path.read_text("utf-8").replace('"step": 20', '"step": 10'))


TEARS = {
    "truncated model": ("model.safetensors", truncate),
    "flipped bit in the model": ("model.safetensors", flip),
    "no model": ("model.safetensors", Path.unlink),
    "flipped bit in the optimiser": ("optim.safetensors", flip),
    "truncated state": ("state.json", truncate),
    "changed state": ("state.json", other_step),
    "no state": ("state.json", Path.unlink),
    "empty state": ("state.json", lambda path: path.write_bytes(b"")),
    "state without hashes": ("state.json", lambda path: path.write_text('{"step": 20}')),
    "state that is no object": ("state.json", lambda path: path.write_text("[]")),
}


@pytest.mark.parametrize(("name", "tear"), TEARS.values(), ids=TEARS.keys())
def test_a_torn_newest_checkpoint_is_named_and_passed_over(tmp_path, name, tear):
    run = new_run(tmp_path)
    run.save(checkpoint(10), {}, 2)
    tear(run.save(checkpoint(20), {}, 2) / name)
    said = []
    assert run.newest(said.append).state["step"] == 10
    assert len(said) == 1
    assert f"step_000020/{name}" in said[0]
    assert "falling back" in said[0]


def test_when_all_checkpoints_are_torn_the_run_says_so(tmp_path):
    run = new_run(tmp_path)
    for step in (10, 20):
        truncate(run.save(checkpoint(step), {}, 2) / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"no checkpoint in .* is sound; start again with --overwrite"):
        run.newest(lambda text: None)


def test_training_goes_on_from_the_checkpoint_before_a_torn_one_and_ends_the_same(tmp_path):
    trainer(tmp_path / "whole").fit()
    with pytest.raises(Noise):
        trainer(tmp_path / "torn", source=Source(hook=stop_at(12))).fit()
    truncate(tmp_path / "torn/checkpoints/step_000010/model.safetensors")
    said = []

    t = trainer(tmp_path / "torn")
    t.listener.warn = said.append
    t.fit()
    assert len(said) == 1
    assert digests(tmp_path / "torn") == digests(tmp_path / "whole")
    assert losses(tmp_path / "torn") == losses(tmp_path / "whole")


def test_a_damaged_later_checkpoint_does_not_count_among_the_kept(tmp_path):
    run = new_run(tmp_path)
    run.save(checkpoint(10), {}, 2)
    truncate(run.save(checkpoint(20), {}, 2) / "model.safetensors")
    run.save(checkpoint(15), {}, 2)
    assert names(tmp_path / "checkpoints") == ["step_000010", "step_000015"]


# ---- sealing


def test_a_checkpoint_comes_back_bitwise_with_its_metadata(tmp_path):
    run = new_run(tmp_path)
    weights = torch.randn(2, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d)
    path = run.save(Checkpoint({"w": weights}, {}, {"step": 3, "best": None}), {"contract": "c"}, 2)
    found = unseal(path)
    assert torch.equal(found.model["w"], weights)
    assert found.state == {"step": 3, "best": None}
    with safe_open(path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"contract": "c"}


def test_saving_leaves_nothing_for_the_garbage_collector(tmp_path):
    run = new_run(tmp_path)
    tensors = {str(i): torch.ones(3) for i in range(50)}
    gc.collect()
    gc.disable()
    try:
        run.save(Checkpoint(tensors, tensors, {"step": 3}), {}, 2)
        assert gc.collect() < len(tensors)  # the closures of JSON encoders; by the library's way for tensors 4 each
    finally:
        gc.enable()


def test_a_file_is_what_the_library_makes_of_tensors_of_every_type():
    types = (torch.float32, torch.float64, torch.int64, torch.int16, torch.uint8, torch.bool, torch.float16)
    tensors = {f"{dtype}": torch.ones(2, 3, dtype=dtype) for dtype in types}
    tensors |= {"count": torch.tensor(7), "empty": torch.zeros(0, 3), "part": torch.arange(12).view(3, 4)[:, 1]}
    packed = {name: tensor.contiguous() for name, tensor in tensors.items()}
    assert module._to_bytes(tensors, {"a": "b"}) == library_save(packed, {"a": "b"})
    brief = {"x": torch.ones(3, dtype=torch.bfloat16), "y": torch.ones(2)}
    assert module._to_bytes(brief, {}) == library_save(brief)


@pytest.mark.parametrize("keep", [2, 3])
def test_the_newest_checkpoints_are_kept(tmp_path, keep):
    run = new_run(tmp_path)
    for step in (5, 10, 15, 20, 1_000_000):
        run.save(checkpoint(step), {}, keep)
    assert [int(p.name[5:]) for p in run.checkpoints] == [5, 10, 15, 20, 1_000_000][-keep:]
    assert names(tmp_path / "checkpoints") == sorted(p.name for p in run.checkpoints)


@pytest.mark.parametrize("call", ["mkdir", "write_bytes", "replace", "rename"])
def test_a_disk_that_fills_leaves_the_former_checkpoint_and_nothing_else(tmp_path, monkeypatch, call):
    run = new_run(tmp_path)
    run.save(checkpoint(10), {}, 2)
    before = unseal(tmp_path / "checkpoints/step_000010")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for step in (20, 10):  # a new one, and the same one again
        with monkeypatch.context() as patch:
            patch.setattr(Path, call, full)
            with pytest.raises(MachineError, match=r"(?i)cannot write .*no space left"):
                run.save(checkpoint(step, other=1), {}, 2)
        assert names(tmp_path / "checkpoints") == ["step_000010"]
        assert unseal(tmp_path / "checkpoints/step_000010").state == before.state


class Killed(BaseException):
    pass


@contextmanager
def killed_at(monkeypatch, nth):
    """The nth rename of a folder does not happen: the process is dead."""
    rename, calls = Path.rename, []

    def dying(self, target):
        calls.append(target)
        if len(calls) >= nth:
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        patch.setattr(module.shutil, "rmtree", lambda *a, **k: None)  # nor does the cleaning-up of an exception
        with pytest.raises(Killed):
            yield


def test_a_kill_before_the_rename_leaves_no_visible_checkpoint(tmp_path, monkeypatch):
    run = new_run(tmp_path)
    with killed_at(monkeypatch, 1):
        run.save(checkpoint(10), {}, 2)
    assert run.checkpoints == []
    assert run.newest(pytest.fail) is None
    assert len(names(tmp_path / "checkpoints")) == 1
    run.tidy()
    assert names(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("nth", [1, 2])
def test_a_kill_while_a_folder_is_replaced_keeps_the_former_one_in_reach(tmp_path, monkeypatch, nth):
    run = new_run(tmp_path)
    run.save(checkpoint(10, version=1), {}, 2)
    run.save_best(checkpoint(10, version=1), {})
    for again in (lambda: run.save(checkpoint(10, version=2), {}, 2), lambda: run.save_best(checkpoint(10), {})):
        with killed_at(monkeypatch, nth):
            again()
    for _ in range(2):  # as it was left, and tidied up
        assert run.newest(pytest.fail).state == {"step": 10, "version": 1}
        assert unseal(run.weights_path().parent).state == {"step": 10, "version": 1}
        run.check_weights()
        assert run.best_is_sound()
        run.tidy()
    assert names(tmp_path / "checkpoints") == ["step_000010"]
    assert [n for n in names(tmp_path) if n.startswith(".")] == []


def test_a_resumed_run_cleans_up_after_a_killed_one(tmp_path):
    with pytest.raises(Noise):
        trainer(tmp_path, source=Source(hook=stop_at(7))).fit()
    half = tmp_path / "checkpoints/.step_000007.elsewhere-1.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    trainer(tmp_path).fit()
    assert names(tmp_path / "checkpoints") == ["step_000015", "step_000020"]


# ---- opening


def test_a_new_run_holds_its_settings_and_is_not_finished(tmp_path):
    run = opened(tmp_path / "a/b", {"lr": 1})
    assert (tmp_path / "a/b/config.yaml").read_text("utf-8") == "a: 1\n"
    assert not run.finished
    run.finish({"x": 1})
    assert Run.load(tmp_path / "a/b").finished
    assert Run.load(tmp_path / "a/b").record["result"] == {"x": 1}


def test_other_settings_are_refused_with_the_names_of_those_that_differ(tmp_path):
    opened(tmp_path, {"train": {"lr": 1, "seed": 0, "widths": [1, 2]}, "gone": 1})
    changed = {"train": {"lr": 2, "seed": 0, "widths": [1, 3]}, "came": None}
    with pytest.raises(ConfigError, match=r"\(different: gone, train\.lr, train\.widths\); choose another --out"):
        opened(tmp_path, changed, "beef")


def test_the_same_settings_on_other_data_are_refused(tmp_path):
    opened(tmp_path, {"lr": 1})
    with pytest.raises(ConfigError, match=r"\(different: the data\)"):
        opened(tmp_path, {"lr": 1}, "beef")


def test_another_verbs_run_is_refused(tmp_path):
    opened(tmp_path, {"lr": 1})
    with pytest.raises(ConfigError, match="holds a run of `pcrl pretrain`; choose another --out"):
        opened(tmp_path, {"task": "luna"}, "beef", verb="finetune")


def test_a_folder_that_is_no_run_is_neither_taken_nor_deleted(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"is not a run folder \(it has no run.json\)"):
            opened(tmp_path, {}, overwrite=overwrite)
    (tmp_path / "run.json").write_text('{"name": "of another program"}')
    with pytest.raises(ConfigError, match="has another schema"):
        opened(tmp_path, {}, overwrite=True)
    assert names(tmp_path) == ["run.json", "thesis.tex"]


def test_overwrite_begins_anew_and_spares_files_that_are_not_the_runs(tmp_path):
    trainer(tmp_path).fit()
    (tmp_path / "captures/step_1").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    run = opened(tmp_path, {"lr": 2}, "beef", overwrite=True)
    assert names(tmp_path) == ["config.yaml", "notes.txt", "run.json"]
    assert (tmp_path / "notes.txt").read_text("utf-8") == "mine"
    assert run.record["settings"] == {"lr": 2}


def test_a_torn_record_is_an_integrity_error_and_may_be_overwritten(tmp_path):
    opened(tmp_path, {"lr": 1})
    truncate(tmp_path / "run.json")
    with pytest.raises(IntegrityError, match=r"run.json is torn"):
        opened(tmp_path, {"lr": 1})
    assert not opened(tmp_path, {"lr": 1}, overwrite=True).finished


def test_a_run_that_was_killed_while_it_was_made_can_be_made(tmp_path, monkeypatch):
    write = files.write_atomic

    def dying(path, content):
        write(path, content)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomic", dying)
        with pytest.raises(Killed):
            opened(tmp_path, {"lr": 1})
    opened(tmp_path, {"lr": 1})
    assert names(tmp_path) == ["config.yaml", "run.json"]


def test_a_draft_of_another_rank_is_no_foreign_file(tmp_path):
    (tmp_path / ".run.json.node-7.tmp").write_text("{")
    opened(tmp_path, {"lr": 1})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_without_permission_is_the_machines_error_for_real(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MachineError, match="permission"):
        opened(tmp_path / "run", {})


def test_a_file_in_the_way_is_the_machines_error(tmp_path):
    (tmp_path / "file").write_text("here")
    for folder in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(MachineError, match=r"cannot make .*; choose another --out"):
            opened(folder, {})


@pytest.mark.parametrize("call", ["mkdir", "write_bytes"])
def test_a_place_that_cannot_be_written_is_the_machines_error(tmp_path, monkeypatch, call):
    def refused(*_, **__):
        raise OSError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, call, refused)
        with pytest.raises(MachineError, match=r"(?i)cannot (write|make) .*permission denied"):
            opened(tmp_path / "run", {})
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.name != lock.NAME] == []


def test_a_full_disk_while_logging_is_the_machines_error(tmp_path, monkeypatch):
    run = new_run(tmp_path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(MachineError, match=r"metrics.jsonl: no space left"):
        run.log({"step": 0})


# ---- metrics and weights


def test_metrics_stay_json_and_a_torn_last_line_is_left_out(tmp_path):
    run = new_run(tmp_path)
    run.log({"step": 0, "a": float("nan"), "b": float("-inf"), "c": None, "d": 1.5})
    run.log({"step": 1})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 2, "a": 1.')
    assert read_metrics(run.metrics_path) == [{"step": 0, "a": None, "b": None, "c": None, "d": 1.5}, {"step": 1}]
    run.rewind_metrics(1)
    assert [json.loads(line)["step"] for line in run.metrics_path.read_text("utf-8").splitlines()] == [0]


@pytest.mark.parametrize("bad", [b"\xff\xfe{", b'{"step": 0', b"[1]", b'{"stop": 1}', b"[" * 100_000, b'"step"'])
def test_a_damaged_row_costs_itself_alone_and_is_counted(tmp_path, bad):
    run = new_run(tmp_path)
    run.log({"step": 0})
    with run.metrics_path.open("ab") as file:
        file.write(bad + b"\n")
    run.log({"step": 1})
    assert run.rows() == [{"step": 0}, {"step": 1}]
    assert run.rewind_metrics(2) == 1
    assert run.rewind_metrics(2) == 0
    assert run.rows() == [{"step": 0}, {"step": 1}]


def test_weights_are_the_best_ones_else_the_last_else_none(tmp_path):
    run = new_run(tmp_path)
    with pytest.raises(ConfigError, match="holds no weights yet"):
        run.weights_path()
    run.save(checkpoint(10), {}, 2)
    run.save(checkpoint(20), {}, 2)
    assert run.weights_path().parent.name == "step_000020"
    run.save_best(checkpoint(10), {})
    assert run.weights_path() == tmp_path / "best/model.safetensors"
    run.check_weights()
    flip(run.weights_path())
    with pytest.raises(IntegrityError, match=r"best/model.safetensors is torn or was changed .*; train again"):
        run.check_weights()


# ---- validation


def validated(folder, figures, learner=None, hook=None):
    """Trains 4 epochs whose validations give these figures."""
    return trainer(
        folder,
        source=Source(hook=hook),
        validate=lambda learner, step: {"auroc": figures[step // 5 - 1]},
        best="auroc",
    )


def test_the_best_validation_is_kept_and_restored_when_the_run_goes_on(tmp_path):
    figures = [0.5, 0.9, 0.7, 0.8]
    whole = validated(tmp_path / "whole", figures).fit()
    assert whole.best == {"name": "auroc", "value": 0.9, "step": 10}
    for stop in (3, 8, 12, 17):
        folder = tmp_path / str(stop)
        with pytest.raises(Noise):
            validated(folder, figures, hook=stop_at(stop)).fit()
        assert validated(folder, figures).fit().best == whole.best
        assert unseal(folder / "best").state["step"] == 10
        assert (folder / "best/model.safetensors").read_bytes() == (
            tmp_path / "whole/best/model.safetensors"
        ).read_bytes()
        assert [row.get("auroc") for row in rows(folder)][4::5] == figures


def test_validation_without_a_value_or_not_finite_is_never_the_best(tmp_path):
    assert validated(tmp_path / "a", [float("nan"), 0.6, None, float("inf")]).fit().best["value"] == 0.6
    assert validated(tmp_path / "b", [None] * 4).fit().best is None
    assert not (tmp_path / "b/best").exists()


def test_without_validation_there_is_no_best(tmp_path):
    t = trainer(tmp_path)
    assert t.fit().best is None
    assert t.run.weights_path().parent.name == "step_000020"


def test_a_damaged_best_is_named_and_begun_anew(tmp_path):
    figures = [0.9, 0.5, 0.6, 0.4]
    with pytest.raises(Noise):
        validated(tmp_path, figures, hook=stop_at(7)).fit()
    flip(tmp_path / "best/model.safetensors")
    t = validated(tmp_path, figures)
    said = []
    t.listener.warn = said.append
    assert t.fit().best["value"] == 0.6
    assert "best is damaged" in said[0]
    t.run.check_weights()


def test_validation_sees_eval_mode_without_gradients_and_training_goes_on_in_train_mode(tmp_path):
    seen = []

    def validate(learner, step):
        seen.append((learner.training, torch.is_grad_enabled()))
        return {}

    t = trainer(tmp_path, validate=validate)
    t.source.hook = lambda step: seen and seen.append((t.learner.training, None))
    t.fit()
    assert seen.count((False, False)) == 4
    trainer(tmp_path / "plain").fit()
    assert digests(tmp_path) == digests(tmp_path / "plain")
