"""The table of parameters: DeepSeek's published counts and names, from options alone."""

from __future__ import annotations

import pytest

import bestiary
from bestiary.core.accounting import account
from bestiary.core.assemble import assemble, state
from bestiary.core.table import entries, own_entries


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("deepseek-v3", 671_026_419_200, 36_625_618_432),
        ("deepseek-v2", 235_741_434_880, 20.852e9),
        ("deepseek-v2-lite", 15_706_484_224, 2.451e9),
        ("moonlight-16b-a3b", 15_960_110_208, 2.579e9),
        ("kimi-k2", 1_026_408_232_448, 31.687e9),
    ],
)
def test_published_models_have_their_published_sizes(name, total, active):
    figures = account(bestiary.resolve(name))
    assert figures.parameters == total
    assert figures.active_parameters == pytest.approx(active, rel=3e-4 if isinstance(active, float) else 0)


def test_mtp_adds_its_block_projection_and_norms_once():
    assert account(bestiary.resolve("deepseek-v3")).objective_parameters == 11_610_068_224


def test_deepseek_v3_keeps_576_numbers_per_layer_and_token_when_decoding():
    assert account(bestiary.resolve("deepseek-v3")).cache_bytes_per_token == 70_272


def test_deepseek_v3_lies_in_the_published_number_of_tensors():
    pieces = [piece for entry in entries(bestiary.resolve("deepseek-v3")) for piece in entry.pieces]
    main = [piece for piece in pieces if not piece.hub.startswith("model.layers.61.")]
    quantised = sum(piece.hub.endswith("_proj.weight") or "kv_a_proj_with_mqa" in piece.hub for piece in main)
    assert len({piece.hub for piece in pieces}) == len(pieces)
    assert len(main) + quantised == 90_427
    mtp = [piece.hub for piece in pieces if piece.hub.startswith("model.layers.61.")]
    assert "model.layers.61.shared_head.head.weight" in mtp
    plain = sum("eh_proj" not in hub and (hub.endswith("_proj.weight") or "kv_a_proj_with_mqa" in hub) for hub in mtp)
    assert len(mtp) + plain == 1_564


@pytest.mark.parametrize("attention", ["mla", "gqa"])
@pytest.mark.parametrize("ffn", ["dense", "moe"])
def test_names_and_shapes_of_the_table_are_those_of_the_built_model(tiny, attention, ffn):
    manifest = bestiary.resolve(tiny(attention, ffn, objective={"next-token": {"use": "next-token"}, "mtp": {"use": "mtp", "depth": 2}}))
    built = {name: tuple(tensor.shape) for name, tensor in state(assemble(manifest, device="meta")).items()}
    assert {name: entry.weight.shape for name, entry in own_entries(manifest).items()} == built


@pytest.mark.parametrize("name", bestiary.list_models())
def test_the_pieces_of_every_parameter_fill_it_exactly_once(name):
    for entry in entries(bestiary.resolve(name)):
        for layout in entry.layouts():
            assert sum(piece.numel for piece in layout) == entry.weight.numel
            assert len({str(piece.region) for piece in layout}) == len(layout)
