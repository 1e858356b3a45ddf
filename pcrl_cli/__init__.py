"""PCRLv2: self-supervised pre-training for medical images. The command is `pcrl`; the Python API is `pcrl_cli.stages`."""

__version__ = "0.1.0"
