"""`pcrl table` and `pcrl discover` on the command line."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from chain import Chain
from typer.testing import CliRunner

from pcrl_cli.cli.app import app

SPEC = {
    "name": "words",
    "task": "luna",
    "methods": {
        "TS": {"finetune": {"width": 2, "poolings": 2}},
        "MG": {"method": "genesis", "pretrain": {"learner": {"rates": {"windows": 20}}}},
    },
    "ratios": [0.4],
    "seeds": [0, 1],
    "pretrain": {"learner": {"width": 2, "poolings": 2}, "train": {"steps": 2, "batch": 4}},
    "finetune": {"learner": {"side": 24}, "train": {"steps": 2, "batch": 4}},
    "focus": "MG",
    "bootstrap": 200,
}


@pytest.fixture
def spec(chain: Chain, tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC | {"cache": str(chain.cache)}, sort_keys=False), "utf-8")
    return path


def ran(chain: Chain, *arguments: object):
    found = CliRunner().invoke(
        app, [str(a) for a in arguments], env={"COLUMNS": "80", "PCRL_WORKSPACE": str(chain.root)}
    )
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found


def test_a_table_killed_hard_is_continued_and_printed(chain, spec, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pcrl_cli", "table", str(spec), "--out", str(out), "-q"]
    environment = os.environ | {"PCRL_WORKSPACE": str(chain.root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 150
    while not list(out.glob("finetune/*/*/*/evaluation")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "table.json").exists()
    done = ran(chain, "table", spec, "--out", out)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("auroc_clustered x 100")
    assert [line.split()[0] for line in lines[1:3]] == ["TS", "MG"]
    assert any("4 of 4" in line for line in lines)
    told = json.loads(ran(chain, "table", spec, "--out", out, "--json").stdout)
    assert told["schema"] == "pcrl.table/1"
    assert told["done"] == told["cells"] == 4


def test_plans_and_mistakes(chain, spec, tmp_path):
    plan = json.loads(ran(chain, "table", spec, "--dry-run", "--json", "--out", tmp_path / "o").stdout)
    assert plan["figures"]["cells"] == 4
    assert ran(chain, "table", tmp_path / "none.yaml").exit_code == 3
    assert ran(chain, "table", spec, "--shard", "3/2").exit_code == 2
    plan = json.loads(ran(chain, "discover", chain.cache, "--classes", "5", "--dry-run", "--json").stdout)
    assert plan["figures"]["words"] == 5
    refused = ran(chain, "pretrain", "--method", "rubik", "--dim", "2d")
    assert refused.exit_code == 3
    assert "method rubik is not defined for --dim 2d" in " ".join(refused.stderr.split())
    assert ran(chain, "pretrain", "--preset", "nativ", "--dry-run").exit_code == 2
