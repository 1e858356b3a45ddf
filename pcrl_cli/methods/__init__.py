"""Self-supervised Learners, one file each: Config, CROP_PLAN, GROUP and the Learner itself."""

METHODS: dict[str, str] = {"pcrlv2": "pcrl_cli.methods.pcrlv2"}
"""Name -> module, imported on use."""
