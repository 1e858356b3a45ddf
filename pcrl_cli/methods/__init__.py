"""Self-supervised Learners, one file each: Config, and by dimension GROUPS and CROP_PLANS, and the LEARNER itself."""

METHODS: dict[str, str] = {"pcrlv2": "pcrl_cli.methods.pcrlv2"}
"""Name -> module, imported on use."""
