"""The numbers that the PCRLv2 paper prints, to stand beside a user's own.

Means only, times 100, as printed. The paper gives no standard deviations and leaves the size of its splits open in
places, so a difference under about half a point says nothing. In Table 6 at 100 % the paper repeats row IN as row MG
in all columns, one of the two presumably by a slip; both are kept as printed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.report.html import Cell, Missing


@dataclass(frozen=True)
class PaperTable:
    """One table: `values[method][k]` belongs to the labelling ratio `ratios[k]`."""

    number: int
    metric: str
    setting: str
    ratios: tuple[float, ...]
    values: Mapping[str, tuple[float, ...]]


class Beside(NamedTuple):
    """A table ready to print: the paper's methods, then the user's own rows, whose indices are `own`.

    `note` belongs below it. One decimal, as in the paper, is what the numbers deserve.
    """

    header: list[str]
    rows: list[list[Cell]]
    note: str
    own: tuple[int, ...]


def beside(task: str, ratio: float, ours: Mapping[str, float | None], table: int | None = None) -> Beside:
    """The user's numbers below the paper's, at the printed labelling ratio that is nearest to `ratio`.

    Args:
        task: luna, brats, lits or chest.
        ratio: share of the labelled patients used, in (0, 1].
        ours: value in [0, 1] by the name of the run; None where there is none.
        table: the paper's table, for a task that has two (chest: 4 semi-supervised, the default, or 6 transfer).

    Raises:
        ConfigError: the paper has no such task or table.
    """
    paper = _table(task, table)
    k = min(range(len(paper.ratios)), key=lambda i: abs(paper.ratios[i] - ratio))
    printed, used = _percent(paper.ratios[k]), _percent(ratio)
    rows: list[list[Cell]] = [[name, f"paper, Table {paper.number}", printed, v[k]] for name, v in paper.values.items()]
    own = tuple(range(len(rows), len(rows) + len(ours)))
    for name, value in ours.items():
        cell = Missing("this run has no value") if value is None else 100 * value
        rows.append([name, "this run", used, cell])
    header = ["method", "source", "labels", f"{paper.metric} x 100"]
    return Beside(header, rows, _note(paper, printed, used), own)


def _table(task: str, number: int | None) -> PaperTable:
    if task not in TASKS:
        raise ConfigError(f"The paper prints no results for the task {task!r}: it has {', '.join(sorted(TASKS))}.")
    known = TASKS[task]
    if number is not None and number not in known:
        names = " and ".join(str(n) for n in known)
        raise ConfigError(f"Table {number} of the paper is not about the task {task!r}: choose from {names}.")
    return TABLES[known[0] if number is None else number]


def _note(paper: PaperTable, printed: str, used: str) -> str:
    nearest = "" if printed == used else f" Yours used {used} of the labels, the nearest printed ratio is {printed}."
    return (
        f"Paper: {paper.setting}.{nearest} Your data, their number and their split differ from the paper's, "
        "so compare the order of the methods, not the values."
    )


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.3g} %"


_FIVE = (0.1, 0.2, 0.3, 0.4, 1.0)

TABLES: Mapping[int, PaperTable] = {
    4: PaperTable(
        4,
        "mean AUROC",
        "NIH ChestX-ray, semi-supervised, mean over 14 findings",
        (0.05, 0.1, 0.2, 0.3, 0.4),
        {
            "TS": (61.8, 68.1, 71.5, 73.4, 75.4),
            "MG": (66.4, 70.0, 73.9, 76.1, 77.3),
            "TransVW": (66.5, 70.2, 74.3, 76.7, 77.6),
            "C2L": (71.7, 74.1, 76.4, 77.5, 79.0),
            "SimSiam": (71.7, 74.0, 76.5, 78.0, 79.4),
            "PCRLv1": (74.1, 76.2, 78.8, 79.0, 79.9),
            "PCRLv2": (76.6, 78.2, 79.9, 81.1, 81.5),
        },
    ),
    5: PaperTable(
        5,
        "AUROC",
        "LUNA, semi-supervised",
        (0.1, 0.2, 0.3, 0.4),
        {
            "TS": (78.4, 83.0, 85.7, 87.5),
            "MG": (80.2, 85.0, 87.5, 90.3),
            "TransVW": (79.3, 84.5, 87.9, 90.5),
            "Cube++": (81.4, 85.2, 87.9, 90.0),
            "3D-CPC": (80.2, 85.2, 88.3, 90.6),
            "PCRLv1": (84.4, 87.5, 89.8, 92.2),
            "PCRLv2": (85.5, 88.3, 90.3, 93.1),
        },
    ),
    6: PaperTable(
        6,
        "mean AUROC",
        "NIH ChestX-ray after pre-training on CheXpert, mean over 14 findings",
        (0.1, 0.2, 0.3, 0.4, 0.5, 1.0),
        {
            "TS": (68.1, 71.4, 73.5, 75.4, 77.5, 80.9),
            "IN": (73.5, 76.2, 78.5, 79.0, 79.5, 80.8),
            "MG": (70.1, 73.8, 75.6, 76.5, 77.6, 80.8),
            "TransVW": (69.7, 73.8, 75.7, 77.3, 77.3, 81.2),
            "C2L": (73.1, 77.0, 78.6, 79.1, 79.8, 81.4),
            "SimSiam": (72.5, 76.6, 78.3, 78.9, 80.0, 81.6),
            "PCRLv1": (75.8, 77.5, 79.9, 80.8, 81.2, 83.0),
            "PCRLv2": (77.2, 79.4, 80.5, 81.5, 82.5, 84.0),
        },
    ),
    7: PaperTable(
        7,
        "mean Dice",
        "BraTS after pre-training on LUNA, mean of whole tumour, tumour core and enhancing tumour",
        _FIVE,
        {
            "TS": (66.6, 72.7, 76.7, 77.1, 81.5),
            "MG": (69.6, 75.5, 79.6, 80.4, 82.4),
            "TransVW": (70.3, 75.6, 79.1, 80.8, 82.3),
            "Cube++": (69.0, 74.9, 79.3, 79.7, 82.2),
            "3D-CPC": (70.1, 75.9, 79.4, 81.2, 82.9),
            "PCRLv1": (71.6, 77.6, 81.1, 83.3, 85.0),
            "PCRLv2": (73.0, 78.8, 82.1, 84.1, 85.6),
        },
    ),
    8: PaperTable(
        8,
        "Dice",
        "liver of LiTS after pre-training on LUNA",
        _FIVE,
        {
            "TS": (71.1, 77.2, 84.1, 87.3, 90.7),
            "MG": (73.3, 79.5, 84.3, 87.9, 91.3),
            "TransVW": (73.8, 79.3, 85.5, 88.2, 91.4),
            "Cube++": (74.2, 79.3, 84.5, 88.2, 91.8),
            "3D-CPC": (74.8, 80.2, 85.6, 88.9, 91.9),
            "PCRLv1": (77.3, 83.5, 87.8, 90.1, 93.7),
            "PCRLv2": (79.0, 86.5, 89.3, 90.9, 94.5),
        },
    ),
}

TASKS: Mapping[str, tuple[int, ...]] = {"luna": (5,), "brats": (7,), "lits": (8,), "chest": (4, 6)}
"""Tables by task; the first is the default."""
