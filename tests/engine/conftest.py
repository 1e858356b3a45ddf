import os

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """fsync matters when the power goes, not here; it is most of these tests' time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
