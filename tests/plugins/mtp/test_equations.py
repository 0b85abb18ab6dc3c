"""The whole model and its MTP depths against a plain float64 implementation that shares nothing with ours but the weights.

Attention runs by head and query, experts by token; nothing is batched that the equations do not batch.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional as F

from bestiary.core.contracts import IGNORE, Batch

EPS = 1e-6


def rms(x, gain):
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * gain


def rope(x, positions, *, interleaved=True, theta=10000.0):
    """Turns the pairs of `[S, d]`; angles are fp32, as the model's are by design."""
    d = x.shape[-1]
    angle = positions[:, None].float() * torch.tensor([theta ** (-2 * i / d) for i in range(d // 2)], dtype=torch.float32)
    cos, sin = angle.cos().double(), angle.sin().double()
    out = torch.empty_like(x)
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, d // 2 + i) for i in range(d // 2)]
    for i, (a, b) in enumerate(pairs):
        out[:, a] = x[:, a] * cos[:, i] - x[:, b] * sin[:, i]
        out[:, b] = x[:, a] * sin[:, i] + x[:, b] * cos[:, i]
    return out


def look(q, k, v, segments):
    """One head: `[S, d]` each, every query on the keys before it in its document."""
    rows = []
    for i in range(len(q)):
        seen = [j for j in range(i + 1) if segments[j] == segments[i]]
        rows.append(((k[seen] @ q[i]) * q.shape[-1] ** -0.5).softmax(0) @ v[seen])
    return torch.stack(rows)


def mla(x, w, o, heads, positions, segments):
    nope, turned, value, latent = o.qk_nope_head_dim, o.qk_rope_head_dim, o.v_head_dim, o.kv_lora_rank
    if o.q_lora_rank is None:
        q = x @ w["q_proj.weight"].T
    else:
        q = rms(x @ w["q_a_proj.weight"].T, w["q_a_layernorm.weight"]) @ w["q_b_proj.weight"].T
    c, k_pe = (x @ w["kv_a_proj_with_mqa.weight"].T).split([latent, turned], dim=-1)
    k_pe, kv = rope(k_pe, positions), rms(c, w["kv_a_layernorm.weight"]) @ w["kv_b_proj.weight"].T
    out = []
    for h in range(heads):
        mine, both = (t[:, h * n : (h + 1) * n] for t, n in ((q, nope + turned), (kv, nope + value)))
        query = torch.cat((mine[:, :nope], rope(mine[:, nope:], positions)), dim=-1)
        out.append(look(query, torch.cat((both[:, :nope], k_pe), dim=-1), both[:, nope:], segments))
    return torch.cat(out, dim=-1) @ w["o_proj.weight"].T


def gqa(x, w, o, heads, positions, segments):
    n, share = o.head_dim, heads // o.num_key_value_heads
    q, k, v = (x @ w[f"{name}_proj.weight"].T for name in "qkv")
    out = []
    for h in range(heads):
        query, (key, val) = q[:, h * n : (h + 1) * n], (t[:, h // share * n : (h // share + 1) * n] for t in (k, v))
        turned = [rope(t, positions, interleaved=o.rope_interleave) for t in (query, key)]
        out.append(look(*turned, val, segments))
    return torch.cat(out, dim=-1) @ w["o_proj.weight"].T


def swiglu(x, gate, up, down):
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def dense(x, w, o):
    return swiglu(x, *(w[f"{name}_proj.weight"] for name in ("gate", "up", "down")))


def moe(x, w, o):
    """DeepSeek-V3, equations 12 to 16, by token; groups rank by their two best."""
    rule, size = o.router.options, o.n_routed_experts // o.router.options.n_group
    rows = []
    for token in x:
        score = (w["gate.weight"] @ token).sigmoid()
        choice = score.detach() + w["gate.e_score_correction_bias"]
        groups = [choice[g * size : (g + 1) * size].sort(descending=True).values[:2].sum() for g in range(rule.n_group)]
        kept = sorted(range(rule.n_group), key=lambda g: -groups[g])[: rule.topk_group]
        able = [e for g in kept for e in range(g * size, (g + 1) * size)]
        chosen = sorted(able, key=lambda e: -choice[e])[: o.num_experts_per_tok]
        total, y = sum(score[e] for e in chosen), dense(token, {k.removeprefix("shared_experts."): v for k, v in w.items()}, o)
        for e in chosen:
            gate, up = w["experts.gate_up_proj.weight"][e].chunk(2)
            y = y + score[e] / total * rule.routed_scaling_factor * swiglu(token, gate, up, w["experts.down_proj.weight"][e])
        rows.append(y)
    return torch.stack(rows)


def below(weights, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def block(x, w, layer, heads, positions, segments):
    attention, ffn = {"mla": mla, "gqa": gqa}[layer.attention.use], {"dense": dense, "moe": moe}[layer.ffn.use]
    normed = rms(x, w["input_layernorm.weight"])
    x = x + attention(normed, below(w, "self_attn."), layer.attention.options, heads, positions, segments)
    return x + ffn(rms(x, w["post_attention_layernorm.weight"]), below(w, "mlp."), layer.ffn.options)


def row_logits(manifest, w, ids, positions, segments):
    """Of one row `[S]`: the main model's `[S, V]`, then `[S - k, V]` of each depth."""
    options, heads = manifest.objectives["mtp"].options, manifest.model.num_attention_heads
    x = w["model.embed_tokens.weight"][ids]
    for i, layer in enumerate(manifest.layers):
        x = block(x, below(w, f"model.layers.{i}."), layer, heads, positions, segments)
    normed = rms(x, w["model.norm.weight"])
    found, state = [normed @ w["lm_head.weight"].T], normed if options.hidden == "post-norm" else x
    for k in range(1, options.depth + 1):
        mine, length = below(w, f"objectives.mtp.layers.{k - 1}."), max(len(ids) - k, 0)
        embedding = w["model.embed_tokens.weight"][ids[k:]]
        joined = torch.cat((rms(embedding, mine["enorm.weight"]), rms(state[:length], mine["hnorm.weight"])), dim=-1)
        below_it = joined @ mine["eh_proj.weight"].T
        x = block(below_it, below(mine, "block."), manifest.layers[-1], heads, positions[:length], segments[:length])
        normed = rms(x, mine["shared_head.norm.weight"])
        state = normed if options.hidden == "post-norm" else x
        found.append(normed @ w["lm_head.weight"].T)
    return found


def all_logits(model, ids, positions, segments):
    w = model.state_dict(keep_vars=True)
    rows = [row_logits(model.manifest, w, *row) for row in zip(ids, positions, segments, strict=True)]
    return [torch.stack(depth) for depth in zip(*rows, strict=True)]


def sizes(seed):
    """A small model with awkward dimensions, and how long its rows are."""
    pick, vocabulary = random.Random(seed), 11 + seed
    heads = pick.choice([2, 4])
    attention = {
        "mla": {"q_lora_rank": pick.choice([5, 9]), "kv_lora_rank": pick.randint(3, 9), "qk_nope_head_dim": pick.randint(1, 7)}
        | {"qk_rope_head_dim": 2 * pick.randint(1, 3), "v_head_dim": pick.randint(1, 7)},
        "gqa": {"num_key_value_heads": heads // 2, "head_dim": 2 * pick.randint(1, 4)},
    }
    router = {"use": "sigmoid-group", "n_group": 3, "topk_group": 2, "routed_scaling_factor": 1.7}
    ffn = {
        "dense": {"intermediate_size": pick.randint(3, 15)},
        "moe": {
            "n_routed_experts": 9,
            "n_shared_experts": 1,
            "num_experts_per_tok": 3,
            "intermediate_size": pick.randint(3, 9),
            "router": router,
        },
    }
    parts = pick.choice(["mla", "gqa"]), pick.choice(["moe", "moe", "dense"])
    model = {"hidden_size": pick.randint(7, 19), "num_attention_heads": heads, "vocab_size": vocabulary}
    mtp = {"use": "mtp", "depth": 1 + seed % 3, "hidden": pick.choice(["post-norm", "pre-norm"]), "weight": pick.random()}
    data = {
        "schema": 1,
        "model": model | {"num_hidden_layers": pick.randint(1, 3), "rms_norm_eps": EPS},
        "block": {"attention": {"use": parts[0], **attention[parts[0]]}, "ffn": {"use": parts[1], **ffn[parts[1]]}},
        "objective": {"next-token": {"use": "next-token"}, "mtp": mtp},
    }
    return data, pick.randint(3, 9)


SEEDS = range(9)


@pytest.mark.parametrize("seed", SEEDS)
def test_logits_of_every_depth(build, seed):
    data, length = sizes(seed)
    model = build(data, seed=seed)
    ids = torch.randint(data["model"]["vocab_size"], (2, length))
    plain = torch.arange(length).expand(2, -1)
    expected = all_logits(model, ids, plain, torch.zeros_like(plain))
    ours = [model(ids), *model.mtp_logits(ids)]
    assert [tuple(t.shape) for t in ours] == [(2, length - k, data["model"]["vocab_size"]) for k in range(len(ours))]
    assert len(ours) == data["objective"]["mtp"]["depth"] + 1
    for one, other in zip(ours, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_logits_of_packed_documents_at_given_positions(build, seed):
    data, length = sizes(seed)
    model = build(data, seed=seed)
    ids, ends = torch.randint(data["model"]["vocab_size"], (2, length)), torch.tensor([[1], [length - 1]])
    segments = (torch.arange(length) >= ends).long()
    positions = torch.where(segments.bool(), torch.arange(length) - ends, torch.arange(length) + 3)
    expected = all_logits(model, ids, positions, segments)[1:]
    for one, other in zip(model.mtp_logits(ids, positions=positions, segments=segments), expected, strict=True):
        assert torch.allclose(one, other, atol=1e-9, rtol=1e-9)


def losses(model, batch):
    """Cross-entropy by depth, each a mean over its own valid targets."""
    length = batch.input_ids.shape[1]
    positions = torch.arange(length).expand_as(batch.input_ids)
    segments = torch.zeros_like(batch.input_ids) if batch.segments is None else batch.segments
    found = []
    for k, logits in enumerate(all_logits(model, batch.input_ids, positions, segments)):
        nats = [
            -logits[b, i].log_softmax(0)[batch.targets[b, i + k]]
            for b in range(len(logits))
            for i in range(length - k)
            if batch.targets[b, i + k] != IGNORE and segments[b, i] == segments[b, i + k]
        ]
        found.append(torch.stack(nats).mean() if nats else torch.zeros(()))
    return found


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_loss_and_gradients(build, packed, seed, documents):
    data, length = sizes(seed)
    model = build(data, seed=seed)
    batch: Batch = packed(2, length + 1, data["model"]["vocab_size"], segments=documents, ignored=documents, seed=seed)
    ours, (main, *depths) = model.loss(batch, model.counts(batch)), losses(model, batch)
    total = main + data["objective"]["mtp"]["weight"] * torch.stack(depths).mean()
    assert ours.total.item() == pytest.approx(total.item(), abs=1e-10)
    for k, depth in enumerate(depths, start=1):
        assert ours.parts[f"mtp-{k}"].item() == pytest.approx(depth.item(), abs=1e-10)
    named = dict(model.named_parameters())
    pairs = (torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True) for loss in (ours.total, total))
    for name, one, other in zip(named, *pairs, strict=True):
        assert torch.allclose(one, other, atol=1e-9), name


@pytest.mark.parametrize("length", [5, 6, 9])
def test_depth_k_has_k_targets_fewer(build, packed, length):
    data, _ = sizes(2)
    model = build(data)
    assert model.counts(packed(2, length, 11))["mtp"].tolist() == [2 * (length - k) for k in (1, 2, 3)]
