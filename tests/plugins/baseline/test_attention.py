"""Grouped-query attention against a plain float64 computation, and against transformers' Llama and Qwen3."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from bestiary.core.contracts import Context
from bestiary.core.layers.rope import frequencies


def heads(projection, x, width):
    y = x @ projection.weight.T + (0 if projection.bias is None else projection.bias)
    return y.unflatten(-1, (-1, width))


def norm(x, gain, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain


def turn(x, angle, interleaved):
    """Every pair of `[S, H, d]` as a complex number times e^(i angle)."""
    half = x.shape[-1] // 2
    order = torch.arange(2 * half).view(half, 2) if interleaved else torch.arange(2 * half).view(2, half).T
    pairs = torch.complex(x[..., order[:, 0]], x[..., order[:, 1]]) * torch.complex(angle.cos().double(), angle.sin().double())[:, None]
    out = torch.empty_like(x)
    out[..., order[:, 0]], out[..., order[:, 1]] = pairs.real, pairs.imag
    return out


def reference(module, x, eps=1e-6):
    """Head by head and query by query."""
    options, width, length = module.options, module.width, x.shape[1]
    angle = torch.arange(length).float()[:, None] * torch.tensor(frequencies(options.rope, width), dtype=torch.float32)
    rows = []
    for row in x:
        q, k, v = (heads(p, row, width) for p in (module.q_proj, module.k_proj, module.v_proj))
        if options.qk_norm:
            q, k = norm(q, module.q_norm.weight, eps), norm(k, module.k_norm.weight, eps)
        q, k = (turn(t, angle, options.rope_interleave) for t in (q, k))
        out = torch.zeros(length, module.heads, width, dtype=x.dtype)
        for h in range(module.heads):
            g = h * module.kv_heads // module.heads
            for i in range(length):
                score = (k[: i + 1, g] @ q[i, h]) / width**0.5
                out[i, h] = score.softmax(0) @ v[: i + 1, g]
        rows.append(out.flatten(1) @ module.o_proj.weight.T + (0 if module.o_proj.bias is None else module.o_proj.bias))
    return torch.stack(rows)


OPTIONS = [
    {"num_key_value_heads": 1},
    {"num_key_value_heads": 2, "qkv_bias": True},
    {"num_key_value_heads": 4, "o_bias": True},
    {},
    {"num_key_value_heads": 2, "qk_norm": True, "rope_interleave": True},
    {"num_key_value_heads": 2, "qk_norm": True, "rope": {"theta": 100.0, "scaling": {"type": "linear", "factor": 3.0}}},
]


def model_of(build, tiny, options, **sizes):
    return build(tiny({"use": "gqa", "head_dim": 6} | options, "dense", model={"num_attention_heads": 4} | sizes))


@pytest.mark.parametrize("options", OPTIONS)
def test_attention_equals_its_definition(tiny, build, options):
    module = model_of(build, tiny, options).model.layers[1].self_attn
    x = torch.randn(2, 7, 14, dtype=torch.float64)
    ours = module(x, Context(torch.arange(7)[None]))
    assert torch.allclose(ours, reference(module, x), atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS)
def test_decoding_through_the_cache_equals_the_full_pass(tiny, build, options):
    model = model_of(build, tiny, options)
    ids = torch.randint(31, (2, 10))
    cache, parts = model.new_cache(2, 10), []
    with torch.no_grad():
        for chunk in ids.split([3, 1, 4, 2], dim=1):
            parts.append(model(chunk, cache=cache))
    assert torch.allclose(torch.cat(parts, dim=1), model(ids), atol=1e-10)


def test_the_cache_holds_keys_and_values_of_the_shared_heads_only(tiny, build):
    model = model_of(build, tiny, {"num_key_value_heads": 2})
    assert model.new_cache(3, 5).nbytes == 2 * 3 * 5 * (2 * 2 * 6) * 8


def test_the_default_head_is_a_share_of_the_hidden_size(tiny, build):
    module = build(tiny({"use": "gqa"}, "dense", model={"num_attention_heads": 7})).model.layers[0].self_attn
    assert (module.heads, module.kv_heads, module.width) == (7, 7, 2)


SIZES = {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 31, "head_dim": 6, "intermediate_size": 13}


@pytest.mark.parametrize(
    ("options", "config", "kind"),
    [
        ({"num_key_value_heads": 2}, LlamaConfig(**SIZES, num_key_value_heads=2, rms_norm_eps=1e-6), LlamaForCausalLM),
        ({"num_key_value_heads": 1, "qk_norm": True}, Qwen3Config(**SIZES, num_key_value_heads=1, rms_norm_eps=1e-6), Qwen3ForCausalLM),
    ],
)
def test_a_whole_model_gives_the_logits_of_transformers_on_the_same_weights(tiny, build, options, config, kind):
    ours = model_of(build, tiny, options, hidden_size=20).float()
    ours.model.compute_dtype = torch.float32
    theirs = kind(config)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ids = torch.randint(31, (2, 9))
    with torch.no_grad():
        assert torch.allclose(ours(ids), theirs(ids).logits, atol=2e-5)
