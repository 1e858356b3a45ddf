import pytest
from chain import Chain, Heard, build


@pytest.fixture(scope="session")
def chain(tmp_path_factory) -> Chain:
    return build(tmp_path_factory.getbasetemp() / "chain")


@pytest.fixture
def heard() -> Heard:
    return Heard()
