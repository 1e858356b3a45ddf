"""Weights files that mean harm, or are torn: nothing in them runs, and one sentence says so."""

import argparse
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as save_tensors
from typer.testing import CliRunner

from pcrl_cli.cli.app import app
from pcrl_cli.core.errors import ConfigError, IntegrityError
from pcrl_cli.networks.transfer import read_weights
from pcrl_cli.networks.untrusted import open_untrusted


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def zipped(content: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def legacy(content: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def rezipped(change, compression=zipfile.ZIP_STORED) -> bytes:
    """A sound file whose entries are changed on the way."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(zipped({"a": torch.ones(8)}))) as old,
        zipfile.ZipFile(out, "w", compression) as new,
    ):
        for entry in old.infolist():
            for name, data in change(entry.filename, old.read(entry)):
                new.writestr(name, data)
    return out.getvalue()


def with_parent(name, data):
    return [(name, data), ("../../evil.txt", b"out of it")] if name.endswith("/version") else [(name, data)]


def bomb(name, data):
    return [(name, b"\0" * (64 << 20) if "data/0" in name else data)]


SOUND = {"state_dict": {"a": torch.ones(3)}, "epoch": 3}
HARM = {
    "a pickle that runs code, as a zip": lambda c: zipped({"state_dict": Evil(c)}),
    "a pickle that runs code, legacy": lambda c: legacy({"state_dict": Evil(c)}),
    "a bare pickle": lambda c: pickle.dumps(Evil(c)),
    "code among the options": lambda c: zipped(SOUND | {"opt": argparse.Namespace(x=Evil(c))}),
    "an entry that leads out": lambda c: rezipped(with_parent),
    "a bomb": lambda c: rezipped(bomb, zipfile.ZIP_DEFLATED),
    "a tensor of more values than bytes": lambda c: zipped({"a": torch.zeros(1).expand(1 << 36)}),
    "a torn zip": lambda c: zipped(SOUND)[:-200],
    "a torn legacy file": lambda c: legacy(SOUND)[:-9],
    "no magic": lambda c: b"no weights at all\n" * 100,
    "nothing": lambda c: b"",
}


@pytest.mark.parametrize("make", HARM.values(), ids=HARM.keys())
def test_harmful_and_torn_files_are_refused_and_nothing_runs(tmp_path, make):
    canary, file = tmp_path / "ran", tmp_path / "w.pt"
    file.write_bytes(make(canary))
    before = sorted(tmp_path.rglob("*"))
    for opener in (open_untrusted, read_weights):
        with pytest.raises((IntegrityError, ConfigError)) as caught:
            opener(file)
        assert "\n" not in str(caught.value)
        assert str(file) in str(caught.value)
        assert isinstance(caught.value, IntegrityError) or opener is read_weights  # sound tensors without a contract
    assert sorted(tmp_path.rglob("*")) == before
    assert not canary.exists()


def test_a_torch_file_of_strides_of_0_is_refused_before_it_is_copied(tmp_path):
    file = tmp_path / "w.pt"
    file.write_bytes(zipped({"levels.0.0.0.weight": torch.zeros(1).expand(1 << 36)}))
    with pytest.raises(IntegrityError, match="promises more values than it has bytes"):
        read_weights(file)


def test_the_canary_would_be_noticed(tmp_path):
    (tmp_path / "w.pt").write_bytes(zipped({"state_dict": Evil(tmp_path / "ran")}))
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert (tmp_path / "ran").is_dir()


def test_a_sound_file_passes_with_its_options(tmp_path):
    file = tmp_path / "w.pt"
    file.write_bytes(zipped(SOUND | {"opt": argparse.Namespace(lr=float("nan"), ids=[1, 2], what=torch.ones(2))}))
    opened = open_untrusted(file)
    assert opened.tensors["a"].tolist() == [1, 1, 1]
    assert opened.facts["options"] == {"lr": "nan", "ids": [1, 2], "what": "<Tensor>"}
    assert opened.facts["epoch"] == 3


def test_a_file_that_takes_too_long_is_refused(tmp_path):
    file = tmp_path / "w.pt"
    file.write_bytes(zipped(SOUND))
    with pytest.raises(IntegrityError, match=r"was not opened within 0\.01 s"):
        open_untrusted(file, seconds=0.01)


def test_the_child_sees_no_credentials(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setattr(
        "pcrl_cli.networks.untrusted.subprocess.run",
        lambda *a, **k: seen.update(k) or type("D", (), {"returncode": 3})(),
    )
    (tmp_path / "w.pt").write_bytes(b"x")
    with pytest.raises(IntegrityError, match="brought down the process"):
        open_untrusted(tmp_path / "w.pt")
    assert "AWS_SECRET_ACCESS_KEY" not in seen["env"]


def tensors_with(header: bytes, length: int | None = None, data: bytes = b"\0" * 12) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


ENTRY = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
SAFETENSORS = {
    "a header of 2^60 bytes": tensors_with(b"{}", 1 << 60),
    "a header longer than the file": tensors_with(b"{}", 1 << 20),
    "a header of brackets": tensors_with(b"[" * 200_000),
    "offsets beyond the end": tensors_with(json.dumps({"a": ENTRY | {"data_offsets": [0, 1 << 40]}}).encode()),
    "a shape of 2^62": tensors_with(json.dumps({"a": ENTRY | {"shape": [1 << 62, 4]}}).encode()),
    "a negative shape": tensors_with(json.dumps({"a": ENTRY | {"shape": [-3]}}).encode()),
    "overlapping tensors": tensors_with(json.dumps({"a": ENTRY, "b": ENTRY}).encode()),
    "a pickle by another name": pickle.dumps({"a": 1}),
    "a torn file": save_tensors({"a": torch.ones(9)}, {"pcrl": "{}"})[:-5],
    "no contract's JSON": save_tensors({"a": torch.ones(9)}, {"pcrl": "[" * 5000}),
    "nothing": b"",
}


@pytest.mark.parametrize("content", SAFETENSORS.values(), ids=SAFETENSORS.keys())
def test_malformed_safetensors_are_refused_in_one_sentence(tmp_path, content):
    file = tmp_path / "w.safetensors"
    file.write_bytes(content)
    with pytest.raises(IntegrityError) as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)


def test_the_command_ends_with_7(tmp_path):
    file = tmp_path / "w.pt"
    file.write_bytes(zipped({"state_dict": Evil(tmp_path / "ran")}))
    done = CliRunner().invoke(app, ["import", str(file), "--out", str(tmp_path / "out")])
    assert done.exit_code == 7
    assert done.stdout == ""
    assert "since a pickle can run code" in done.stderr
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
