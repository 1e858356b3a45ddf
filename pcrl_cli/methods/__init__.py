"""Self-supervised Learners, one file each: Config, and by dimension GROUPS and CROP_PLANS, and the LEARNER itself."""

METHODS: dict[str, str] = {
    "pcrlv2": "pcrl_cli.methods.pcrlv2",
    "c2l": "pcrl_cli.methods.c2l",
    "cpc3d": "pcrl_cli.methods.cpc3d",
    "genesis": "pcrl_cli.methods.genesis",
    "pcrlv1": "pcrl_cli.methods.pcrlv1",
    "rubik": "pcrl_cli.methods.rubik",
    "simsiam": "pcrl_cli.methods.simsiam",
    "transvw": "pcrl_cli.methods.transvw",
}
"""Name -> module, imported on use."""
