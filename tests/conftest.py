"""One thread (small tensors run several times faster), shape checks on, and where real data lies."""

import os
import socket
from collections.abc import Iterator
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


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """The whole suite runs without a network: a connection to another machine, or the question for its address, fails."""
    here = ("localhost", "127.0.0.1", "::1", "", None, socket.gethostname())
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def only_here(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in here:
            raise AssertionError(f"a test wants to connect to {address}")
        connect(self, address)  # type: ignore[arg-type]

    def only_local(host: object, *args: object, **kwargs: object) -> object:
        if (host.decode() if isinstance(host, bytes) else host) not in here:
            raise AssertionError(f"a test wants the address of {host!r}")
        return look_up(host, *args, **kwargs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", only_here)
        patch.setattr(socket, "getaddrinfo", only_local)
        yield
