"""What is this: a cache, a run, a weights file?"""

from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.data.cache import open_cache
from pcrl_cli.engine.run import Run
from pcrl_cli.networks.transfer import read_weights
from pcrl_cli.stages.export import SUFFIXES
from pcrl_cli.stages.results import Result


class InspectResult(Result):
    schema_name: ClassVar[str] = "pcrl.inspect/1"
    path: Path
    kind: str
    facts: dict[str, Any]


def inspect(path: Path) -> InspectResult:
    """Facts about a path that pcrl made.

    Raises:
        ConfigError: it is nothing of ours. IntegrityError: it is, and it is damaged.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist; give a cache, a run or a weights file")
    if (path / "manifest.json").exists():
        return InspectResult(path=path, kind="cache", facts=_cache(path))
    if (path / "run.json").exists():
        return InspectResult(path=path, kind="run", facts=_run(path))
    if path.is_file() and _looks_like_weights(path):
        weights = read_weights(path)
        tensors = {"tensors": len(weights.tensors), "values": sum(t.numel() for t in weights.tensors.values())}
        contract = weights.contract.model_dump(mode="json")
        contract["patients"] = len(weights.contract.patients.hashes)
        return InspectResult(path=path, kind="weights", facts={**tensors, **contract})
    raise ConfigError(f"{path} is neither a cache (manifest.json) nor a run (run.json) nor a weights file")


def _looks_like_weights(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix in SUFFIXES or file.read(4) == b"PK\x03\x04"


def _cache(path: Path) -> dict[str, Any]:
    cache = open_cache(path)
    cache.verify("quick")
    m = cache.manifest
    keep = (
        "dim",
        "modality",
        "spacing_mm",
        "size",
        "classes",
        "recipe",
        "groups",
        "fingerprint",
        "data",
        "bad_cases",
        "totals",
        "pcrl",
    )
    shards = f"{len(m['cases'])} of {m.get('scans', len(m['cases']))} scans"
    if m["dim"] == 2:
        kept = m["totals"]["counts"].get("images", {}).get("kept", 0)
        shards = f"{len(m['cases'])} with {kept} of {m['scans']} images"
    if m["dim"] == 2 and "words" in cache.groups:
        squares = int(cache.sizes("words", "label", cache.cases()).sum())
        shards = f"{len(m['cases'])} with {squares} squares of {m['scans']} images"
    patients = Counter({part: len(cache.patients(part)) for part in ("train", "val", "test")})
    return {
        "data set": m["reader"]["name"],
        **{key: m[key] for key in keep if key in m},
        "patients": dict(patients),
        "licence": m["reader"]["license"],
        "shards": shards,
    }


def _run(path: Path) -> dict[str, Any]:
    run = Run.load(path)
    rows = run.rows()
    last = rows[-1] if rows else {}
    return {
        "verb": run.record["verb"],
        "status": run.record["status"],
        "fingerprint": run.record["fingerprint"],
        "cache": run.record.get("cache"),
        "steps done": last.get("step", -1) + 1,
        "losses": {k: v for k, v in last.items() if k.startswith("loss/")},
        "checkpoints": [c.name for c in run.checkpoints],
        "evaluations": sorted(p.parent.name for p in path.glob("evaluation/*/evaluation.json")),
        "settings": run.record["settings"],
    }
