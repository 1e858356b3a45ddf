"""The whole chain on images that the program makes itself."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pcrl_cli.core import files
from pcrl_cli.core.config import Layer
from pcrl_cli.core.errors import ConfigError, UsageError
from pcrl_cli.core.listener import Listener
from pcrl_cli.stages.evaluate import EvaluateResult, evaluate
from pcrl_cli.stages.export import export
from pcrl_cli.stages.finetune import FinetuneResult, finetune
from pcrl_cli.stages.prep import PrepResult, prep
from pcrl_cli.stages.pretrain import PretrainResult, pretrain
from pcrl_cli.stages.report import join_reports
from pcrl_cli.stages.results import Result
from pcrl_cli.stages.workflows import Estimate
from pcrl_cli.stages.workspace import Workspace

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """A data set of phantoms: the reader's name, the module that makes it, how it is prepared."""

    name: str
    phantoms: str
    prep: Values = field(default_factory=dict)


@dataclass(frozen=True)
class Chain:
    """What a demo does: small enough for two cores, settings over the recipe's.

    labelled: what is fine-tuned on and evaluated. unlabelled: what is pre-trained on; the same where it is None, and then
    `ratio` of the training patients are set aside for fine-tuning.
    """

    labelled: Made
    unlabelled: Made | None = None
    patients: int = 40
    steps: int = 60
    epochs: int = 12
    width: int = 4
    ratio: float = 0.4
    dim: str = "3d"
    pretrain: Values = field(default_factory=lambda: {"train": {"batch": 8, "check_every": 10}})
    finetune: Values = field(default_factory=lambda: {"train": {"batch": 16, "lr": 1e-2}})


CHEST = Made("luna", "pcrl_cli.phantoms.chest")
FILMS = Made("nih", "pcrl_cli.phantoms.radiograph", {"size": 80})
CHAINS: dict[str, Chain] = {
    "luna": Chain(CHEST),
    "lits": Chain(
        Made("lits", "pcrl_cli.phantoms.abdomen"),
        CHEST,
        patients=16,
        epochs=6,
        ratio=0.5,
        finetune={
            "learner": {"crop": [64, 64, 32], "crops": 8, "overlap": 0.25},
            "train": {"batch": 4, "lr": 3e-2},
        },
    ),
    "brats": Chain(
        Made("brats", "pcrl_cli.phantoms.brain"),
        CHEST,
        patients=16,
        epochs=6,
        ratio=0.5,
        finetune={
            "learner": {"crop": [48, 48, 48], "crops": 8, "overlap": 0.25},
            "train": {"batch": 4, "lr": 3e-2},
        },
    ),
    "chest": Chain(
        FILMS,
        patients=300,
        steps=60,
        epochs=40,
        width=8,
        dim="2d",
        pretrain={
            "learner": {"images": {"global_side": 64, "local_side": 64}},
            "train": {"batch": 16, "check_every": 10},
        },
        finetune={"learner": {"side": 64, "resize": 80}, "train": {"batch": 16, "lr": 3e-2}},
    ),
}
"""By task."""


class DemoResult(Result):
    """The same task from scratch and from the pre-trained encoder, on the same few labels.

    metric: the headline; scores: by start, `scratch` and `pre-trained`.
    """

    schema_name: ClassVar[str] = "pcrl.demo/1"
    workspace: Path
    task: str
    metric: str
    scores: dict[str, Estimate]
    runs: dict[str, Path]
    encoder: Path
    report: Path
    seconds: dict[str, float]


def demo(
    out: Path,
    *,
    task: str = "luna",
    patients: int | None = None,
    pretrain_steps: int | None = None,
    finetune_epochs: int | None = None,
    width: int | None = None,
    seed: int = 0,
    listener: Listener | None = None,
) -> DemoResult:
    """Makes phantoms in the data set's raw layout, then prep, pretrain, finetune (scratch and pre-trained), evaluate,
    export.

    Everything lies in `out`, a workspace; the same call again continues or does nothing. The numbers show that the chain
    runs, not that pre-training helps: the phantoms are few and simple.

    Raises:
        UsageError: no such task. ConfigError: `out` holds other scans.
    """
    if task not in CHAINS:
        raise UsageError(f"there is no demo of {task!r}; the demos are {', '.join(CHAINS)}")
    chain, listener, workspace, clock = CHAINS[task], listener or Listener(), Workspace(out), Clock()
    patients, width = patients or chain.patients, width or chain.width
    labelled, unlabelled = chain.labelled, chain.unlabelled or chain.labelled
    caches = {}
    for made in {m.name: m for m in (unlabelled, labelled)}.values():
        module = import_module(made.phantoms)
        _make_phantoms(module, workspace.data(made.name), patients, seed, listener)
        clock.lap(f"phantoms, {made.name}")
        prepared = prep(made.name, workspace=workspace, listener=listener, layers=[_layer({**made.prep, "seed": seed})])
        assert isinstance(prepared, PrepResult)
        caches[made.name] = prepared.cache
        clock.lap(f"prep, {made.name}")
    aside = {"set_aside": chain.ratio} if chain.unlabelled is None else {}
    pre = pretrain(
        caches[unlabelled.name],
        dim=chain.dim,  # type: ignore[arg-type]
        workspace=workspace,
        listener=listener,
        layers=[
            _layer(chain.pretrain),
            _layer(
                {"learner": {"width": width}, "train": {"steps": pretrain_steps or chain.steps, "seed": seed}, **aside}
            ),
        ],
    )
    assert isinstance(pre, PretrainResult)
    clock.lap("pretrain")
    runs, scores = {"pretrain": pre.run}, dict[str, EvaluateResult]()
    for name, weights in (("scratch", None), ("pre-trained", pre.run)):
        train = {"epochs": finetune_epochs or chain.epochs, "seed": seed}
        tuned = finetune(
            caches[labelled.name],
            task=task,
            weights=weights,
            workspace=workspace,
            listener=listener,
            layers=[
                _layer(chain.finetune),
                _layer({"ratio": chain.ratio, "train": train} | ({} if weights else {"width": width})),
            ],
        )
        assert isinstance(tuned, FinetuneResult)
        runs[name], scores[name] = tuned.run, evaluate(tuned.run, workspace=workspace, listener=listener)
        clock.lap(f"finetune and evaluate, {name}")
    exported = export(pre.run, out / "encoder.safetensors", overwrite=True)
    report = join_reports(list(runs.values()), out / "report.html")
    clock.lap("export and report")
    headline = scores["scratch"].headline
    return DemoResult(
        workspace=out,
        task=task,
        metric=headline,
        scores={name: e.metrics[headline] for name, e in scores.items()},
        runs=runs,
        encoder=exported.file,
        report=report.report,
        seconds=clock.seconds,
    )


class Clock:
    """Seconds of wall time by lap."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.since = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self.since = round(now - self.since, 1), now


def _make_phantoms(module: ModuleType, raw: Path, patients: int, seed: int, listener: Listener) -> None:
    """Makes the scans unless they are there; `phantoms.json`, written first, says which a folder is for.

    Raises:
        ConfigError: the folder holds other scans.
    """
    note, wanted = raw / "phantoms.json", {"patients": patients, "seed": seed, "version": module.VERSION}
    found = files.read_json(note) if note.exists() else None
    if found != wanted and raw.exists() and any(raw.iterdir()):
        what = f"phantoms of other settings ({found})" if found is not None else "scans that this command did not make"
        raise ConfigError(f"{raw} holds {what}; choose another --out")
    if found == wanted and (raw / module.LAST).exists():
        return
    raw.mkdir(parents=True, exist_ok=True)
    files.write_json(note, wanted)
    listener.begin("making phantoms", patients, "patients")
    try:
        module.make(raw, patients, seed, progress=lambda done, total: listener.advance(done))
    finally:
        listener.end()


def _layer(values: Values) -> Layer:
    return "demo", dict(values)
