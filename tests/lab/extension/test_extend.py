"""Context extension from a file to a model that others load, and a report."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import bestiary
from bestiary.core.errors import BestiaryError
from bestiary.lab.extension import extend as module
from bestiary.lab.extension.extend import extend
from bestiary.lab.extension.extension import load_extension
from bestiary.lab.recipe import load_recipe
from bestiary.lab.training.train import train

from ..conftest import MANIFEST, RECIPE

FILE = """
schema = 1
start = "base"
[yarn]
factor = 8.0
original_max_position_embeddings = 32
mscale = 1.0
mscale_all_dim = 1.0
[[phases]]
sequence_length = 64
batch_size = 4
steps = 2
lr = 1e-3
[[phases]]
sequence_length = 128
batch_size = 2
steps = 2
lr = 1e-3
micro_batches = 2
[data]
source = "text"
held_out = 0.3
eval_tokens = 256
[checkpoint]
every = 0
[log]
eval_every = 0
[positions]
length = 256
documents = 2
[needle]
lengths = [128, 256]
depths = [0.0, 1.0]
count = 2
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with text, a model trained on it in `base`, and an extension of it that was run into `out`."""
    folder = tmp_path_factory.mktemp("extension")
    (folder / "tiny.toml").write_text(MANIFEST)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "text").mkdir()
    for index in range(8):
        (folder / "text" / f"{index}.txt").write_text(f"The beast number {index} eats grass and sleeps. " * 20)
    train(load_recipe(folder / "recipe.toml", set={"checkpoint.every": 0}), out=folder / "base", progress=False)
    (folder / "longer.toml").write_text(FILE)
    extend(folder / "longer.toml", out=folder / "out", progress=False)
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """A copy of it without results."""
    shutil.copytree(base, tmp_path / "lab", ignore=shutil.ignore_patterns("out"))
    return tmp_path / "lab"


@pytest.fixture
def done(base: Path):
    """The extension of `base`."""
    return extend(base / "longer.toml", out=base / "out", progress=False)


@pytest.fixture
def write(folder: Path):
    def rewrite(old: str, new: str) -> Path:
        assert old in FILE
        (folder / "longer.toml").write_text(FILE.replace(old, new))
        return folder / "longer.toml"

    return rewrite


def test_each_phase_is_a_recipe_that_starts_where_the_one_before_ends(folder):
    made = load_extension(folder / "longer.toml", out=folder / "out")
    first, second = made.recipes
    assert first.train.start == str(folder / "base" / "model")
    assert second.train.start == str(Path(first.out) / "model") == str(folder / "out" / "phase-1" / "model")
    assert (first.data.sequence_length, second.data.sequence_length) == (64, 128)
    assert second.manifest().parallelism.options.micro_batches == 2
    assert first.data.source == (str(folder / "text"),)
    assert all(recipe.manifest().model.max_position_embeddings == 256 for recipe in made.recipes)


def test_the_extended_model_carries_yarn_and_loads_back_and_in_transformers(done):
    config = json.loads((done.model / "config.json").read_text())
    rope = config.get("rope_scaling") or config["rope_parameters"]
    assert config["max_position_embeddings"] == 256
    assert rope["factor"] == 8 and rope["original_max_position_embeddings"] == 32 and rope["mscale_all_dim"] == 1
    assert "yarn" in (rope.get("type"), rope.get("rope_type"))
    ours = bestiary.load(done.model)
    scaling = ours.manifest.layers[0].attention.options.rope.scaling
    assert (scaling.type, scaling.factor) == ("yarn", 8)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(done.model, dtype=torch.float32).eval()
    ids = torch.randint(256, (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=2e-5, rtol=1e-4)


def test_the_report_has_numbers_pictures_and_every_model(done):
    folder = done.folder
    assert [probe.name for probe in done.probes] == ["before", "before, with YaRN", "after phase 1", "after phase 2"]
    numbers = json.loads((folder / "extension.json").read_text())
    assert [len(probe["needle"]["share"]) for probe in numbers["probes"]] == [2] * 4
    assert [phase["summary"]["tokens"] for phase in numbers["phases"]] == [512, 512]
    page, text = done.report.read_text(), (folder / "report.md").read_text()
    assert "data:image/png;base64," in page and "<svg" in page and "bestiary extend" in page
    assert "![Needle in a haystack](needle.png)" in text
    assert (folder / "needle.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "positions.svg").exists()


def test_yarn_alone_changes_what_is_predicted(done):
    before, stretched = done.probes[:2]
    assert before.positions.bits_per_byte != stretched.positions.bits_per_byte


def test_weights_pass_from_phase_to_phase(write, folder):
    done = extend(write("lr = 1e-3", "lr = 1e-30"), out=folder / "out", progress=False)
    before, after = (bestiary.load(path).state_dict() for path in (folder / "base" / "model", done.model))
    moved = [name for name, tensor in before.items() if "bias" not in name and not torch.equal(tensor, after[name])]
    assert not moved


def test_what_is_done_is_used_again_and_a_new_start_begins_anew(done, base, monkeypatch):
    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "train", never)
    assert extend(base / "longer.toml", out=base / "out", progress=False).probes == done.probes
    (weights,) = (base / "base" / "model").glob("*.safetensors")
    times = weights.stat()
    weights.touch()
    with pytest.raises(AssertionError, match="trained again"):
        extend(base / "longer.toml", out=base / "out", progress=False)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('start = "base"', 'start = "nowhere"', "no trained model in .*nowhere"),
        ("sequence_length = 128", "sequence_length = 300", "number 2: rows of 300 tokens exceed the 256"),
        ("factor = 8.0", "factr = 8.0", "factor"),
        ("[positions]", "[position]", "Did you mean 'positions'"),
        ('source = "text"', 'sources = "text"', "sources"),
        ("count = 2", "count = 0", "count"),
        ("length = 256\n", "length = 2560\n", "no held-out document has more than 2560 tokens"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(write, folder, old, new, message):
    with pytest.raises(BestiaryError, match=message):
        extend(write(old, new), out=folder / "out", progress=False)
    assert not (folder / "out").exists()


def test_changes_on_top_reach_the_file(folder):
    made = load_extension(folder / "longer.toml", set=["needle.count=7", "train.seed=3", f"start={folder / 'base' / 'model'}"])
    assert made.options.needle.count == 7
    assert made.recipes[0].train.seed == 3
