"""Random small models, stored in every way and cut in every way: the ranks' parts are the whole, and no byte more is read."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import bestiary
from bestiary.core.layout import parse_layout
from bestiary.core.table import own_entries
from bestiary.registry import load_rank as module
from bestiary.registry.checkpoint import open_checkpoint
from bestiary.registry.fill import check_equal
from bestiary.registry.layout import QUANTISED, SCALE
from bestiary.registry.load_rank import load_rank
from bestiary.registry.plan import make_plan
from bestiary.registry.ranks import held_by

from .conftest import V3, edit_tensors, fresh
from .test_fp8 import quantised


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """MLA or GQA of four heads, dense and expert layers, perhaps tied, perhaps with a prediction block."""
    width = draw(st.sampled_from([16, 20, 36]))
    mla = {"use": "mla", "q_lora_rank": draw(st.sampled_from([None, 9])), "kv_lora_rank": 7}
    mla |= {"qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": draw(st.integers(3, 6))}
    gqa = {"use": "gqa", "num_key_value_heads": draw(st.sampled_from([2, 4])), "head_dim": 6}
    experts = draw(st.integers(3, 7))
    hidden = 4 * draw(st.integers(1, 3))
    moe = {"use": "moe", "n_routed_experts": experts, "n_shared_experts": 1, "num_experts_per_tok": 2, "intermediate_size": hidden}
    objectives = {"next-token": {"use": "next-token"}} | ({"mtp": {"use": "mtp"}} if draw(st.booleans()) else {})
    sizes = {"hidden_size": width, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 4 * draw(st.integers(5, 9))}
    return {
        "schema": 1,
        "model": sizes | {"tie_word_embeddings": draw(st.booleans())},
        "block": {
            "attention": draw(st.sampled_from([mla, gqa])),
            "ffn": moe | {"router": {"use": "sigmoid-group"}},
            "at": {"0": {"ffn": {"use": "dense", "intermediate_size": 4 * draw(st.integers(2, 6))}}},
        },
        "precision": {"use": "fp32"},
        "objective": objectives,
    }


@st.composite
def layouts(draw: st.DrawFn) -> tuple[str, int]:
    pp, tp, dp = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2])), draw(st.integers(1, 3))
    ep = draw(st.sampled_from([n for n in range(1, dp * tp + 1) if dp * tp % n == 0]))
    return f"pp={pp},tp={tp},ep={ep},zero={draw(st.sampled_from([0, 3]))}", pp * tp * dp


def packed(folder: Path) -> None:
    """Turns one tensor per expert and matrix into one for all experts, scales too."""

    def change(tensors: dict[str, Tensor]) -> None:
        stems = {name.partition(".experts.")[0] + ".experts" for name in tensors if ".mlp.experts." in name}
        for stem in stems:
            count = 1 + max(int(name.removeprefix(stem + ".").split(".")[0]) for name in tensors if name.startswith(stem))
            for end in [end for end in (".weight", ".weight" + SCALE) if f"{stem}.0.up_proj{end}" in tensors]:
                rows = [[tensors.pop(f"{stem}.{e}.{part}{end}") for part in ("gate_proj", "up_proj", "down_proj")] for e in range(count)]
                tail = end.removeprefix(".weight")
                tensors[f"{stem}.gate_up_proj{tail}"] = _stack([_cat(row[:2]) for row in rows])
                tensors[f"{stem}.down_proj{tail}"] = _stack([row[2] for row in rows])

    edit_tensors(folder, change)


def _cat(pair: list[Tensor]) -> Tensor:
    return torch.cat([each.view(torch.uint8) for each in pair]).view(pair[0].dtype)


def _stack(rows: list[Tensor]) -> Tensor:
    return torch.stack([each.view(torch.uint8) for each in rows]).view(rows[0].dtype)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes that the reader reports, read by read."""
    got: list[int] = []

    @contextmanager
    def bar(*_: object) -> Iterator[Any]:
        yield got.append

    with monkeypatch.context() as patch:
        patch.setattr(module, "byte_bar", bar)
        yield got


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=models(), layout=layouts(), store=st.sampled_from(["bf16", "fp8", "packed", "packed fp8"]), rows=st.sampled_from([2, 4]))
def test_parts_are_the_whole_and_nothing_else_is_read(
    model: dict[str, Any], layout: tuple[str, int], store: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (text, of) = tmp_path / "model", layout
    if model["block"]["attention"]["use"] == "gqa":
        store = store.replace("fp8", "bf16")  # no config.json says block sizes of such a model
    shutil.rmtree(folder, ignore_errors=True)
    if "fp8" in store:
        quantised(folder, model, (rows, 5))
    else:
        bestiary.save(fresh(model), folder, dtype=torch.bfloat16)
    if "packed" in store:
        packed(folder)
    expected = bestiary.load(folder).state_dict()
    manifest = bestiary.resolve(str(folder))
    seen = {name: torch.zeros(tensor.shape, dtype=torch.int) for name, tensor in expected.items()}
    for rank in range(of):
        with counted(monkeypatch) as got:
            part = load_rank(folder, rank=rank, of=of, layout=text)
        assert sum(got) == part.report.nbytes
        if "fp8" not in store:
            stored = {name: 4 if expected[name].dtype == torch.float32 else 2 for name in part.tensors}
            assert sum(got) == sum(tensor.numel() * stored[name] for name, tensor in part.tensors.items())
        for name, tensor in part.tensors.items():
            region = part.regions[name]
            assert torch.equal(tensor, expected[name][region]), (rank, name)
            assert tensor.dtype == expected[name].dtype
            seen[name][region] += 1
    assert all(count.min() >= 1 for count in seen.values())
    chosen = parse_layout(text, of)
    if chosen.zero == 3:
        entries = own_entries(manifest)
        alone = {name for name, entry in entries.items() if entry.weight.shard != "replicate" or chosen.tp == 1}
        alone.discard("model.embed_tokens.weight")  # which the last stage may need too
        assert all((seen[name] == 1).all() for name in alone), "with zero=3 every number lies on one rank"


def test_fp8_parts_take_their_own_scales_only(tmp_path: Path) -> None:
    quantised(tmp_path / "m", V3, (16, 16))
    manifest, checkpoint = bestiary.resolve(str(tmp_path / "m")), open_checkpoint(tmp_path / "m")
    for rank in range(5):
        layout = parse_layout("zero=3", 5)
        regions = held_by(manifest, layout, rank)
        part = load_rank(tmp_path / "m", rank=rank, of=5)
        for read in part.report.taken:
            entry = own_entries(manifest)[read.target]
            if entry.weight.role in QUANTISED and entry.weight.shard != "expert":
                rows, columns = regions[read.target][0], entry.weight.shape[1]
                scales = (math.ceil(rows.stop / 16) - rows.start // 16) * math.ceil(columns / 16)
                assert read.nbytes == (rows.stop - rows.start) * columns + 4 * scales
    assert checkpoint.tensors


def test_duplicates_are_compared_when_asked(checkpoint: Path) -> None:
    manifest = bestiary.resolve(str(checkpoint))

    def differing() -> list[str]:
        plan = make_plan(manifest, open_checkpoint(checkpoint), compare=True)
        assert [(kept.name, copy.name) for kept, copy in plan.equal] == [
            ("model.embed_tokens.weight", "model.layers.3.embed_tokens.weight"),
            ("lm_head.weight", "model.layers.3.shared_head.head.weight"),
        ]
        return [copy.name for kept, copy in plan.equal if not check_equal(kept, copy)]

    assert not make_plan(manifest, open_checkpoint(checkpoint)).equal
    assert differing() == []
    edit_tensors(checkpoint, lambda tensors: tensors["model.layers.3.shared_head.head.weight"][7, 3].add_(1))
    assert differing() == ["model.layers.3.shared_head.head.weight"]
