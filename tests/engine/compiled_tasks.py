"""Every task with torch.compile and without, as JSON: differences of probabilities and losses, and graphs that were made.

No compiler is needed: the backend runs what was traced.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from test_learners import TASK_CASES, batch_of, build, settle
from toys import CPU, Source, config, new_run, rows

from pcrl_cli.core.errors import MachineError
from pcrl_cli.engine import compiling
from pcrl_cli.engine.inference import Inference, ready
from pcrl_cli.engine.trainer import Trainer

SIZES = (4, 4, 3, 2)


class One(Source):
    """The same four samples in every step."""

    def __init__(self, batch: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.batch = batch

    def batches(self, step: int) -> Any:
        while True:
            yield torch.arange(4), self.batch


def probabilities(case: Any) -> dict[str, float]:
    batch, how = batch_of(case), (Inference(), Inference(compile=True))
    plain, fast = (ready(settle(build(case), batch), CPU, h) for h in how)
    before, worst = compiling.graphs(), 0.0
    for n in SIZES:
        some = {name: array[:n] for name, array in batch.items()}
        worst = max(worst, float((plain.predict(some) - fast.predict(some)).abs().max()))
    return {"probabilities": worst, "graphs": compiling.graphs() - before}


def losses(case: Any, folder: Path) -> dict[str, float]:
    found = []
    for name, on in (("eager", False), ("compiled", True)):
        run, how = new_run(folder / name), config(steps=3, batch=4, lr=1e-3, compile=on)
        Trainer(build(case), One(batch_of(case)), how, run, device=CPU, metadata=lambda step: {}).fit()
        found.append(rows(folder / name))
    pairs = [(a[key], b[key]) for a, b in zip(*found, strict=True) for key in a if key.startswith("loss/")]
    return {"steps": len(found[1]), "losses": max(abs(a - b) / abs(a) for a, b in pairs)}


def volume(case: Any) -> float:
    image = batch_of(case)["image"][0]
    settled = [settle(build(case), batch_of(case)) for _ in range(2)]
    small = settled[0].config.model_copy(update={"crop": (8, 8, 8), "windows": 3})
    how = (Inference(), Inference(compile=True))
    a, b = (ready(task, CPU, h).infer(image, small) for task, h in zip(settled, how, strict=True))
    return float((a - b).abs().max())


def broken(case: Any) -> str:
    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler")

    compiling.BACKEND = backend  # type: ignore[assignment]
    try:
        ready(build(case), CPU, Inference(compile=True)).predict(batch_of(case))
    except MachineError as error:
        return str(error)
    return "nothing was said"


def main() -> None:
    torch.set_num_threads(1)
    compiling.BACKEND = "eager"
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for case in TASK_CASES:
            of = f"{case[1]} {case[3]}"
            found[of] = probabilities(case) | losses(case, Path(name) / of)
    found["volume"] = volume(next(case for case in TASK_CASES if case[1] == "lits"))
    found["broken"] = broken(TASK_CASES[0])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
