"""The whole chain on scans that the program makes itself."""

import time
from pathlib import Path
from typing import Any, ClassVar

from pcrl_cli.core import files
from pcrl_cli.core.config import Layer
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.listener import Listener
from pcrl_cli.phantoms import chest
from pcrl_cli.stages.evaluate import EvaluateResult, evaluate
from pcrl_cli.stages.export import export
from pcrl_cli.stages.finetune import FinetuneResult, finetune
from pcrl_cli.stages.prep import PrepResult, prep
from pcrl_cli.stages.pretrain import PretrainResult, pretrain
from pcrl_cli.stages.report import join_reports
from pcrl_cli.stages.results import Result
from pcrl_cli.stages.workspace import Workspace


class DemoResult(Result):
    """AUROC of the same classifier from scratch and from the pre-trained encoder, on the same few labels."""

    schema_name: ClassVar[str] = "pcrl.demo/1"
    workspace: Path
    auroc: dict[str, float | None]
    intervals: dict[str, tuple[float | None, float | None]]
    runs: dict[str, Path]
    encoder: Path
    report: Path
    seconds: dict[str, float]


def demo(
    out: Path,
    *,
    patients: int = 40,
    pretrain_steps: int = 60,
    finetune_epochs: int = 12,
    width: int = 4,
    ratio: float = 0.4,
    seed: int = 0,
    listener: Listener | None = None,
) -> DemoResult:
    """Makes chest phantoms in LUNA16's layout, then prep, pretrain, finetune (scratch and pre-trained), evaluate, export.

    Everything lies in `out`, a workspace; the same call again continues or does nothing. The numbers show that the chain
    runs, not that pre-training helps: the phantoms are few and simple.

    Raises:
        ConfigError: `out` holds other scans.
    """
    listener, workspace, seconds = listener or Listener(), Workspace(out), dict[str, float]()

    def timed(name: str, since: float) -> float:
        seconds[name] = round(time.perf_counter() - since, 1)
        return time.perf_counter()

    clock = time.perf_counter()
    _make_phantoms(workspace.data("luna"), patients, seed, listener)
    clock = timed("phantoms", clock)
    prepared = prep("luna", workspace=workspace, listener=listener, layers=[_layer(seed=seed)])
    assert isinstance(prepared, PrepResult)
    clock = timed("prep", clock)
    pre = pretrain(
        prepared.cache,
        workspace=workspace,
        listener=listener,
        layers=[
            _layer(
                learner={"width": width},
                train={
                    "steps": pretrain_steps,
                    "batch": 8,
                    "check_every": 10,
                    "seed": seed,
                },
                set_aside=ratio,
            )
        ],
    )
    assert isinstance(pre, PretrainResult)
    clock = timed("pretrain", clock)
    runs, scores = {"pretrain": pre.run}, dict[str, EvaluateResult]()
    for name, weights in (("scratch", None), ("pre-trained", pre.run)):
        tuned = finetune(
            prepared.cache,
            task="luna",
            weights=weights,
            workspace=workspace,
            listener=listener,
            layers=[
                _layer(
                    ratio=ratio,
                    train={"epochs": finetune_epochs, "batch": 16, "lr": 1e-2, "seed": seed},
                    **({} if weights else {"width": width}),
                )
            ],
        )
        assert isinstance(tuned, FinetuneResult)
        runs[name], scores[name] = tuned.run, evaluate(tuned.run, workspace=workspace, listener=listener)
        clock = timed(f"finetune and evaluate, {name}", clock)
    exported = export(pre.run, out / "encoder.safetensors", overwrite=True)
    report = join_reports(list(runs.values()), out / "report.html")
    timed("export and report", clock)
    return DemoResult(
        workspace=out,
        auroc={name: e.auroc.value for name, e in scores.items()},
        intervals={name: (e.auroc_clustered.low, e.auroc_clustered.high) for name, e in scores.items()},
        runs=runs,
        encoder=exported.file,
        report=report.report,
        seconds=seconds,
    )


def _make_phantoms(raw: Path, patients: int, seed: int, listener: Listener) -> None:
    """Makes the scans unless they are there; `phantoms.json`, written first, says which a folder is for.

    Raises:
        ConfigError: the folder holds other scans.
    """
    note, wanted = raw / "phantoms.json", {"patients": patients, "seed": seed, "version": chest.VERSION}
    found = files.read_json(note) if note.exists() else None
    if found != wanted and raw.exists() and any(raw.iterdir()):
        what = f"phantoms of other settings ({found})" if found is not None else "scans that this command did not make"
        raise ConfigError(f"{raw} holds {what}; choose another --out")
    if found == wanted and (raw / chest.LAST).exists():
        return
    raw.mkdir(parents=True, exist_ok=True)
    files.write_json(note, wanted)
    listener.begin("making phantoms", patients, "patients")
    try:
        chest.make(raw, patients, seed, progress=lambda done, total: listener.advance(done))
    finally:
        listener.end()


def _layer(**values: Any) -> Layer:
    return "demo", values
