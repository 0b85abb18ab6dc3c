"""`config.json` and manifests: round trips, defaults, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bestiary
from bestiary.registry.hub_config import config_from_manifest, manifest_from_config

from .conftest import LLAMA, V3, error_of

small = st.integers(1, 64)
MODEL = {
    "num_hidden_layers": st.integers(1, 9),
    "num_attention_heads": st.just(4),
    "hidden_size": small.map(lambda n: 4 * n),
    "vocab_size": small,
    "max_position_embeddings": st.integers(64, 9999),
    "rms_norm_eps": st.sampled_from([1e-6, 1e-5, 3e-7]),
    "tie_word_embeddings": st.booleans(),
    "initializer_range": st.sampled_from([0.02, 0.006]),
    "bos_token_id": st.none() | small,
    "eos_token_id": st.none() | small | st.lists(small, min_size=1, max_size=3),
    "torch_dtype": st.sampled_from(["bfloat16", "float32", "float16"]),
    "rope_theta": st.sampled_from([1e4, 5e4, 1e6]),
}
YARN = st.fixed_dictionaries(
    {"type": st.just("yarn"), "factor": st.sampled_from([2.0, 40.0]), "original_max_position_embeddings": small},
    optional={"beta_fast": st.just(16.0), "mscale": st.just(1.0), "mscale_all_dim": st.just(0.7), "truncate": st.booleans()},
)
SCALING = {"rope_scaling": st.none() | YARN | st.just({"rope_type": "linear", "factor": 3.0})}
MLA = {
    "q_lora_rank": st.none() | small,
    "kv_lora_rank": small,
    "qk_nope_head_dim": small,
    "qk_rope_head_dim": small.map(lambda n: 2 * n),
    "v_head_dim": small,
    "first_k_dense_replace": st.integers(0, 10),
    "moe_layer_freq": st.just(1),
    "intermediate_size": small,
    "n_routed_experts": st.just(12),
    "num_experts_per_tok": st.integers(1, 6),
    "n_shared_experts": st.integers(1, 3),
    "moe_intermediate_size": small,
    "aux_loss_alpha": st.sampled_from([0.0, 0.001]),
    "seq_aux": st.booleans(),
    "n_group": st.just(4),
    "topk_group": st.integers(2, 4),
    "routed_scaling_factor": st.sampled_from([1.0, 2.5]),
}
BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 64]}
GQA = {"num_key_value_heads": st.sampled_from([1, 2, 4]), "intermediate_size": small, "head_dim": small.map(lambda n: 2 * n)}
CONFIGS = st.one_of(
    st.fixed_dictionaries(
        {
            "model_type": st.sampled_from(["deepseek_v3", "kimi_k2"]),
            **MODEL, **SCALING, **MLA,
            "norm_topk_prob": st.booleans(),
            "num_nextn_predict_layers": st.integers(0, 2),
            "rope_interleave": st.booleans(),
        },
        optional={"quantization_config": st.just(BLOCKS)},
    ),
    st.fixed_dictionaries(
        {
            "model_type": st.just("deepseek_v2"),
            **MODEL, **SCALING, **MLA,
            "topk_method": st.sampled_from(["greedy", "group_limited_greedy"]),
        }
    ),
    st.fixed_dictionaries({"model_type": st.just("llama"), **MODEL, **SCALING, **GQA, "attention_bias": st.booleans()}),
    st.fixed_dictionaries({"model_type": st.just("mistral"), **MODEL, **SCALING, **GQA, "sliding_window": st.none()}),
    st.fixed_dictionaries({"model_type": st.sampled_from(["qwen2"]), **MODEL, **SCALING, **GQA}),
    st.fixed_dictionaries({"model_type": st.just("qwen3"), **MODEL, **SCALING, **GQA, "attention_bias": st.booleans()}),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(CONFIGS)
def test_round_trip(config: dict[str, Any]) -> None:
    manifest = bestiary.resolve(manifest_from_config(config, "config.json"))
    expressed = config_from_manifest(manifest)
    assert expressed.config is not None, expressed.reason
    again = bestiary.resolve(manifest_from_config(json.loads(json.dumps(expressed.config)), "config.json"))
    assert again.digest == manifest.digest and again.hub == manifest.hub
    dense = config.get("first_k_dense_replace", 0) >= config["num_hidden_layers"]
    assert dense or expressed.config["model_type"] == config["model_type"]
    said = {key: value for key, value in config.items() if key in expressed.config and key not in ("rope_scaling", "model_type")}
    for key, value in said.items():
        if not (dense and key == "first_k_dense_replace") and not (config.get("topk_method") == "greedy" and "group" in key):
            assert expressed.config[key] == value, key


@pytest.mark.parametrize("name", bestiary.list_models("*"))
def test_every_catalog_manifest_survives_its_config(name: str) -> None:
    manifest = bestiary.resolve(name)
    expressed = config_from_manifest(manifest)
    assert expressed.config is not None, expressed.reason
    again = bestiary.resolve(manifest_from_config(expressed.config, "config.json"))
    assert config_from_manifest(again).config == expressed.config
    assert again.hub.weight_block_size == manifest.hub.weight_block_size


def v3(**changes: Any) -> dict[str, Any]:
    """DeepSeek-V3's config with changes; None removes a key."""
    config = config_from_manifest(bestiary.resolve("deepseek-v3")).config
    assert config is not None
    return {key: value for key, value in (config | changes).items() if value is not None}


def test_deepseek_v3_is_read_as_published() -> None:
    manifest = bestiary.resolve(manifest_from_config(v3(), "config.json"))
    assert manifest.digest == bestiary.resolve("deepseek-v3").digest
    assert manifest.hub.weight_block_size == (128, 128)


def test_both_spellings_of_rope_mean_the_same() -> None:
    old = v3()
    scaling = {key: value for key, value in old["rope_scaling"].items() if key != "type"}
    new = v3(rope_parameters=scaling | {"rope_theta": 10000.0}, rope_scaling=None, rope_theta=None)
    assert manifest_from_config(old, "a")["block"] == manifest_from_config(new, "a")["block"]


def test_original_length_defaults_to_the_longest() -> None:
    data = manifest_from_config(v3(rope_scaling={"type": "yarn", "factor": 2.0}), "a")
    assert data["block"]["attention"]["rope"]["scaling"]["original_max_position_embeddings"] == 163840


def test_both_names_of_prediction_depth() -> None:
    data = manifest_from_config(v3(num_nextn_predict_layers=None, num_mtp_layers=2), "a")
    assert data["objective"]["mtp"]["depth"] == 2
    message = error_of(lambda: manifest_from_config(v3(num_mtp_layers=2), "a"))
    assert "contradicts itself" in message


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", "bf16"), ("float16", "bf16"), ("float32", "fp32")])
def test_stored_dtype_chooses_the_precision(dtype: str, precision: str) -> None:
    for key in ("dtype", "torch_dtype"):
        data = manifest_from_config(v3(torch_dtype=None) | {key: dtype}, "a")
        assert data["precision"] == {"use": precision} and data["hub"]["dtype"] == dtype


@pytest.mark.parametrize(("freq", "first", "dense"), [(1, 2, {0, 1}), (2, 1, {0, 1, 3, 5}), (3, 0, {1, 2, 4, 5})])
def test_experts_in_some_layers(freq: int, first: int, dense: set[int]) -> None:
    config = v3(moe_layer_freq=freq, first_k_dense_replace=first, num_hidden_layers=7)
    manifest = bestiary.resolve(manifest_from_config(config, "a"))
    assert {i for i, layer in enumerate(manifest.layers) if layer.ffn.use == "dense"} == dense
    assert (config_from_manifest(manifest).config is None) == (freq > 1)


REFUSED = [
    ({"attention_bias": True}, "attention_bias"),
    ({"attention_dropout": 0.1}, "attention_dropout"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"scoring_func": "softmax"}, "scoring_func"),
    ({"topk_method": "greedy"}, "topk_method"),
    ({"num_key_value_heads": 4}, "num_key_value_heads"),
    ({"moe_layer_freq": 0}, "moe_layer_freq"),
    ({"first_k_dense_replace": "three"}, "first_k_dense_replace"),
    ({"rope_scaling": {"type": "longrope"}}, "rope_scaling.rope_type"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "twist": 1}}, "rope_scaling.twist"),
    ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"torch_dtype": "float8"}, "dtype"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    ({"quantization_config": BLOCKS | {"activation_scheme": "static"}}, "quantization_config.activation_scheme"),
    ({"architectures": ["DeepseekV3ForSequenceClassification"]}, "architectures"),
]


@pytest.mark.parametrize(("changes", "key"), REFUSED, ids=[key for _, key in REFUSED])
def test_what_changes_the_function_is_refused(changes: dict[str, Any], key: str) -> None:
    assert f"folder/config.json: {key}: " in error_of(lambda: manifest_from_config(v3(**changes), "folder/config.json"))


def dense(model_type: str, **changes: Any) -> dict[str, Any]:
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 9, "max_position_embeddings": 9}
    return {"model_type": model_type, "intermediate_size": 8, **shape, **changes}


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (dense("mistral"), "sliding_window"),
        (dense("mistral", sliding_window=7), "sliding_window"),
        (dense("qwen2", use_sliding_window=True), "use_sliding_window"),
        (dense("qwen3", layer_types=["full_attention", "sliding_attention"]), "layer_types"),
        (dense("llama", mlp_bias=True), "mlp_bias"),
        (v3(model_type="deepseek_v2", scoring_func="softmax", topk_method="greedy", architectures=None), "norm_topk_prob"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["model_type"],
)
def test_what_other_families_refuse(config: dict[str, Any], key: str) -> None:
    assert f"c: {key}: " in error_of(lambda: manifest_from_config(config, "c"))


def test_unknown_model_type() -> None:
    message = error_of(lambda: manifest_from_config({"model_type": "deepseek_v33"}, "c"))
    assert "Did you mean 'deepseek_v3'?" in message
    assert "there is no model_type" in error_of(lambda: manifest_from_config({}, "c"))


INEXPRESSIBLE = [
    (V3, {"block.attention": {"use": "gqa", "head_dim": 8}}, "block.ffn"),
    (V3, {"block.attention.latent_norm_eps": 1e-5}, "latent_norm_eps"),
    (V3, {"block.ffn.n_shared_experts": 0}, "n_shared_experts"),
    (V3, {"objective.mtp.hidden": "pre-norm"}, "pre-norm"),
    (V3, {"model.hidden_size": 45, "block.ffn.router": {"use": "softmax-topk"}}, "objective.mtp"),
    (V3, {"objective.mtp": False, "block.ffn.router": {"use": "softmax-topk", "norm_topk_prob": True}}, "norm_topk_prob"),
    (V3, {'block.at."1".attention': {"use": "gqa", "head_dim": 8}}, "differs between layers"),
    (V3, {'block.at."2".ffn': {"use": "dense", "intermediate_size": 37}}, "follows a layer of experts"),
    (LLAMA, {"block.attention.qkv_bias": True, "block.attention.qk_norm": True}, "qk_norm"),
    (LLAMA, {"block.attention.rope_interleave": True}, "rope_interleave"),
]


@pytest.mark.parametrize(("manifest", "changes", "reason"), INEXPRESSIBLE, ids=[reason for *_, reason in INEXPRESSIBLE])
def test_what_no_config_can_say(manifest: dict[str, Any], changes: dict[str, Any], reason: str) -> None:
    expressed = config_from_manifest(bestiary.resolve(manifest, set=changes))
    assert expressed.config is None and reason in expressed.reason
