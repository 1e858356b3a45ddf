"""Keeps the promises of `docs/reliability.md` under fire and writes down what came of it.

    python -m benchmarks.reliability [NAME ...] [--trials N] [--first I] [--work DIR] [--write docs/reliability.md]

Results gather in DIR/results.json, one promise after another, so that a part can be run again alone; in the page only the
lines of what was tried change. Ends with 1 if anything failed.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.reliability.promises import PROMISES
from benchmarks.reliability.workshop import Promise, Workshop

BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def machine() -> str:
    """Kind of processor, cores and memory."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"


HEAD = "| promise | target | trials | failures | when | minutes | what |\n|---|---|---|---|---|---|---|\n"


def row(r: dict[str, Any]) -> str:
    """One promise's line of the table."""
    return (
        f"| {r['name']} | {r['target']} | {r['trials']} | {len(r['failures'])} | {r['date']} | {r['minutes']:.1f} "
        f"| {r['note']} |"
    )


def table(results: dict[str, dict[str, Any]], old: str = "") -> str:
    """The results as the page shows them; lines of the old table whose promise was not tried this time stay."""
    new = {r["name"]: row(r) for r in results.values()}
    kept = {line.split(" | ")[0].removeprefix("| "): line for line in old.splitlines() if line.startswith("| ")}
    rows = {name: line for name, line in (kept | new).items() if name != "promise"}
    before = [
        line.removeprefix("Machine: ").removesuffix(".") for line in old.splitlines() if line.startswith("Machine: ")
    ]
    machines = sorted({m for text in before for m in text.split("; ")} | {r["machine"] for r in results.values()})
    return HEAD + "\n".join(rows.values()) + f"\n\nMachine: {'; '.join(machines)}.\n"


def write(page: Path, results: dict[str, dict[str, Any]]) -> None:
    """Puts the results into the table between the page's two marks."""
    text = page.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table(results, old)}{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PROMISES)} (default: all)")
    parser.add_argument("--trials", type=int, help="in place of each promise's own number (memory: steps)")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial (killed_training alone)")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / f"pcrl-reliability-{os.getuid()}")
    parser.add_argument("--write", type=Path, help="put the table into this page")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - PROMISES.keys())
    if unknown:
        parser.error(f"{unknown[0]} is none of {', '.join(PROMISES)}")
    if options.first and options.names != ["killed_training"]:
        parser.error("--first is for killed_training alone")
    shop, path = Workshop.open(options.work), options.work / "results.json"
    failed = False
    for name in options.names or PROMISES:
        began = time.monotonic()

        def keep(promise: Promise, name: str = name, began: float = began) -> None:
            results = json.loads(path.read_text("utf-8")) if path.exists() else {}
            minutes = (time.monotonic() - began) / 60
            results[name] = asdict(promise) | {
                "date": time.strftime("%Y-%m-%d"),
                "minutes": minutes,
                "machine": machine(),
            }
            path.write_text(json.dumps(results, indent=1), encoding="utf-8")

        Promise.keep = keep
        how_many = {"trials": options.trials, "first": options.first}
        promise = PROMISES[name](shop, **{key: value for key, value in how_many.items() if value})
        keep(promise)
        print(
            f"{promise.name}: {len(promise.failures)} failures in {promise.trials} trials; {promise.note}", flush=True
        )
        for line in promise.failures[:5]:
            print(f"  {line}", flush=True)
        failed |= bool(promise.failures)
    if options.write:
        write(options.write, json.loads(path.read_text("utf-8")))
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
