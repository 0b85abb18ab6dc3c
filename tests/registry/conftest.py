"""Small random checkpoints with awkward sizes, and ways of damaging them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import bestiary
from bestiary.core.backbone import CausalLM

V3 = {
    "schema": 1,
    "model": {
        "hidden_size": 44, "num_hidden_layers": 3, "num_attention_heads": 3, "vocab_size": 53, "max_position_embeddings": 256,
        "bos_token_id": 1, "eos_token_id": [2, 3],
    },
    "block": {
        "attention": {
            "use": "mla", "q_lora_rank": 21, "kv_lora_rank": 19, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 14,
        },
        "ffn": {
            "use": "moe", "n_routed_experts": 6, "n_shared_experts": 1, "num_experts_per_tok": 2, "intermediate_size": 18,
            "router": {"use": "sigmoid-group", "n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.5},
        },
        "at": {"0": {"ffn": {"use": "dense", "intermediate_size": 37}}},
    },
    "precision": {"use": "fp32"},
    "objective": {"next-token": {"use": "next-token"}, "mtp": {"use": "mtp"}},
}  # fmt: skip
"""A DeepSeek-V3 with one dense layer, two layers of experts and one prediction block."""

LLAMA = {
    "schema": 1,
    "model": {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 6, "vocab_size": 41, "max_position_embeddings": 64},
    "block": {"attention": {"use": "gqa", "num_key_value_heads": 2}, "ffn": {"use": "dense", "intermediate_size": 29}},
    "precision": {"use": "fp32"},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ids() -> torch.Tensor:
    """`[2, 13]` token ids below 41."""
    return torch.randint(0, 41, (2, 13), generator=torch.Generator().manual_seed(7))


def shaken(model: CausalLM) -> CausalLM:
    """The model with every parameter and bias made random, so that nothing hides behind ones and zeros."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.ndim == 1:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
            elif "embed" not in name:
                tensor.mul_(4)
    return model.eval()


def fresh(manifest: dict[str, Any], **options: Any) -> CausalLM:
    return shaken(bestiary.create_model(manifest, dtype=torch.float32, **options))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with the V3 in one file."""
    bestiary.save(fresh(V3), tmp_path / "v3")
    return tmp_path / "v3"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same in several files."""
    bestiary.save(fresh(V3), tmp_path / "shards", max_shard_size="60KB")
    return tmp_path / "shards"


def read_file(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrites the single file of a checkpoint after `change` was made to its tensors."""
    from safetensors.torch import save_file

    path = folder / "model.safetensors"
    tensors = read_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrites the header of a safetensors file and leaves its data alone."""
    blob = path.read_bytes()
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + blob[8 + length :])


def error_of(call: Callable[[], object]) -> str:
    """The message of the `BestiaryError` that `call` raises."""
    with pytest.raises(bestiary.BestiaryError) as caught:
        call()
    return str(caught.value)
