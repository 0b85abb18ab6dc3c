"""What a change costs: swapping MLA for GQA is one line, adding a router one file in a package of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bestiary
from bestiary.core.errors import BestiaryError

PROJECT = Path(__file__).parent / "data" / "bestiary-hash-router"
SWAP = 'extends = "{}"\nblock.attention.use = "gqa"\n'


# One line


def test_swapping_attention_is_a_manifest_of_two_lines_that_builds_and_runs(tmp_path):
    path = tmp_path / "ablate.toml"
    path.write_text(SWAP.format("deepseek-v3-mini"))
    sizes = {"model.num_hidden_layers": 2, "model.hidden_size": 64, "block.ffn.intermediate_size": 16, "model.vocab_size": 50}
    model = bestiary.create_model(path, set=sizes)
    assert [type(block.self_attn).__name__ for block in model.model.layers] == ["GroupedQueryAttention"] * 2
    ids = torch.randint(50, (1, 6))
    model(ids).float().square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.model.layers[0].parameters())
    assert model.generate(ids, max_new_tokens=3, eos_token_id=-1).shape == (1, 9)


def test_the_same_two_lines_swap_it_in_the_largest_model(tmp_path):
    path = tmp_path / "ablate.toml"
    path.write_text(SWAP.format("deepseek-v3"))
    model = bestiary.create_model(path, device="meta")
    assert {type(block.self_attn).__name__ for block in model.model.layers} == {"GroupedQueryAttention"}
    assert type(model.objectives["mtp"].layers[0].block.self_attn).__name__ == "GroupedQueryAttention", "MTP's block follows"


def test_the_swap_on_the_command_line_is_the_same_model(tmp_path):
    path = tmp_path / "ablate.toml"
    path.write_text(SWAP.format("deepseek-v3"))
    assert bestiary.resolve(path).digest == bestiary.resolve("deepseek-v3", set=["block.attention.use=gqa"]).digest


def test_only_what_was_swapped_differs(tmp_path):
    path = tmp_path / "ablate.toml"
    path.write_text(SWAP.format("deepseek-v3"))
    before, after = bestiary.resolve("deepseek-v3").table(), bestiary.resolve(path).table()
    assert before["block"].pop("attention") != after["block"].pop("attention")
    del before["description"], after["description"]
    assert before == after


# One file


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def publish(project: Path, to: Path) -> None:
    """Builds a project's wheel and installs it into a folder."""
    wheels = project.parent / f"{project.name}-wheels"
    pip("wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", wheels, project)
    (wheel,) = wheels.glob("*.whl")
    pip("install", "--no-deps", "--no-index", "--target", to, wheel)


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """An environment in which the hash router and a broken package beside it are installed."""
    folder = tmp_path_factory.mktemp("third-party")
    shutil.copytree(PROJECT, folder / "hash")
    shutil.copytree(PROJECT, folder / "broken")
    module = (folder / "broken" / "bestiary_hash_router.py").rename(folder / "broken" / "bestiary_broken.py")
    module.write_text(module.read_text() + "import a_kernel_that_is_not_there\n")
    settings = folder / "broken" / "pyproject.toml"
    settings.write_text(settings.read_text().replace("hash-router", "broken").replace("bestiary_hash_router", "bestiary_broken"))
    for name in ("hash", "broken"):
        publish(folder / name, folder / "site")
    path = os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}


def run(code: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, timeout=300)


TRAIN = """
import json, sys, torch, bestiary
from bestiary.core.contracts import Batch
from bestiary.core.plugins import distributions, plugins

manifest = bestiary.resolve("ablate.toml")
model = bestiary.create_model(manifest)
ids = torch.randint(50, (2, 9))
before = model.lm_head.weight.clone()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
loss = manifest.parallelism.build(manifest.site).step(model, Batch(ids[:, :-1], ids[:, 1:]))
optimizer.step()
print(json.dumps({
    "loss": float(loss.total), "moved": float((model.lm_head.weight - before).abs().max()),
    "metrics": {name: value for name, value in model.after_step(lambda t: t).items() if name.endswith("max_vio")},
    "distributions": distributions(manifest.components()), "origin": str(plugins().find("router", "hash").origin),
    "router": manifest.layers[-1].ffn.table()["router"],
}))
"""

MANIFEST = """extends = "deepseek-v3-mini"
model = { num_hidden_layers = 2, hidden_size = 64, vocab_size = 50 }
block.ffn.router = { use = "hash", seed = 7 }
"""


def test_the_plugin_is_one_module():
    assert [path.name for path in PROJECT.rglob("*.py")] == ["bestiary_hash_router.py"]


def test_an_installed_router_is_named_in_a_manifest_and_trained(environment, tmp_path):
    (tmp_path / "ablate.toml").write_text(MANIFEST)
    done = run(TRAIN, environment, tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert 0 < said["loss"] < 20
    assert said["moved"] > 0
    assert said["router"] == {"use": "hash", "seed": 7}
    assert said["origin"] == "hash-router (bestiary-hash-router 0.3.1)"
    assert said["distributions"]["bestiary-hash-router"] == "0.3.1"
    assert set(said["distributions"]) == {"bestiary", "bestiary-hash-router"}
    assert list(said["metrics"]) == ["model.layers.1.mlp.max_vio"]


def test_a_broken_package_beside_it_is_remembered_and_named_when_something_is_missing(environment, tmp_path):
    code = (
        "import bestiary\nfrom bestiary.core.plugins import plugins\n"
        "print(list(plugins().broken), bestiary.list_components('router'))\n"
        "bestiary.resolve('deepseek-v3-mini', set=['block.ffn.router.use=hush'])\n"
    )
    done = run(code, environment, tmp_path)
    assert done.stdout.strip() == "['broken'] ['hash', 'sigmoid-group', 'softmax-group', 'softmax-topk']"
    assert "No router component is called 'hush'. Did you mean 'hash'?" in done.stderr
    assert "Plugins that did not load: broken (ModuleNotFoundError: No module named 'a_kernel_that_is_not_there')" in done.stderr


def test_where_it_is_not_installed_the_manifest_is_refused_by_name(tmp_path):
    (tmp_path / "ablate.toml").write_text(MANIFEST)
    with pytest.raises(BestiaryError, match="No router component is called 'hash'"):
        bestiary.resolve(tmp_path / "ablate.toml")


def test_blocked_it_is_as_if_it_were_not_installed(environment, tmp_path):
    code = "import bestiary; print(bestiary.list_components('router'))"
    done = run(code, environment | {"BESTIARY_BLOCK": "hash-router,broken"}, tmp_path)
    assert done.stdout.strip() == "['sigmoid-group', 'softmax-group', 'softmax-topk']"
