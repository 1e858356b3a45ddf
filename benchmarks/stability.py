"""Does recipe `paper` train stably in 3D, and what are its sigmoid and its warm-up for? Writes docs/stability/.

    python -m benchmarks.stability CACHE [--out docs/stability] [--only NAME]

CACHE: of `pcrl prep luna`; all of its pairs are used, since nothing is evaluated. An arm that is finished is not run again.
"""

import argparse
import csv
import json
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pcrl_cli.core.errors import NumericalError
from pcrl_cli.data.cache import Cache, open_cache
from pcrl_cli.data.loader import Loader
from pcrl_cli.engine.run import read_metrics
from pcrl_cli.engine.trainer import Trainer
from pcrl_cli.report import figures
from pcrl_cli.stages import training
from pcrl_cli.stages.pretrain import PretrainSettings, build_learner, pretrain_settings

TERMS = ("restore", "compare", "local")


@dataclass(frozen=True)
class Arm:
    """Recipe `paper`, but for what is said here."""

    name: str
    steps: int
    width: int = 8
    batch: int = 8
    seed: int = 0
    activation: str = "sigmoid"
    warmup: int = 20
    lr: float = 1e-3
    precision: str = "auto"
    poolings: int = 5

    def settings(self) -> PretrainSettings[Any]:
        learner = {"width": self.width, "poolings": self.poolings, "restore_activation": self.activation}
        train = {
            "steps": self.steps,
            "batch": self.batch,
            "seed": self.seed,
            "warmup_steps": self.warmup,
            "lr": self.lr,
            "precision": self.precision,
            "schedule": "constant",
            "check_every": 5,
        }
        return pretrain_settings(layers=[("arm", {"learner": learner, "train": train})])[0]


ARMS = (
    Arm("paper", 200),
    Arm("linear", 100, activation="linear", warmup=10),
    Arm("no warm-up", 100, warmup=0),
    Arm("linear, no warm-up", 100, activation="linear", warmup=0),
    Arm("paper, full width", 30, width=32, batch=4, warmup=3),
    Arm("paper, lr 1e-2", 100, warmup=10, lr=1e-2),
    Arm("linear, lr 1e-2", 60, activation="linear", warmup=6, lr=1e-2),
    Arm("paper, seed 1", 100, seed=1, warmup=10),
    Arm("linear, seed 1", 100, seed=1, activation="linear", warmup=10),
    Arm("no warm-up, seed 1", 100, seed=1, warmup=0),
)


def loader_of(arm: Arm, cache: Cache, device: torch.device) -> Loader:
    """All pairs of the cache."""
    return Loader(cache, "pairs", arm.settings().learner.arrays(3), cache.cases(), arm.batch, arm.seed, device)


def run_arm(arm: Arm, cache: Cache, folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; fewer than `steps` where the loss left the finite numbers."""
    settings = arm.settings()
    learner = build_learner(settings, cache)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = loader_of(arm, cache, device)
    fingerprint = training.run_fingerprint("stability", settings)
    run = training.open_run(folder, "stability", settings, fingerprint, overwrite=False)
    trainer = Trainer(learner, loader, settings.train, run, device=device, metadata=lambda step: {})
    try:
        trainer.fit()
    except NumericalError as error:
        print(f"{arm.name}: {error}", flush=True)
    return read_metrics(run.metrics_path)


def summary(arm: Arm, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table: what the losses did, and how much rank is left."""
    restore = [row["loss/restore"] for row in rows]
    half = restore[len(restore) // 2 :]
    ranks = [(row["step"] + 1, row["rank/encoder"]) for row in rows if row.get("rank/encoder") is not None]
    return {
        "arm": arm.name,
        "width": arm.width,
        "batch": arm.batch,
        "lr": arm.lr,
        "seed": arm.seed,
        "steps": len(rows),
        "of": arm.steps,
        "restore, second half": sum(half) / max(len(half), 1),
        "restore, largest": max(restore),
        "gradient norm, largest": max(row["gradient_norm"] for row in rows),
        "rank at first check": ranks[0][1] if ranks else None,
        "lowest rank": min((rank for _, rank in ranks), default=None),
        "rank at the end": ranks[-1][1] if ranks else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/stability"))
    parser.add_argument("--only", action="append", help="names of arms")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    cache = open_cache(options.cache)
    for arm in ARMS:
        target = options.out / f"{arm.name.replace(', ', '-').replace(' ', '-')}.json"
        if target.exists() or (options.only and arm.name not in options.only):
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            rows = run_arm(arm, cache, Path(folder) / "run")
        machine = (
            f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
        )
        record = {
            "summary": summary(arm, rows),
            "machine": machine,
            "seconds": time.perf_counter() - start,
            "rows": rows,
        }
        target.write_text(json.dumps(record))
        print(json.dumps(record["summary"]), f"{record['seconds']:.0f} s", flush=True)
    write_tables(options.out)


def write_tables(out: Path) -> None:
    """summary.csv over all arms that are there, and two figures an arm."""
    records = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    with (out / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]["summary"]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in r["summary"].items()} for r in records
        )
    for path in sorted(out.glob("*.json")):
        rows = json.loads(path.read_text())["rows"]
        (out / f"{path.stem}-losses.png").write_bytes(figures.loss_curves(rows, TERMS))
        if any("rank/encoder" in row for row in rows):
            (out / f"{path.stem}-features.png").write_bytes(figures.collapse_curves(rows))


if __name__ == "__main__":
    main()
