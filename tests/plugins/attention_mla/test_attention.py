"""Multi-head latent attention: both forms against one plain float64 computation and against each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bestiary
from bestiary.core.contracts import Context
from bestiary.core.layers.rope import frequencies, softmax_multiplier
from bestiary.plugins.attention_mla import attention

YARN = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "mscale": 0.7, "mscale_all_dim": 0.7}
SIZES = st.fixed_dictionaries(
    {
        "q_lora_rank": st.none() | st.integers(1, 9),
        "kv_lora_rank": st.integers(1, 9),
        "qk_nope_head_dim": st.integers(1, 7),
        "qk_rope_head_dim": st.integers(1, 4).map(lambda half: 2 * half),
        "v_head_dim": st.integers(1, 7),
        "rope": st.sampled_from([{}, {"theta": 50.0}, {"scaling": YARN}]),
        "rope_interleave": st.booleans(),
    }
)


def norm(x, gain, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain


def turn(x, angle, interleaved):
    """`[S, d]` as complex pairs, turned by `[S, d / 2]`."""
    half = x.shape[-1] // 2
    order = torch.arange(2 * half).view(half, 2) if interleaved else torch.arange(2 * half).view(2, half).T
    pairs = torch.complex(x[:, order[:, 0]], x[:, order[:, 1]]) * torch.complex(angle.cos().double(), angle.sin().double())
    out = torch.empty_like(x)
    out[:, order[:, 0]], out[:, order[:, 1]] = pairs.real, pairs.imag
    return out


def reference(module, x):
    """Equations 1 to 11 of DeepSeek-V3's report for one sequence `[S, D]`, one head and one query at a time."""
    o, w = module.options, {name: p for name, p in module.named_parameters()}
    nope, rope, value, length = o.qk_nope_head_dim, o.qk_rope_head_dim, o.v_head_dim, x.shape[0]
    angle = torch.arange(length).float()[:, None] * torch.tensor(frequencies(o.rope, rope), dtype=torch.float32)
    if o.q_lora_rank is None:
        q = x @ w["q_proj.weight"].T
    else:
        q = norm(x @ w["q_a_proj.weight"].T, w["q_a_layernorm.weight"], o.latent_norm_eps) @ w["q_b_proj.weight"].T
    down = x @ w["kv_a_proj_with_mqa.weight"].T
    latent = norm(down[:, : o.kv_lora_rank], w["kv_a_layernorm.weight"], o.latent_norm_eps)
    shared_key = turn(down[:, o.kv_lora_rank :], angle, o.rope_interleave)
    up = latent @ w["kv_b_proj.weight"].T
    scale = (nope + rope) ** -0.5 * softmax_multiplier(o.rope)
    outs = []
    for h in range(module.heads):
        query = q[:, h * (nope + rope) : (h + 1) * (nope + rope)]
        query = torch.cat((query[:, :nope], turn(query[:, nope:], angle, o.rope_interleave)), dim=1)
        own = up[:, h * (nope + value) : (h + 1) * (nope + value)]
        key = torch.cat((own[:, :nope], shared_key), dim=1)
        rows = [(key[: i + 1] @ query[i] * scale).softmax(0) @ own[: i + 1, nope:] for i in range(length)]
        outs.append(torch.stack(rows))
    return torch.cat(outs, dim=1) @ w["o_proj.weight"].T


def module_of(build, tiny, options, **sections):
    return build(tiny({"use": "mla"} | options, "dense", layers=1, **sections)).model.layers[0].self_attn


def expanded(module, x):
    return module(x, Context(torch.arange(x.shape[1])[None]))


def decoded(module, x, chunks):
    """The same through a cache: the first chunk expanded, the others absorbed."""
    cache = module.new_cache(x.shape[0], x.shape[1], device=x.device, dtype=x.dtype)
    parts = []
    with torch.no_grad():
        for chunk in x.split(chunks, dim=1):
            past = cache.length
            positions = torch.arange(past, past + chunk.shape[1])[None]
            parts.append(module(chunk, Context(positions, caches=[cache])))
    return torch.cat(parts, dim=1)


@settings(max_examples=40)
@given(SIZES)
def test_both_forms_equal_the_definition(tiny, build, options):
    module = module_of(build, tiny, options)
    x = torch.randn(2, 7, 14, dtype=torch.float64)
    exact = torch.stack([reference(module, row) for row in x])
    assert torch.allclose(expanded(module, x), exact, atol=1e-10)
    assert torch.allclose(decoded(module, x, [2, 1, 3, 1]), exact, atol=1e-10)


@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 5], [1, 8]])
def test_any_cut_into_chunks_gives_the_same(tiny, build, chunks):
    module = module_of(build, tiny, {"kv_lora_rank": 6, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 7})
    x = torch.randn(3, 9, 14, dtype=torch.float64)
    assert torch.allclose(decoded(module, x, chunks), expanded(module, x), atol=1e-10)


def test_a_long_chunk_on_a_cache_is_expanded_and_gives_the_same(tiny, build, monkeypatch):
    module = module_of(build, tiny, {"kv_lora_rank": 6, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 7})
    x = torch.randn(2, 9, 14, dtype=torch.float64)
    absorbed = decoded(module, x, [4, 5])
    monkeypatch.setattr(attention, "ABSORBED_QUERIES", 4)
    monkeypatch.setattr(module, "_absorbed", None)
    assert torch.allclose(decoded(module, x, [4, 5]), absorbed, atol=1e-10)


def test_the_cache_keeps_the_normed_latent_and_the_turned_key_and_nothing_else(tiny, build):
    module = module_of(build, tiny, {"kv_lora_rank": 6, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 7})
    cache = module.new_cache(2, 3, device=torch.device("cpu"), dtype=torch.float64)
    assert cache.nbytes == 2 * 3 * (6 + 4) * 8
    x = torch.randn(2, 3, 14, dtype=torch.float64)
    with torch.no_grad():
        module(x, Context(torch.arange(3)[None], caches=[cache]))
    latent = cache.buffers["latent"][..., :6] / module.kv_a_layernorm.weight
    assert torch.allclose(latent.square().mean(-1), torch.ones(2, 3, dtype=torch.float64), atol=1e-4)


def test_deepseek_v3_caches_576_numbers_a_layer():
    model = bestiary.create_model("deepseek-v3", set=["model.num_hidden_layers=4"], device="meta")
    caches = [block.self_attn.new_cache(1, 10, device=torch.device("meta"), dtype=torch.bfloat16) for block in model.model.layers]
    assert sum(cache.nbytes for cache in caches) == 4 * 10 * 576 * 2


def test_a_cropped_cache_goes_on_as_if_the_rest_had_never_been(tiny, build):
    module = module_of(build, tiny, {"kv_lora_rank": 6, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 7})
    x, other = torch.randn(2, 1, 8, 14, dtype=torch.float64)
    cache = module.new_cache(1, 8, device=x.device, dtype=x.dtype)

    def go_on(rows):
        return module(rows, Context(torch.arange(cache.length, cache.length + rows.shape[1])[None], caches=[cache]))

    with torch.no_grad():
        go_on(x[:, :3])
        go_on(other[:, 3:7])
        cache.crop(3)
        again = go_on(x[:, 3:])
    assert torch.allclose(again, expanded(module, x)[:, 3:], atol=1e-10)


def test_gradients_reach_every_parameter(tiny, build):
    module = module_of(build, tiny, {"q_lora_rank": 5, "kv_lora_rank": 6, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 7})
    x = torch.randn(1, 6, 14, dtype=torch.float64)
    expanded(module, x).square().sum().backward()
    ours = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    reference(module, x[0]).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, atol=1e-9), name
