"""The documentation speaks of what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

import bestiary
from bestiary.cli.app import app
from bestiary.core.plugins import plugins
from bestiary.registry.catalog import resolve

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = {page: page.read_text() for page in PAGES}


def test_every_hook_is_explained():
    for slot in plugins().slots:
        assert f"`bestiary_{slot}`" in TEXT[ROOT / "docs" / "plugins.md"]


def test_the_readme_lists_every_component():
    for slot, components in plugins().slots.items():
        for name in components:
            assert f"`{name}`" in TEXT[ROOT / "README.md"], f"{slot} {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_in_the_docs_exist(page):
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"^bestiary (\w+)", TEXT[page], re.MULTILINE)) <= known
    assert set(re.findall(r"`bestiary (\w+)[ `]", TEXT[page])) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT[page]):
        assert (page.parent / target).exists(), target


def test_the_manifest_in_the_docs_resolves():
    import tomllib

    block = re.search(r"```toml\n(.*?)```", TEXT[ROOT / "docs" / "manifest.md"], re.DOTALL)
    assert block is not None
    manifest = resolve(tomllib.loads(block[1]))
    assert [part.use for part in manifest.objectives.values()] == ["next-token", "mtp"]


def test_the_plugin_in_the_docs_works(monkeypatch):
    import types

    from bestiary.core.plugins import Origin, discover

    block = re.search(r"```python\n(.*?)```", TEXT[ROOT / "docs" / "plugins.md"], re.DOTALL)
    assert block is not None
    module = types.ModuleType("bestiary_hash_router")
    exec(compile(block[1], "docs/plugins.md", "exec"), module.__dict__)
    found = discover()
    found.register(module, Origin("hash-router", "bestiary-hash-router", "1.0", module.__name__))
    manifest = resolve("deepseek-v3-nano", set={"block.ffn.router.use": "hash"}, plugins=found)
    model = bestiary.create_model(manifest)
    import torch

    assert model(torch.randint(256, (1, 5))).shape[:2] == (1, 5)


def test_every_public_name_is_in_the_readme():
    for name in bestiary.__all__:
        if name not in ("BestiaryError", "list_components", "list_models", "resolve"):
            assert f"bestiary.{name}" in TEXT[ROOT / "README.md"]
