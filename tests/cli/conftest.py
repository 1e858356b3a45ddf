import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "stages"))  # the chain is built once for both folders

from chain import Chain, build


@pytest.fixture(scope="session")
def chain(tmp_path_factory) -> Chain:
    return build(tmp_path_factory.getbasetemp() / "chain")
