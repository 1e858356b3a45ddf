"""A whole comparison from one file: methods x labelled ratios x seeds, pre-trained once a method and split.

Everything lies in one folder, a run a cell; a cell that is done is not done again, whatever stopped the call before.

    OUT/pretrain/METHOD[-aside-R]-seed-S/      OUT/finetune/METHOD/RATIO/seed-S/    OUT/table.{json,csv,tex}, report.html
    OUT/failed/{pretrain,finetune}/*.json: why
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
import yaml
from pydantic import Field, model_validator

from pcrl_cli.core import files
from pcrl_cli.core.config import Layer, Settings, file_layer, read_yaml, validate
from pcrl_cli.core.errors import ConfigError, DataError, NumericalError
from pcrl_cli.core.listener import Listener
from pcrl_cli.core.names import find
from pcrl_cli.data.loader import CacheOn
from pcrl_cli.engine.trainer import Device, resolve_device
from pcrl_cli.methods import METHODS
from pcrl_cli.report.comparison import Entry
from pcrl_cli.report.paper_numbers import TABLES
from pcrl_cli.stages.evaluate import EvaluateResult, evaluate, folder_of
from pcrl_cli.stages.finetune import FinetuneResult, finetune, finetune_settings
from pcrl_cli.stages.pretrain import PretrainResult, pretrain, pretrain_settings
from pcrl_cli.stages.results import Plan, Result
from pcrl_cli.stages.statistics import Predicted, compared, entries_of
from pcrl_cli.stages.table_report import write_table
from pcrl_cli.stages.workspace import Workspace
from pcrl_cli.tasks import TASKS

LESS_IS_BETTER = ("hd95_", "assd_", "ravd_")
"""Metrics, in mm or percent, that entries times 100 and `the best` would misread."""


class Arm(Settings):
    """One row. Without `method` and `weights` it is trained from scratch."""

    method: str | None = Field(None, description="of pcrl pretrain")
    weights: str | None = Field(None, description="a run or file to start from, in place of a method")
    config: str | None = Field(None, description="YAML as for pcrl pretrain --config, beside the spec")
    cache: str | None = Field(
        None, description="to pre-train on, where it is another: TransVW's words; {aside}: the share set aside"
    )
    recipe: str | None = None
    preset: str | None = None
    pretrain: dict[str, Any] = Field(default_factory=dict, description="settings of this row's pre-training")
    finetune: dict[str, Any] = Field(default_factory=dict, description="settings of this row's fine-tuning")
    printed: str | None = Field(None, description="its name in the paper's table, where it is another")

    @model_validator(mode="after")
    def _one_start(self) -> "Arm":
        if self.method is not None and self.weights is not None:
            raise ValueError("a row has a method or weights, not both")
        if self.method is None and (self.pretrain or self.config or self.cache):
            raise ValueError("pretrain, config and cache belong to a row with a method")
        return self


class TableSpec(Settings):
    """What a table compares. Caches are folders, or names in the workspace's cache/."""

    name: str = "table"
    task: str
    cache: str | None = Field(None, description="to fine-tune and evaluate on; none: the workspace's only one")
    pretrain_cache: str | None = Field(None, description="none: the same")
    recipe: str = "paper"
    preset: str = "matched"
    methods: dict[str, Arm] = Field(min_length=1)
    ratios: tuple[float, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    pretrain_seeds: Literal["one", "each"] = Field("one", description="each: pre-trained anew for every seed, too")
    set_aside: Literal["ratio"] | float = Field(
        0.0, description="kept from pre-training; ratio: the labelled patients of the cell (semi-supervised)"
    )
    pretrain: dict[str, Any] = Field(default_factory=dict, description="settings of every pre-training")
    finetune: dict[str, Any] = Field(default_factory=dict, description="settings of every fine-tuning")
    evaluate: dict[str, Any] = Field(default_factory=dict, description="options of the evaluation")
    metric: str | None = Field(None, description="none: the task's headline")
    split: Literal["val", "test"] = "test"
    scratch: str = Field("TS", description="the row that others are compared with")
    focus: str = Field("PCRLv2", description="the row that is compared with the best of the others, too")
    paper_table: int | None = Field(None, description="whose numbers stand beside")
    bootstrap: int = Field(2000, ge=100, description="replicates over patients")

    @model_validator(mode="after")
    def _fits(self) -> "TableSpec":
        if any(not 0 < r <= 1 for r in self.ratios) or len(set(self.ratios)) < len(self.ratios):
            raise ValueError(f"ratios {list(self.ratios)} must differ and lie in (0, 1]")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} must differ")
        if self.set_aside == "ratio" and 1.0 in self.ratios:
            raise ValueError("set_aside: ratio leaves nobody to pre-train on at ratio 1; leave 1 out or set a number")
        if (self.metric or "").startswith(LESS_IS_BETTER):
            raise ValueError(
                f"metric {self.metric}: of {', '.join(f'{m}*' for m in LESS_IS_BETTER)} less is better, and a table holds "
                "shares of which more is: dice, dice_*, nsd_*, auroc or auroc_*"
            )
        if self.paper_table is not None and self.paper_table not in TABLES:
            raise ValueError(f"the paper's tables that are kept are {', '.join(map(str, TABLES))}")
        return self


@dataclass(frozen=True)
class Cell:
    method: str
    ratio: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method} {self.ratio:g} seed {self.seed}"


@dataclass(frozen=True)
class Unit:
    """What one worker does in one go: a pre-training (or none) and the cells that start from it."""

    name: str
    method: str
    aside: float
    seed: int
    cells: tuple[Cell, ...]


class TableResult(Result):
    """entries: by method and ratio. costs: hours and samples by method. missing: cells that are not done.

    failed: why, by pre-training or cell. exit_code: what the command ends with, see `require`.
    """

    schema_name: ClassVar[str] = "pcrl.table/1"
    out: Path
    metric: str
    done: int
    cells: int
    failed: dict[str, str]
    exit_code: int
    missing: list[str]
    entries: dict[str, dict[str, dict[str, Any]]]
    comparisons: list[dict[str, Any]]
    costs: dict[str, dict[str, Any]]
    notes: list[str]
    csv: Path
    latex: Path
    report: Path


@dataclass
class Table:
    """A spec at work in its folder."""

    spec: TableSpec
    beside: Path
    out: Path
    workspace: Workspace
    device: Device = "auto"
    cache_on: CacheOn = "auto"
    listener: Listener = field(default_factory=Listener)

    # ---- what there is to do -----------------------------------------------------------------------------------------

    def units(self) -> list[Unit]:
        """In the order of the spec. Rows without a pre-training are dealt by ratio."""
        found = []
        for name, arm in self.spec.methods.items():
            for aside, ratios in self._splits(arm).items():
                seeds = self.spec.seeds if self.spec.pretrain_seeds == "each" and arm.method else (self.spec.seeds[0],)
                for seed in seeds:
                    of = (seed,) if len(seeds) > 1 else self.spec.seeds
                    cells = tuple(Cell(name, ratio, s) for ratio in ratios for s in of)
                    label = name + (f"-aside-{aside:g}" if aside and arm.method else "")
                    label += f"-seed-{seed}" if arm.method else f"-{ratios[0]:g}"
                    found.append(Unit(label, name, aside, seed, cells))
        return found

    def _splits(self, arm: Arm) -> dict[float, list[float]]:
        """Ratios by the share that is set aside for them."""
        if self.spec.set_aside != "ratio" and arm.method is not None:
            return {float(self.spec.set_aside): list(self.spec.ratios)}
        return {ratio: [ratio] for ratio in self.spec.ratios}

    def cells(self) -> Iterator[Cell]:
        for unit in self.units():
            yield from unit.cells

    def folder(self, cell: Cell) -> Path:
        return self.out / "finetune" / cell.method / f"{cell.ratio:g}" / f"seed-{cell.seed}"

    def evaluation(self, cell: Cell) -> Path | None:
        """Where a cell's numbers are, if it is done: those of the spec's part and options, on the run's own cache."""
        folder = folder_of(self.folder(cell), self.spec.task, self.spec.split, self.spec.evaluate)
        path = folder / "evaluation.json"
        return path if path.exists() else None

    def pretraining(self, unit: Unit) -> Path:
        return self.out / "pretrain" / unit.name

    def failure(self, of: Unit | Cell) -> Path:
        """Where it is written why a pre-training or a cell failed."""
        if isinstance(of, Unit):
            return self.out / "failed" / "pretrain" / f"{of.name}.json"
        return self.out / "failed" / "finetune" / of.method / f"{of.ratio:g}" / f"seed-{of.seed}.json"

    # ---- doing it ----------------------------------------------------------------------------------------------------

    def run(self, unit: Unit) -> None:
        """Pre-trains, and fine-tunes and evaluates every cell that is not done; whatever fails, the others go on."""
        left = [cell for cell in unit.cells if self.evaluation(cell) is None]
        if not left:
            return
        weights, ready = None, False
        with self._noted(unit):
            weights, ready = self._pretrained(unit), True
        for cell in left if ready else ():
            with self._noted(cell):
                self._cell(cell, weights)

    @contextmanager
    def _noted(self, of: Unit | Cell) -> Iterator[None]:
        """A break-down or a refusal is written down, and forgotten when it goes well the next time."""
        path = self.failure(of)
        try:
            yield
        except (NumericalError, ConfigError, DataError) as error:
            self.listener.warn(f"{of.name}: {error}")
            with files.blame_machine(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, {"reason": str(error), "exit_code": error.exit_code})
        else:
            path.unlink(missing_ok=True)

    def _pretrained(self, unit: Unit) -> Path | None:
        arm = self.spec.methods[unit.method]
        if arm.weights is not None:
            return self._path(arm.weights)
        if arm.method is None:
            return None
        self.listener.say(f"pre-training {unit.name}")
        result = pretrain(
            self._pretrain_cache(unit),
            **self._pretrain_call(unit),
            out=self.pretraining(unit),
            workspace=self.workspace,
            device=self.device,
            cache_on=self.cache_on,
            listener=self.listener,
        )
        assert isinstance(result, PretrainResult)
        self._mark(result.run)
        return result.run

    def _pretrain_cache(self, unit: Unit) -> Path | None:
        """A row's own may be one for each share that is set aside, as words are that were found without these patients."""
        own = self.spec.methods[unit.method].cache
        if own is not None:
            return self._cache(own.replace("{aside}", f"{unit.aside:g}"))
        return self._cache(self.spec.pretrain_cache or self.spec.cache)

    def _pretrain_call(self, unit: Unit) -> dict[str, Any]:
        arm, spec = self.spec.methods[unit.method], self.spec
        layers: list[Layer] = [("the spec's pretrain", spec.pretrain)]
        if arm.config is not None:
            layers.append(file_layer(self.beside / arm.config))
        layers.append((f"methods.{unit.method}.pretrain", arm.pretrain))
        layers.append(("the table", {"set_aside": unit.aside, "train": {"seed": unit.seed}}))
        return {
            "dim": self._dim(),
            "method": arm.method,
            "recipe": arm.recipe or spec.recipe,
            "preset": arm.preset or spec.preset,
            "layers": layers,
        }

    def _dim(self) -> Literal["2d", "3d"]:
        """The task's, or the cache's where the task takes any."""
        module = find("task", self.spec.task, TASKS)
        dim = module.DIM
        if dim is None:
            path = self._cache(self.spec.cache) or self.workspace.find_cache(
                None, module.GROUP, getattr(module, "DATA_SET", self.spec.task)
            )
            if not (path / "manifest.json").exists():
                raise ConfigError(f"{path} holds no cache to fine-tune on; prepare it, or correct the spec's `cache`")
            dim = files.read_sealed(path / "manifest.json")["dim"]
        return "2d" if dim == 2 else "3d"

    def _finetune_call(self, cell: Cell) -> dict[str, Any]:
        arm, spec = self.spec.methods[cell.method], self.spec
        layers: list[Layer] = [
            ("the spec's finetune", spec.finetune),
            (f"methods.{cell.method}.finetune", arm.finetune),
            ("the table", {"ratio": cell.ratio, "train": {"seed": cell.seed}}),
        ]
        return {"task": spec.task, "recipe": arm.recipe or spec.recipe, "layers": layers}

    def _cell(self, cell: Cell, weights: Path | None) -> None:
        self.listener.say(f"fine-tuning {cell.method}, {100 * cell.ratio:g} % of the labels, seed {cell.seed}")
        tuned = finetune(
            self._cache(self.spec.cache),
            **self._finetune_call(cell),
            weights=weights,
            out=self.folder(cell),
            workspace=self.workspace,
            device=self.device,
            cache_on=self.cache_on,
            listener=self.listener,
        )
        assert isinstance(tuned, FinetuneResult)
        self._mark(tuned.run)
        evaluate(
            tuned.run,
            split=self.spec.split,
            options=self.spec.evaluate,
            workspace=self.workspace,
            device=self.device,
            listener=self.listener,
        )

    def _mark(self, run: Path) -> None:
        """On what it was made, for the hours of the table."""
        if not (run / "table.json").exists():
            files.write_json(run / "table.json", {"device": resolve_device(self.device).type})

    def _cache(self, text: str | None) -> Path | None:
        if text is None:
            return None
        path = self._path(text)
        return path if (path / "manifest.json").exists() else self.workspace.cache(text)

    def _path(self, text: str) -> Path:
        """As it is, or below the workspace."""
        path = Path(text)
        return path if path.is_absolute() or path.exists() else self.workspace.root / path

    def check(self) -> None:
        """Resolves the settings of every cell before the first is begun.

        Raises:
            ConfigError, UsageError: a name, a setting or an option that does not exist.
        """
        find("task", self.spec.task, TASKS)
        folder_of(self.out, self.spec.task, self.spec.split, self.spec.evaluate)
        for unit in self.units():
            arm = self.spec.methods[unit.method]
            if arm.method is not None:
                find("method", arm.method, METHODS)
                pretrain_settings(**self._pretrain_call(unit))
            for cell in unit.cells:
                finetune_settings(**self._finetune_call(cell))

    # ---- what came out -----------------------------------------------------------------------------------------------

    def gather(self) -> TableResult:
        """The table of all that is done by now, by this and other workers."""
        spec = self.spec
        predicted: dict[Cell, Predicted] = {}
        metric = spec.metric
        for cell in self.cells():
            path = self.evaluation(cell)
            if path is None:
                continue
            found = EvaluateResult.model_validate({k: v for k, v in files.read_json(path).items() if k != "schema"})
            metric = metric or found.headline
            if metric not in found.metrics:
                raise ConfigError(f"the task {spec.task} has no metric {metric}; it has {', '.join(found.metrics)}")
            predicted[cell] = Predicted.read(path.parent / "predictions.csv", metric, found.metrics[metric].value)
        failed, reasons, codes = self._failures(predicted)
        wanted = {name: {r: [Cell(name, r, s) for s in spec.seeds] for r in spec.ratios} for name in spec.methods}
        entries, rows = entries_of(predicted, wanted, reasons, spec.bootstrap)
        comparisons, notes = compared(rows, entries, spec.scratch, spec.focus)
        missing = [cell.name for cell in self.cells() if cell not in predicted]
        return TableResult(
            out=self.out,
            metric=metric or "?",
            done=len(predicted),
            cells=len(predicted) + len(missing),
            failed=failed,
            exit_code=max(codes, default=0),
            missing=missing,
            entries={m: {f"{r:g}": asdict(e) for r, e in cells.items()} for m, cells in entries.items()},
            comparisons=[asdict(c) for c in comparisons],
            costs={name: self._costs(name) for name in spec.methods},
            notes=notes,
            csv=self.out / "table.csv",
            latex=self.out / "table.tex",
            report=self.out / "report.html",
        )

    def _failures(self, done: Collection[Cell]) -> tuple[dict[str, str], dict[Cell, str], list[int]]:
        """Reasons by name, reasons by cell that is not done, and exit codes."""
        named: dict[str, str] = {}
        of_cells: dict[Cell, str] = {}
        codes = []
        for unit in self.units():
            left = [cell for cell in unit.cells if cell not in done]
            tried: list[Unit | Cell] = [unit, *left] if left else []
            for of in tried:
                path = self.failure(of)
                if path.exists():
                    found = files.read_json(path)
                    named[of.name] = found["reason"]
                    codes.append(int(found["exit_code"]))
                    of_cells |= dict.fromkeys(left if isinstance(of, Unit) else [of], found["reason"])
        return named, of_cells, codes

    def _costs(self, name: str) -> dict[str, Any]:
        """Hours and samples of a row's pre-trainings and fine-tunings that are finished, and what a step of it is."""
        totals: dict[str, Any] = {
            "pretrain_hours": 0.0,
            "finetune_hours": 0.0,
            "pretrain_samples": 0,
            "finetune_samples": 0,
        }
        devices = set()
        runs = [("pretrain", self.pretraining(unit)) for unit in self.units() if unit.method == name]
        runs += [("finetune", self.folder(cell)) for cell in self.cells() if cell.method == name]
        for verb, folder in runs:
            record = files.read_json(folder / "run.json") if (folder / "run.json").exists() else {}
            result = record.get("result")
            if not result:
                continue
            totals[f"{verb}_hours"] += result["outcome"]["seconds"] / 3600
            totals[f"{verb}_samples"] += result["outcome"]["steps"] * record["settings"]["train"]["batch"]
            if verb == "pretrain":
                totals |= {"passes a step": result["passes"], "voxels a step": result["voxels"]}
            if (folder / "table.json").exists():
                devices.add(files.read_json(folder / "table.json")["device"])
        return totals | {"device": " and ".join(sorted(devices)) or "-"}

    def plan(self) -> Plan:
        """Cells, hours and disk, before anything is done."""
        units = self.units()
        pretrainings = [u for u in units if self.spec.methods[u.method].method is not None]
        cells = [cell for unit in units for cell in unit.cells]
        done = [cell for cell in cells if self.evaluation(cell) is not None]
        hours, unknown, parameters = 0.0, [], 0
        for unit in pretrainings:
            if (self.pretraining(unit) / "run.json").exists():
                continue
            planned = pretrain(
                self._pretrain_cache(unit),
                **self._pretrain_call(unit),
                out=self.pretraining(unit),
                workspace=self.workspace,
                device=self.device,
                dry_run=True,
            )
            assert isinstance(planned, Plan)
            found = planned.figures.get("hours (arithmetic alone)")
            parameters = max(parameters, planned.figures.get("parameters", 0))
            hours += found or 0.0
            unknown += [] if found is not None else [unit.name]
        tuned = [self._costs(name)["finetune_hours"] for name in self.spec.methods]
        a_cell = sum(tuned) / len(done) if done else None
        runs = len(pretrainings) + len(cells)
        figures: dict[str, Any] = {
            "methods": len(self.spec.methods),
            "pre-trainings": len(pretrainings),
            "cells": len(cells),
            "cells done": len(done),
            "pre-training hours left (arithmetic alone)": round(hours, 2),
            "fine-tuning hours left": round(a_cell * (len(cells) - len(done)), 2) if a_cell is not None else None,
            "gigabytes (checkpoints)": round(runs * 3 * 2 * 4 * parameters / 1e9, 1) or None,
        }
        if unknown:
            figures["hours not known of"] = unknown
        state = "finished" if len(done) == len(cells) else "to be continued" if self.out.exists() else "new"
        return Plan(
            verb="table", out=self.out, state=state, settings=self.spec.model_dump(mode="json"), figures=figures
        )


def read_spec(path: Path) -> TableSpec:
    """A spec file.

    Raises:
        ConfigError: there is none, it is torn or no YAML, or a key or value does not fit.
    """
    try:
        values = read_yaml(path)
    except ConfigError as error:
        raise ConfigError(f"{error}; give the spec of a table, such as those in examples/tables") from None
    try:
        return validate(TableSpec, values)
    except ConfigError as error:
        raise ConfigError(
            f"{path} is no spec of a table ({error}); correct it, or see those in examples/tables"
        ) from None


def table(
    spec: Path,
    *,
    out: Path | None = None,
    workspace: Workspace | None = None,
    shard: tuple[int, int] | None = None,
    device: Device = "auto",
    cache_on: CacheOn = "auto",
    dry_run: bool = False,
    listener: Listener | None = None,
) -> TableResult | Plan:
    """Makes every cell of a spec that is not done, and the table of all that are.

    Args:
        out: defaults to the workspace's runs/table-NAME. One folder for all workers.
        shard: (i, n), this worker's share of pre-trainings with their cells, i from 1.

    Raises:
        ConfigError: the spec does not fit, or the folder holds another one.
    """
    listener, workspace = listener or Listener(), workspace or Workspace()
    read = read_spec(spec)
    i, n = shard or (1, 1)
    if not 1 <= i <= n:
        raise ConfigError(f"shard {i}/{n} does not exist: --shard I/N takes 1 <= I <= N")
    out = out or workspace.root / "runs" / f"table-{read.name}"
    work = Table(read, spec.resolve().parent, out, workspace, device, cache_on, listener)
    work.check()
    if dry_run:
        return work.plan()
    _keep(out, read)
    mine = work.units()[i - 1 :: n]
    for unit in mine:
        work.run(unit)
    result = work.gather()
    write_table(result, read)
    return result


def require(result: TableResult) -> None:
    """Ends a command of which something failed; the table of all else is written by then.

    Raises:
        NumericalError: a training broke down, of this or another worker. DataError, ConfigError: none did, but some were
            refused.
    """
    if not result.failed:
        return
    kind = {3: ConfigError, 4: DataError}.get(result.exit_code, NumericalError)
    first, reason = next(iter(result.failed.items()))
    raise kind(
        f"{len(result.failed)} of the table's pre-trainings and cells failed (the first: {first}: {reason}); the others are "
        f"in {result.report}, and the same command tries the failed ones again"
    )


def _keep(out: Path, spec: TableSpec) -> None:
    """The spec in its folder.

    Raises:
        ConfigError: the folder holds cells of another one, or its copy of the spec is torn, so that nobody can tell. More
            methods, ratios or seeds are no other one.
    """
    path = out / "spec.yaml"
    now = spec.model_dump(mode="json")
    if path.exists():
        was = _kept(path).model_dump(mode="json")
        grown = ("methods", "ratios", "seeds", "focus", "scratch", "metric", "paper_table", "bootstrap")
        changed = [key for key in now if key not in grown and now[key] != was[key]]
        changed += [f"methods.{m}" for m, arm in now["methods"].items() if was["methods"].get(m, arm) != arm]
        if changed:
            raise ConfigError(
                f"{out} holds the cells of another spec (different: {', '.join(changed)}); choose another --out or name"
            )
    elif out.exists() and any(not p.name.startswith(".") for p in out.iterdir()):  # dots: another worker's, just begun
        raise ConfigError(f"{out} holds something else than a table; choose another --out")
    with files.blame_machine(out):
        out.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, yaml.safe_dump(now, sort_keys=False, allow_unicode=True).encode())


def _kept(path: Path) -> TableSpec:
    """The spec that a table's folder holds.

    Raises:
        ConfigError: it is torn.
    """
    try:
        return validate(TableSpec, read_yaml(path))
    except ConfigError as error:
        why = str(error).removeprefix(f"{path} ")
        raise ConfigError(
            f"{path} no longer says what the cells beside it were made by ({why}); put their spec in its place and run again, "
            "or choose another --out"
        ) from None


def frame(result: TableResult) -> pd.DataFrame:
    """The entries as text, a row a method and a column a ratio, for the screen."""
    rows = {
        name: {ratio: Entry(**values).text() for ratio, values in cells.items()}
        for name, cells in result.entries.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")
