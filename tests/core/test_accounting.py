"""Counts are exact, FLOPs follow the published figures, memory is what autograd and caches really hold."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import bestiary
from bestiary.core.accounting import account, add, layer_cost, layer_costs
from bestiary.core.contracts import Batch

COUNTS = {
    "deepseek-v3": (671_026_419_200, 36_625_618_432),
    "deepseek-r1": (671_026_419_200, 36_625_618_432),
    "deepseek-v3.1": (671_026_419_200, 36_625_618_432),
    "deepseek-v2": (235_741_434_880, 20_851_512_320),
    "deepseek-v2-lite": (15_706_484_224, 2_451_435_008),
    "moonlight-16b-a3b": (15_960_110_208, 2_579_231_872),
    "kimi-k2": (1_026_408_232_448, 31_687_095_808),
    "llama-3.1-8b": (8_030_261_248, 7_504_924_672),
    "llama-3.1-405b": (405_853_388_800, 403_752_042_496),
    "qwen2.5-7b": (7_615_616_512, 7_070_619_136),
    "deepseek-v3-mini": (108_130_016, 26_865_376),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_the_published_ones(name):
    figures = account(bestiary.resolve(name))
    assert (figures.parameters, figures.active_parameters) == COUNTS[name]


def test_mtp_adds_its_block_projection_and_norms_but_no_second_embedding():
    assert account(bestiary.resolve("deepseek-v3")).objective_parameters == 11_610_068_224


@pytest.mark.parametrize("name", ["deepseek-v3-nano", "deepseek-v3-mini", "qwen3-8b", "deepseek-v2-lite"])
def test_counts_equal_the_parameters_that_are_built(name):
    model = bestiary.create_model(name, device="meta")
    figures = account(model.manifest)
    built = sum(tensor.numel() for tensor in model.state_dict().values())
    assert built == figures.parameters + figures.objective_parameters


@pytest.mark.parametrize(
    ("length", "field", "gigaflops"),
    [
        (4096, "flops_training_main", 250.46),
        (4096, "flops_training", 260.65),
        (4096, "flops_forward_noncausal", 281.16 / 3),
        (32768, "flops_training_main", 219.75 + 245.62),
        (131072, "flops_training_main", 1202.23),
        (131072, "flops_forward_noncausal", 2184.71 / 3),
    ],
)
def test_deepseek_v3_flops_per_token(length, field, gigaflops):
    assert getattr(account(bestiary.resolve("deepseek-v3"), sequence_length=length), field) / 1e9 == pytest.approx(gigaflops, abs=0.005)


def test_deepseek_v3_flops_are_six_for_each_matrix_element_and_causal_attention():
    """The public pairs: 219.75 + 30.70 GFLOP at 4K, and 982.5 of attention at 128K."""
    short, long = (account(bestiary.resolve("deepseek-v3"), sequence_length=n) for n in (4096, 131072))
    attention = (long.flops_training_main - short.flops_training_main) * 4096 / (131072 - 4096)
    assert attention / 1e9 == pytest.approx(30.70, abs=0.005)
    assert (short.flops_training_main - attention) / 1e9 == pytest.approx(219.75, abs=0.005)
    assert 6 * (short.active_parameters - 58 * 256) == pytest.approx(219.75e9, rel=1e-4)
    assert attention * 32 / 1e9 == pytest.approx(982.5, abs=0.05)


def test_the_costs_of_all_layers_add_up():
    manifest = bestiary.resolve("deepseek-v3")
    costs = layer_costs(manifest)
    assert len(costs) == 61 and add(costs) == layer_cost(manifest)
    assert costs[0].saved_elements != costs[3].saved_elements and costs[3] == costs[60]


def test_a_latent_cache_takes_576_numbers_a_layer_and_an_expanded_one_what_its_heads_take():
    assert account(bestiary.resolve("deepseek-v3")).cache_bytes_per_token == 61 * 576 * 2 == 70_272
    assert account(bestiary.resolve("llama-3.1-405b")).cache_bytes_per_token == 126 * 2 * 8 * 128 * 2


@pytest.mark.parametrize("attention", ["mla", "gqa"])
def test_cache_bytes_are_what_a_cache_holds(attention):
    model = bestiary.create_model("deepseek-v3-nano", set={"block.attention.use": attention} if attention == "gqa" else {})
    assert model.new_cache(3, 7).nbytes == 3 * 7 * account(model.manifest).cache_bytes_per_token


def test_a_tied_head_is_active_without_parameters_of_its_own():
    tied, untied = (account(bestiary.resolve("qwen3-8b", set={"model.tie_word_embeddings": tied})) for tied in (True, False))
    assert untied.parameters - tied.parameters == 151936 * 4096
    assert untied.active_parameters == tied.active_parameters
    assert untied.flops_forward == tied.flops_forward


SMALL = {"model.num_hidden_layers": 3, "model.vocab_size": 512}
GQA = {"block.attention.use": "gqa", "block.attention.num_key_value_heads": 2, "precision.use": "fp32"}
DENSE = {"block.ffn.use": "dense", "block.ffn.intermediate_size": 640}


@pytest.mark.parametrize("changes", [GQA, GQA | DENSE, {}, {"objective.mtp.use": "mtp"}], ids=["gqa", "dense", "mla", "mtp"])
def test_activations_are_what_autograd_keeps(changes):
    batch, length = 8, 256
    model = bestiary.create_model("deepseek-v3-mini", set=SMALL | changes)
    ids = torch.randint(512, (batch, length + 1))
    kept = _kept(model, Batch(ids[:, :-1], ids[:, 1:]))
    expected = account(model.manifest, sequence_length=length).training.activations * batch
    if changes.get("precision.use") != "fp32":  # blocked attention in bf16 keeps its probabilities
        blocks = len(model.manifest.layers) + ("mtp" in model.manifest.objectives)
        expected += 2 * batch * 8 * blocks * length * (length + 128) // 2
    assert kept == pytest.approx(expected, rel=0.08)


def _kept(model, batch):
    """Bytes that a forward pass keeps for the backward pass, parameters and their copies left out."""
    shapes = {tuple(p.shape) for p in model.parameters() if p.ndim > 1}
    shapes |= {shape[::-1] for shape in shapes} | {shape[:1] + shape[:0:-1] for shape in shapes if len(shape) == 3}
    storages = {}

    def pack(tensor):
        if tuple(tensor.shape) not in shapes and not isinstance(tensor, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.loss(batch, model.counts(batch))
    kept = sum(tensor.untyped_storage().nbytes() for tensor in storages.values())
    assert loss.total.requires_grad
    return kept


def test_671_billion_parameters_are_counted_without_torch():
    code = (
        "import sys, bestiary; from bestiary.core.accounting import account;"
        "print(account(bestiary.resolve('deepseek-v3')).parameters, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["671026419200", "False"]


def test_longer_sequences_cost_attention_only():
    short, long = (account(bestiary.resolve("deepseek-v3"), sequence_length=n) for n in (1024, 2048))
    assert long.flops_forward - short.flops_forward == 1024 * 61 * 128 * (192 + 128)
    assert short.parameters == long.parameters
