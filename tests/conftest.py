"""One thread (small tensors run several times faster), shape checks on, and where real data lies."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("pcrl_cli", "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real scans; skips the test, saying why, where there is none."""
    folder = Path(os.environ.get("PCRL_DATA", ROOT / "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no real scans at {folder}: set PCRL_DATA to a folder that holds LUNA16/, CT/, BraTS/")
    return folder
