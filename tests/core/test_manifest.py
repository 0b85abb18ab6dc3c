"""The resolved manifest as data: it can be written out, read back, and has a digest."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bestiary
from bestiary.core.errors import BestiaryError

CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "model.num_hidden_layers": st.integers(8, 12),
        "model.rms_norm_eps": st.sampled_from([1e-5, 1e-6, 3.3e-7]),
        "model.eos_token_id": st.sampled_from([None, 3, [1, 2]]),
        "block.attention.use": st.sampled_from(["mla", "gqa"]),
        "block.attention.rope.theta": st.floats(2.0, 1e6),
        "block.attention.rope.scaling": st.sampled_from(
            [None, {"type": "linear", "factor": 2}, {"type": "yarn", "factor": 4, "original_max_position_embeddings": 64}]
        ),
        'block.at."2:4".attention.rope.scaling': st.sampled_from([None, {"type": "linear", "factor": 3}]),
        "block.ffn.n_shared_experts": st.integers(0, 3),
        "block.ffn.router": st.sampled_from([{"use": "softmax-topk"}, {"use": "softmax-group", "n_group": 4, "topk_group": 2}]),
        'block.at."5:".ffn.intermediate_size': st.integers(8, 64),
        'block.at."-2".ffn': st.just({"use": "dense", "intermediate_size": 48}),
        "precision.use": st.sampled_from(["fp32", "bf16"]),
        "objective.mtp": st.fixed_dictionaries({"use": st.just("mtp"), "depth": st.integers(1, 3), "weight": st.floats(0, 1)}),
        "parallelism.micro_batches": st.integers(1, 4),
        "hub.repo": st.text("ab/-", max_size=8),
        "description": st.text(max_size=20),
    },
)


def again(manifest):
    """The manifest written out as JSON and read back."""
    return bestiary.resolve(json.loads(json.dumps(manifest.table())))


@pytest.mark.parametrize("name", bestiary.list_models())
def test_every_catalog_model_reads_back_from_its_own_table(name):
    manifest = bestiary.resolve(name)
    assert again(manifest).digest == manifest.digest
    assert again(manifest).table() == manifest.table()


@settings(max_examples=60)
@given(CHANGES)
def test_changed_models_read_back_from_their_own_tables(changes):
    try:
        manifest = bestiary.resolve("deepseek-v3-mini", set=changes)
    except BestiaryError as error:  # two rows may meet; nothing else may be wrong
        assert "both set ffn" in str(error)
        return
    assert again(manifest).table() == manifest.table()
    assert again(manifest).digest == manifest.digest
    assert again(manifest).layers == manifest.layers


def test_a_change_on_top_of_a_written_out_manifest_means_what_it_means_on_the_original():
    written = bestiary.resolve("deepseek-v3").table()
    for change in ({"block.attention.use": "gqa"}, {"block.ffn.n_shared_experts": 2}, {"block.at.0:3.ffn.intermediate_size": 64}):
        assert bestiary.resolve(written, set=change).digest == bestiary.resolve("deepseek-v3", set=change).digest


def test_the_table_has_every_default_filled_in():
    table = bestiary.resolve("deepseek-v3").table()
    assert table["block"]["ffn"]["router"]["bias_update_speed"] == 0.001
    assert table["model"]["initializer_range"] == 0.02
    assert table["block"]["at"] == {"0:3": {"ffn": {"use": "dense", "intermediate_size": 18432}}}


@pytest.mark.parametrize(
    "change",
    [
        {"model.rms_norm_eps": 1e-5},
        {"model.max_position_embeddings": 9},
        {"block.attention.rope.theta": 5e4},
        {"block.attention.latent_norm_eps": 1e-5},
        {"block.ffn.aux_loss_alpha": 0.5},
        {"block.ffn.router.bias_update_speed": 0.5},
        {"block.at.0.ffn.intermediate_size": 7},
        {"precision.use": "fp32"},
        {"objective.next-token.weight": 0.5},
        {"objective.mtp.use": "mtp"},
    ],
)
def test_any_option_that_can_change_a_result_changes_the_digest(change):
    changed = bestiary.resolve("deepseek-v3-mini", set={"objective.next-token.use": "next-token"} | change)
    assert changed.digest != bestiary.resolve("deepseek-v3-mini").digest


@pytest.mark.parametrize("change", [{"parallelism.micro_batches": 4}, {"hub.repo": "a/b"}, {"description": "else"}])
def test_parallelism_hub_and_prose_are_outside_the_digest(change):
    assert bestiary.resolve("deepseek-v3-mini", set=change).digest == bestiary.resolve("deepseek-v3-mini").digest


def test_the_digest_does_not_depend_on_how_the_same_model_is_written(tiny):
    rows = tiny(layers=4)
    rows["block"]["at"] = {"0:2": {"ffn": dict(rows["block"]["ffn"])}, "2:": {"ffn": dict(rows["block"]["ffn"])}}
    assert bestiary.resolve(rows).digest == bestiary.resolve(tiny(layers=4)).digest
    assert bestiary.resolve(tiny(), set={"model.rms_norm_eps": 1e-6}).digest == bestiary.resolve(tiny()).digest


def test_the_order_of_objectives_is_part_of_the_digest(tiny):
    first, second = {"use": "next-token"}, {"use": "mtp"}
    one, other = tiny(objective={"a": first, "b": second}), tiny(objective={"b": second, "a": first})
    assert list(bestiary.resolve(other).objectives) == ["b", "a"]
    assert bestiary.resolve(one).digest != bestiary.resolve(other).digest


def test_runs_gather_equal_neighbours():
    assert [(start, stop, layer.ffn.use) for start, stop, layer in bestiary.resolve("deepseek-v3").runs()] == [
        (0, 3, "dense"),
        (3, 61, "moe"),
    ]


def test_components_name_sub_slots_too_each_once():
    names = [component.name for component in bestiary.resolve("deepseek-v3").components()]
    assert sorted(names) == sorted(["mla", "dense", "moe", "sigmoid-group", "bf16", "local", "next-token", "mtp"])
