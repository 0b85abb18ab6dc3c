"""Decoding: what is drawn, when it stops, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bestiary.core.errors import BestiaryError
from bestiary.core.generate import stream
from bestiary.core.sampling import Sampling, draw, probabilities


@pytest.fixture(scope="module", params=["mla-moe", "gqa-dense"])
def model(request, tiny, build):
    return build(tiny(*request.param.split("-"), model={"max_position_embeddings": 40}))


@pytest.fixture
def prompt():
    torch.manual_seed(3)
    return torch.randint(31, (2, 5))


def test_greedy_decoding_takes_the_argmax_of_the_full_forward_pass_at_every_step(model, prompt):
    ids = prompt
    for _ in range(8):
        ids = torch.cat((ids, model(ids)[:, -1].argmax(dim=-1, keepdim=True)), dim=1)
    assert torch.equal(model.generate(prompt, max_new_tokens=8), ids)


def test_a_cache_in_chunks_gives_the_logits_of_the_full_pass(model):
    ids = torch.randint(31, (2, 12))
    full, cache, parts = model(ids), model.new_cache(2, 12), []
    with torch.no_grad():
        for chunk in ids.split([5, 1, 4, 1, 1], dim=1):
            parts.append(model(chunk, cache=cache))
    assert torch.allclose(torch.cat(parts, dim=1), full, atol=1e-10)
    assert cache.length == 12


def test_a_cropped_cache_goes_on_as_if_the_rest_had_never_been(model):
    ids = torch.randint(31, (2, 9))
    cache = model.new_cache(2, 12)
    with torch.no_grad():
        model(torch.cat((ids[:, :6], torch.randint(31, (2, 4))), dim=1), cache=cache)
        cache.crop(6)
        again = model(ids[:, 6:], cache=cache)
    assert torch.allclose(again, model(ids)[:, 6:], atol=1e-10)


def test_a_row_that_meets_its_end_repeats_it_and_all_ended_rows_stop_the_loop(model, prompt):
    free = model.generate(prompt, max_new_tokens=12)
    end = int(free[0, prompt.shape[1] + 2])
    seen = list(stream(model, prompt, max_new_tokens=12, sampling=Sampling(eos_token_id=end)))
    ended = model.generate(prompt, max_new_tokens=12, eos_token_id=end)
    for row, whole in zip(ended[:, 5:].tolist(), free[:, 5:].tolist(), strict=True):
        cut = whole.index(end) + 1 if end in whole else len(whole)
        assert row[:cut] == whole[:cut][: len(row)]
        assert set(row[cut:]) <= {end}
    lengths = [row.index(end) + 1 if end in row else 12 for row in free[:, 5:].tolist()]
    assert len(seen) == ended.shape[1] - 5 == max(lengths)
    assert torch.equal(torch.stack(seen, dim=1), ended[:, 5:])


def test_the_manifests_end_token_stops_by_default(tiny, build, prompt):
    free = build(tiny()).generate(prompt[:1], max_new_tokens=6)
    end = int(free[0, 5])
    model = build(tiny(model={"eos_token_id": [30, end]}))
    assert model.generate(prompt[:1], max_new_tokens=6).tolist() == free[:, :6].tolist()
    assert model.generate(prompt[:1], max_new_tokens=6, eos_token_id=-1).tolist() == free.tolist()


def test_a_seed_repeats_a_draw_and_another_does_not(model, prompt):
    options = {"max_new_tokens": 20, "temperature": 3.0}
    first = model.generate(prompt, seed=1, **options)
    torch.manual_seed(99)
    assert torch.equal(model.generate(prompt, seed=1, **options), first)
    assert not torch.equal(model.generate(prompt, seed=2, **options), first)


def test_generating_leaves_the_mode_as_it_was_and_counts_no_load(tiny, build, prompt):
    model = build(tiny())
    assert model.training
    assert not model.generate(prompt, max_new_tokens=2).requires_grad
    assert model.training
    assert not model.after_step(lambda t: t)


def exact(logits, temperature, top_k, top_p):
    """The distribution, one token at a time."""
    weights = (logits / temperature).softmax(dim=-1).tolist()
    order = sorted(range(len(weights)), key=lambda token: -weights[token])[:top_k]
    total, kept, mass = sum(weights[token] for token in order), [], 0.0
    for token in order:
        if mass < top_p:
            kept.append(token)
        mass += weights[token] / total
    kept_total = sum(weights[token] for token in kept)
    return [weights[token] / kept_total if token in kept else 0.0 for token in range(len(weights))]


@given(st.integers(0, 10**6), st.floats(0.3, 3.0), st.none() | st.integers(1, 12), st.floats(0.05, 1.0))
def test_temperature_top_k_and_top_p_leave_the_exact_distribution(seed, temperature, top_k, top_p):
    logits = torch.randn(1, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ours = probabilities(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))[0].tolist()
    assert ours == pytest.approx(exact(logits[0], temperature, top_k, top_p), abs=1e-5)


def test_draws_have_the_frequencies_of_the_distribution():
    sampling = Sampling(temperature=1.0, top_k=3, seed=0)
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 1.5]])
    tokens = draw(logits.expand(20_000, -1), sampling, torch.Generator().manual_seed(0))
    frequency = torch.bincount(tokens, minlength=5) / 20_000
    assert torch.allclose(frequency, probabilities(logits, sampling)[0], atol=0.015)
    assert frequency[[2, 3]].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0 is negative. Use 0 for greedy decoding"),
        ({"top_p": 0.0}, r"top_p 0.0 is not in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p 1.5 is not in \(0, 1\]"),
        ({"top_k": 0}, "top_k 0 is less than 1"),
        ({"max_new_tokens": 36}, "5 prompt tokens and 36 new ones exceed the model's 40 positions. Ask for at most 35 new tokens."),
        ({"max_new_tokens": -1}, "max_new_tokens -1 is negative"),
    ],
)
def test_impossible_requests_are_refused_before_any_work(model, prompt, options, message):
    with pytest.raises(BestiaryError, match=message):
        model.generate(prompt, **{"max_new_tokens": 2} | options)


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(BestiaryError, match=r"The prompt is empty\. Give at least one token"):
        model.generate(torch.zeros(1, 0, dtype=torch.int64), max_new_tokens=1)


def test_no_new_tokens_are_the_prompt(model, prompt):
    assert torch.equal(model.generate(prompt, max_new_tokens=0), prompt)
