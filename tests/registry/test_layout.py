"""The published layout of a manifest, against totals of real repositories."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bestiary
from bestiary.core.assemble import state
from bestiary.core.manifest import Manifest
from bestiary.core.table import own_entries
from bestiary.registry.layout import published, scale_shape

from .conftest import V3


def test_deepseek_v3_has_91991_tensors() -> None:
    tensors = published(bestiary.resolve("deepseek-v3"))
    assert len(tensors) == len({tensor.name for tensor in tensors}) == 91_991
    assert sum(tensor.nbytes for tensor in tensors) == 688_574_839_360
    mtp = [tensor for tensor in tensors if tensor.part == "mtp"]
    assert (len(mtp), sum(tensor.nbytes for tensor in mtp)) == (1_564, 15_424_227_552)
    main = [tensor for tensor in tensors if tensor.part != "mtp"]
    assert (len(main), sum(tensor.nbytes for tensor in main)) == (90_427, 673_150_611_808)


def test_deepseek_v3_rows_as_in_its_headers() -> None:
    tensors = {tensor.name: (tensor.dtype, tensor.shape) for tensor in published(bestiary.resolve("deepseek-v3"))}
    layer = "model.layers.61."
    assert tensors[f"{layer}self_attn.kv_a_proj_with_mqa.weight"] == ("F8_E4M3", (576, 7168))
    assert tensors[f"{layer}self_attn.kv_a_proj_with_mqa.weight_scale_inv"] == ("F32", (5, 56))
    assert tensors[f"{layer}mlp.experts.255.down_proj.weight_scale_inv"] == ("F32", (56, 16))
    assert tensors[f"{layer}eh_proj.weight"] == ("BF16", (7168, 14336))
    assert tensors[f"{layer}shared_head.head.weight"] == ("BF16", (129280, 7168))
    assert tensors[f"{layer}mlp.gate.weight"] == ("BF16", (256, 7168))
    assert tensors[f"{layer}mlp.gate.e_score_correction_bias"] == ("F32", (256,))
    assert not any(name.startswith("model.layers.62.") for name in tensors)


def test_scales_of_packed_experts() -> None:
    assert scale_shape((4, 130, 64), (128, 32)) == (4, 2, 2)


manifests = st.builds(
    lambda layers, dense, experts, mtp, latent, tied: bestiary.resolve(
        V3,
        set={
            "model.num_hidden_layers": layers,
            "model.tie_word_embeddings": tied,
            'block.at."0".ffn': {"use": "dense" if dense else "moe"} | ({"intermediate_size": 7} if dense else V3["block"]["ffn"]),
            "block.ffn.n_routed_experts": 3 * experts,
            "block.attention.q_lora_rank": latent,
            "objective.mtp": {"use": "mtp", "depth": mtp} if mtp else False,
        },
    ),
    st.integers(2, 5), st.booleans(), st.integers(2, 4), st.integers(0, 3), st.sampled_from([None, 5]), st.booleans(),
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(manifests)
def test_every_layout_covers_every_parameter_once(manifest: Manifest) -> None:
    names = set()
    for entry in own_entries(manifest).values():
        for pieces in entry.layouts():
            seen = torch.zeros(entry.weight.shape, dtype=torch.int8)
            for piece in pieces:
                assert seen[piece.region].shape == piece.shape
                seen[piece.region] += 1
            assert bool((seen == 1).all())
        first = [piece.hub for piece in entry.pieces]
        assert names.isdisjoint(first)
        names |= set(first)
    copies = {tensor.name for tensor in published(manifest)} - names
    assert len(copies) == 2 * sum(part.options.table()["depth"] for part in manifest.objectives.values() if part.use == "mtp")


def test_published_elements_are_those_of_the_model() -> None:
    model = bestiary.create_model(V3, device="meta")
    own = sum(tensor.numel() for tensor in state(model).values())
    copies = 2 * 53 * 44
    assert sum(math.prod(tensor.shape) for tensor in published(model.manifest)) == own + copies
