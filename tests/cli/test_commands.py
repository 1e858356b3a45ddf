"""What a command prints, and with which code it ends."""

import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from chain import Chain, contents, write_scan
from typer.testing import CliRunner

from pcrl_cli.cli.app import app
from pcrl_cli.cli.console import Bars

PREP = ["--pairs", "4", "--negatives", "3", "--set", "pairs.global_shape=[32,32,16]", "--set", "pairs.n_locals=2"]
PRETRAIN = ["--width", "4", "--steps", "3", "--batch", "4", "--set", "train.check_every=2", "--set-aside", "0.5"]
TUNE = ["--task", "luna", "--set", "learner.side=24", "--steps", "6", "--batch", "4", "--ratio", "0.5"]


class Ended:
    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80", **environment})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr


@pytest.fixture
def pcrl(chain, monkeypatch, tmp_path):
    """Runs a command in the chain's workspace, from another folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, **environment: str) -> Ended:
        return Ended([str(a) for a in arguments], {"PCRL_WORKSPACE": str(chain.root), **environment})

    return run


def commands(chain: Chain, out: Path) -> dict[str, list[str | Path]]:
    """Every command, on work that is done already or is quick."""
    return {
        "prep": ["prep", "luna", *PREP],
        "pretrain": ["pretrain", *PRETRAIN],
        "finetune": ["finetune", *TUNE, "--weights", chain.pretrained.run],
        "evaluate": ["evaluate", chain.tuned.run],
        "probe": ["probe", chain.pretrained.run],
        "embed": ["embed", chain.pretrained.run, "--out", out / "f.npz", "--overwrite"],
        "export": ["export", chain.pretrained.run, "--to", out / "e.pt", "--overwrite"],
        "inspect": ["inspect", chain.cache],
        "report": ["report", chain.tuned.run, "--out", out / "r.html"],
        "doctor": ["doctor"],
        "config": ["config", "show", "pretrain"],
        "plan": ["finetune", *TUNE, "--width", "4", "--dry-run"],
    }


NAMES = [
    "prep", "pretrain", "finetune", "evaluate", "probe", "embed", "export", "inspect", "report", "doctor", "config", "plan",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_json_is_one_object_with_a_schema_and_nothing_else(pcrl, chain, tmp_path, name):
    done = pcrl(*commands(chain, tmp_path)[name], "--json")
    assert done.code == 0, done.err
    assert done.out.count("\n") == 1
    assert json.loads(done.out)["schema"] == f"pcrl.{name}/1"


def test_typed_commands_find_the_work_that_the_api_did(pcrl, chain):
    for name, result in (("prep", None), ("pretrain", chain.pretrained), ("finetune", chain.tuned)):
        done = pcrl(*commands(chain, Path())[name], "--json")
        found = json.loads(done.out)
        if result is None:
            assert (found["made"], found["skipped"]) == (0, 7)
        else:
            assert found == json.loads(json.dumps(result.to_json()))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("prep", "cache/luna"), ("pretrain", "runs/pretrain-luna-"), ("finetune", "runs/finetune-luna-"),
        ("evaluate", "evaluation/test/evaluation.json"), ("export", "e.pt"),
    ],
)  # fmt: skip
def test_quiet_prints_the_path_alone_and_otherwise_it_comes_last(pcrl, chain, tmp_path, name, path):
    quiet = pcrl(*commands(chain, tmp_path)[name], "-q")
    assert quiet.out.count("\n") == 1
    assert path in quiet.out
    assert Path(quiet.out.strip()).exists()
    assert all(line.startswith("warning: ") for line in quiet.err.splitlines())
    assert pcrl(*commands(chain, tmp_path)[name]).out.splitlines()[-1] == quiet.out.strip()


@pytest.mark.parametrize("name", NAMES)
def test_tables_fit_80_columns(pcrl, chain, tmp_path, name):
    done = pcrl(*commands(chain, tmp_path)[name])
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    body = lines[:-1] if Path(lines[-1]).exists() else lines  # a path is never broken
    assert max(len(line) for line in body) <= 80


def test_progress_goes_to_stderr(pcrl, chain, tmp_path):
    done = pcrl("pretrain", chain.cache, *PRETRAIN, "--out", tmp_path / "run", "--steps", "1", "--set", "train.seed=3")
    assert done.code == 0, done.err
    assert "pcrlv2 on 8 samples of 2 patients, 1 steps of 4" in done.err
    assert "1 steps of 4" not in done.out


def test_the_version_names_torch_and_the_commit(pcrl):
    done = pcrl("--version")
    assert done.code == 0
    assert f"torch {torch.__version__.split('+')[0]}" in done.out
    assert done.out.startswith("pcrl 0.")


def test_no_arguments_print_the_help(pcrl):
    done = pcrl()
    assert "finetune" in done.out + done.err


# ---------------------------------------------------------------------------------------------------- exit codes


def refused(ended: Ended, code: int, *texts: str) -> None:
    """One sentence on stderr, nothing on stdout."""
    assert ended.code == code, (ended.out, ended.err)
    assert ended.out == ""
    assert ended.err.startswith("pcrl: ")
    assert ended.err.count("\n") == 1
    for text in texts:
        assert text in ended.err


def test_usage_errors_end_with_2(pcrl, chain, tmp_path):
    refused(pcrl("pretrain", "--epochs", "1", "--steps", "1"), 2, "two ways to say one thing")
    refused(pcrl("pretrain", "--dim", "4d"), 2, "--dim is one of 2d, 3d, not '4d'")
    refused(pcrl("pretrain", "--crop", "all"), 2, "--crop is one of")
    refused(pcrl("prep", "lunar"), 2, "did you mean luna?")
    refused(pcrl("prep", "luna", "--jobs", "none"), 2, "--jobs is a number of processes or auto")
    refused(pcrl("prep", "luna", "--shard", "3/2"), 2, "--shard is I/N")
    refused(pcrl("pretrain", "--set", "train.lr"), 2, "is not KEY=VALUE")
    refused(pcrl("pretrain", "--set", "train.lr=["), 2, "is no YAML")
    refused(pcrl("pretrain", "--method", "pcrlv3"), 2, "did you mean pcrlv2?")
    refused(pcrl("finetune"), 2, "--task luna")
    refused(pcrl("evaluate", chain.tuned.run, "--fail-under", "auroc"), 2, "METRIC=NUMBER")
    refused(pcrl("export", chain.tuned.run, "--to", tmp_path / "x.onnx"), 2, "says no format")
    assert pcrl("pretrain", "--stepz", "3").code == 2
    assert pcrl("nonsense").code == 2


def test_configuration_errors_end_with_3(pcrl, chain, tmp_path):
    refused(pcrl("pretrain", chain.cache, "--dim", "2d"), 3, "is a 3D cache")
    refused(pcrl("pretrain", "--recipe", "released"), 3, "made with recipe paper, not released")
    refused(pcrl("pretrain", "--recipe", "own"), 3, "the recipes are paper, released")
    refused(pcrl("pretrain", "--set", "train.lrr=1"), 3, "did you mean train.lr?")
    refused(pcrl("pretrain", PCRL_TRAIN__LRR="1"), 3, "unknown setting train.lrr", "environment")
    refused(pcrl("pretrain", *PRETRAIN, "--batch", "9"), 3, "the batch (9) is larger")
    refused(pcrl("pretrain", "--config", tmp_path / "none.yaml"), 3, "does not exist")
    refused(pcrl("finetune", *TUNE, "--weights", chain.pretrained.run, "--width", "8"), 3, "width 8 was asked for")
    refused(pcrl("inspect", tmp_path), 3, "is neither a cache")
    refused(pcrl("evaluate", chain.pretrained.run), 3, "predicts nothing")
    refused(pcrl("report", tmp_path), 3, "is not a run folder")
    refused(pcrl("prep", "luna", *PREP, "--seed", "1"), 3, "different: seed)")
    refused(pcrl("prep", "luna", "--modality", "mr"), 3, "data set of CT scans")
    write_scan(tmp_path / "raw/a.mhd")
    refused(pcrl("prep", "folder", "--data", tmp_path / "raw", "--negatives", "20"), 3, "lists no candidates")


def test_data_errors_end_with_4(pcrl, tmp_path):
    refused(pcrl("prep", "luna", "--data", tmp_path / "none"), 4, "is not there: put LUNA16")
    (tmp_path / "empty").mkdir()
    refused(pcrl("prep", "folder", "--data", tmp_path / "empty"), 4, "is empty")
    write_scan(tmp_path / "raw/a.mhd")
    (tmp_path / "raw/a.raw").write_bytes(b"")
    arguments = ["prep", "folder", "--data", tmp_path / "raw", "--out", tmp_path / "c", "--jobs", "1"]
    bad = pcrl(*arguments, "--json")
    assert bad.code == 4
    assert json.loads(bad.out)["refused"] == {"unreadable": 1}  # the result comes first
    assert bad.err.splitlines()[-1].startswith("pcrl: 1 of 1 scans could not be used, more than --max-bad 0.05")
    done = pcrl(*arguments, "--max-bad", "1", "--json")
    assert done.code == 0
    assert json.loads(done.out)["bad"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_ends_with_6(pcrl, chain):
    before = contents(chain.root)
    refused(pcrl("pretrain", *PRETRAIN, "--device", "cuda", "--set", "train.seed=9"), 6, "no CUDA GPU")
    refused(pcrl("evaluate", chain.tuned.run, "--device", "cuda"), 6, "no CUDA GPU")
    assert contents(chain.root) == before


def test_a_place_that_cannot_be_written_ends_with_6(pcrl, chain, tmp_path):
    (tmp_path / "file").write_text("")
    for ended in (
        pcrl("export", chain.pretrained.run, "--to", tmp_path / "file/e.pt"),
        pcrl("prep", "luna", *PREP, "--out", tmp_path / "file/c", "-q"),
        pcrl("report", chain.pretrained.run, "--out", tmp_path / "file/r.html"),
        pcrl("embed", chain.pretrained.run, "--out", tmp_path / "file/f.npz"),
        pcrl("pretrain", *PRETRAIN, "--out", tmp_path / "file/run", "-q"),
    ):
        refused(ended, 6, "file")


def test_integrity_errors_end_with_7(pcrl, chain, tmp_path):
    shutil.copytree(chain.cache, tmp_path / "c")
    shard = next((tmp_path / "c/shards").glob("*.h5"))
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(pcrl("inspect", tmp_path / "c"), 7, "is torn")
    refused(pcrl("pretrain", tmp_path / "c", *PRETRAIN), 7, "is torn")
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    refused(pcrl("export", tmp_path / "w.safetensors", "--to", tmp_path / "e.pt"), 7, "no sound safetensors file")


def test_thresholds_end_with_8_after_the_result(pcrl, chain):
    low = pcrl("evaluate", chain.tuned.run, "--json", "--fail-under", "auroc=1")
    assert low.code == 8
    assert json.loads(low.out)["schema"] == "pcrl.evaluate/1"
    assert sum(line.startswith("pcrl: ") for line in low.err.splitlines()) == 1
    assert "under 1;" in low.err
    assert pcrl("evaluate", chain.tuned.run, "--fail-under", "cpm=0").code == 8
    assert pcrl("evaluate", chain.tuned.run, "--fail-under", "auroc=0").code == 0
    assert pcrl("evaluate", chain.tuned.run, "--fail-under", "dice=0").code == 2


def test_our_own_bug_ends_with_1_and_says_so(pcrl, chain, monkeypatch):
    def broken(path):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("pcrl_cli.stages.inspect.inspect", broken)
    done = pcrl("inspect", chain.cache)
    refused(done, 1, "this is a bug in pcrl", "ZeroDivisionError: oops", "--debug")
    assert "Traceback" in pcrl("inspect", chain.cache, "--debug").err


# ---------------------------------------------------------------------------------------------------- precedence


def test_flags_beat_set_beats_environment_beats_file_beats_recipe(pcrl, tmp_path):
    (tmp_path / "c.yaml").write_text("train: {lr: 0.2, momentum: 0.2, weight_decay: 0.2, batch: 20}\n")
    arguments = ["finetune", *TUNE, "--width", "4", "--config", tmp_path / "c.yaml", "--dry-run", "--json"]
    arguments += ["--set", "train.batch=5", "--set", "train.weight_decay=0.4"]
    done = pcrl(*arguments, PCRL_TRAIN__MOMENTUM="0.3", PCRL_TRAIN__WEIGHT_DECAY="0.3")
    train = json.loads(done.out)["settings"]["train"]
    assert (train["lr"], train["momentum"], train["weight_decay"], train["batch"]) == (0.2, 0.3, 0.4, 4)


def test_epochs_on_the_command_line_replace_steps_from_a_file(pcrl, chain):
    arguments = ["finetune", "--config", chain.scratch.run / "config.yaml", "--epochs", "5", "--dry-run", "--json"]
    train = json.loads(pcrl(*arguments).out)["settings"]["train"]
    assert (train["steps"], train["epochs"]) == (None, 5)


def test_a_runs_config_repeats_the_run(pcrl, chain):
    done = pcrl("pretrain", "--config", chain.pretrained.run / "config.yaml", "-q")
    assert done.out.strip() == str(chain.pretrained.run)
    config = ["--config", chain.tuned.run / "config.yaml"]
    done = pcrl("finetune", *config, "--weights", chain.pretrained.run, "-q")
    assert done.out.strip() == str(chain.tuned.run)


# --------------------------------------------------------------------------------------------------------- lines


def test_bars_print_a_line_at_times_where_there_is_no_terminal(capsys, monkeypatch):
    clock = iter([0.0, 10.0, 31.0, 31.0, 40.0])
    monkeypatch.setattr("pcrl_cli.cli.console.time.monotonic", lambda: next(clock))
    bars = Bars()
    bars.begin("training", 9, "steps")
    for done in (1, 2, 3):
        bars.advance(done, loss=0.5)
    bars.end()
    assert capsys.readouterr().err == "training: 2 of 9 steps, loss 0.5\n"


def test_quiet_bars_still_warn(capsys):
    bars = Bars(quiet=True)
    bars.say("a")
    bars.warn("b [c]")
    assert capsys.readouterr().err == "warning: b [c]\n"


def test_verbose_bars_print_every_advance_and_what_is_for_who_wants_to_know_everything(capsys):
    for bars, wanted in (
        (Bars(verbose=True), "s\nd\ntraining: 1 of 9 steps, loss 0.5\ntraining: 2 of 9 steps\n"),
        (Bars(), "s\n"),
    ):
        bars.say("s")
        bars.detail("d")
        bars.begin("training", 9, "steps")
        bars.advance(1, loss=0.5)
        bars.advance(2)
        bars.end()
        assert capsys.readouterr().err == wanted


def test_verbose_tells_settings_with_their_origin_machine_and_steps_on_stderr_alone(pcrl, chain, tmp_path):
    command = ["pretrain", chain.cache, *PRETRAIN]
    plain = pcrl(*command, "--out", tmp_path / "a", "--json")
    told = pcrl(*command, "--out", tmp_path / "b", "--json", "-v")
    assert (plain.code, told.code) == (0, 0)
    assert json.loads(told.out).keys() == json.loads(plain.out).keys()
    assert plain.err == ""
    lines = told.err.splitlines()
    assert lines[0].startswith("pcrl ")
    assert "torch" in lines[0]
    assert "train.batch: 4 (flags)" in lines
    assert "train.check_every: 2 (--set)" in lines
    assert any(line.startswith("learner.") and line.endswith("(recipe paper)") for line in lines)
    assert "train.momentum: 0.9 (default)" in lines or "train.momentum: 0.9 (recipe paper)" in lines
    assert any(line.startswith("torch ") and "on cpu, " in line and "threads" in line for line in lines)
    assert [line.split(",")[0] for line in lines if line.startswith("training: ")] == [
        f"training: {n} of 3 steps" for n in (1, 2, 3)
    ]
    assert lines[-1].startswith("took ")


def test_more_and_less_at_once_is_a_usage_error(pcrl):
    done = pcrl("config", "show", "pretrain", "-q", "-v")
    assert done.code == 2
    assert "one of them" in done.err


def test_every_command_knows_verbose(pcrl, tmp_path):
    from pcrl_cli.cli.app import app

    assert all("verbose" in inspect.signature(c.callback).parameters for c in app.registered_commands)
    done = pcrl("config", "show", "pretrain", "-v", "--json")
    assert json.loads(done.out)["verb"] == "pretrain"
    assert done.err.startswith("pcrl ")
