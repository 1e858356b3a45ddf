"""Downstream Learners that also predict, one file each: DIM, Config, CROP_PLAN, GROUP, ARRAYS, METRIC and the TASK itself."""

TASKS: dict[str, str] = {"luna": "pcrl_cli.tasks.luna"}
"""Name -> module, imported on use."""
