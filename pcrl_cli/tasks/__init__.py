"""Downstream Learners that also predict, one file each: DIM, Config, GROUP, ARRAYS, METRIC and the TASK itself.

DIM is 2 or 3, or None where the task takes the axes of whatever cache it is given.
"""

TASKS: dict[str, str] = {
    "luna": "pcrl_cli.tasks.luna",
    "lits": "pcrl_cli.tasks.lits",
    "brats": "pcrl_cli.tasks.brats",
    "chest": "pcrl_cli.tasks.chest",
    "classify": "pcrl_cli.tasks.classify",
    "segment": "pcrl_cli.tasks.segment",
}
"""Name -> module, imported on use."""
