"""What the pages promise is there."""

import re
from pathlib import Path

import pytest

from pcrl_cli.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "examples" / "README.md", *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    missing = [target for target in LINK.findall(page.read_text("utf-8")) if not (page.parent / target).exists()]
    assert missing == []


def test_the_tree_in_the_readme_is_the_tree():
    text = (ROOT / "README.md").read_text("utf-8")
    shown = set(re.findall(r"[├└]── (\w+)/", text))
    there = {p.name for p in (ROOT / "pcrl_cli").rglob("*") if p.is_dir() and p.name != "__pycache__"}
    assert shown == there


def test_every_command_of_the_readme_exists():
    text = (ROOT / "README.md").read_text("utf-8")
    used = set(re.findall(r"(?:^|[`($\s])pcrl ([a-z]+)\b", text))
    known = {command.name for command in app.registered_commands}
    assert used <= known | {"COMMAND"}
    assert known <= used | set(re.findall(r"`([a-z]+)", text))
