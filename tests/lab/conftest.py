"""A model small enough to train in a second, and text that it can learn."""

from __future__ import annotations

from pathlib import Path

import pytest

MANIFEST = """
schema = 1
extends = "deepseek-v3-nano"
precision.use = "fp32"
[model]
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
[block.attention]
q_lora_rank = 16
kv_lora_rank = 8
qk_nope_head_dim = 8
qk_rope_head_dim = 4
v_head_dim = 8
[block.ffn]
n_routed_experts = 4
num_experts_per_tok = 2
intermediate_size = 16
router.n_group = 2
router.topk_group = 1
[block.at."0".ffn]
intermediate_size = 48
"""

RECIPE = """
schema = 1
model = "tiny.toml"
[data]
source = "text"
sequence_length = 32
held_out = 0.3
eval_tokens = 256
[train]
batch_size = 4
steps = 12
[optimizer]
lr = 1e-2
[log]
eval_every = 4
"""


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A folder with a manifest, a recipe and some text."""
    (tmp_path / "tiny.toml").write_text(MANIFEST)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    text = tmp_path / "text"
    text.mkdir()
    for index in range(8):
        (text / f"{index}.txt").write_text(f"The beast number {index} eats grass and sleeps. " * 20)
    return tmp_path


@pytest.fixture
def change(lab: Path):
    """Rewrites the recipe: `change("steps = 12", "steps = 3")`."""

    def rewrite(old: str, new: str) -> Path:
        path = lab / "recipe.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return path

    return rewrite
