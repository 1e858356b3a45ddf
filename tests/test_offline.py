"""Nothing in the package asks for a network; the suite itself runs with connections barred (conftest.py)."""

import ast
import socket
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pcrl_cli"
CLIENTS = {"urllib", "http", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "huggingface_hub", "torch.hub"}


def test_a_connection_to_another_machine_would_be_noticed():
    with pytest.raises(AssertionError, match="wants the address of"):
        socket.create_connection(("example.org", 80), timeout=1)
    with socket.socket() as s, pytest.raises(AssertionError, match="wants to connect to"):
        s.connect(("192.0.2.1", 80))


def test_no_file_of_the_package_imports_a_client():
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [(path.name, n) for n in names if n in CLIENTS or n.partition(".")[0] in CLIENTS]
    assert found == []
