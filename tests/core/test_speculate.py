"""Speculative decoding: the tokens and the distribution of plain decoding, whatever is drafted."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.core import speculate
from bestiary.core.errors import BestiaryError
from bestiary.core.generate import stream
from bestiary.core.sampling import Sampling, probabilities
from bestiary.core.speculate import Acceptance, Speculation, judge

FEW = 6
"""Tokens of the vocabulary: few, so that untrained drafters are right now and then."""


@pytest.fixture(scope="module")
def make(tiny, build):
    """A fresh fp32 model with MTP; small vocabulary."""

    def model(attention="mla", ffn="moe", *, vocabulary=FEW, seed=0, layers=2, **mtp):
        objective = {"next-token": {"use": "next-token"}, "mtp": {"use": "mtp"} | mtp}
        sizes = {"vocab_size": vocabulary, "max_position_embeddings": 64}
        return build(tiny(attention, ffn, layers=layers, model=sizes, objective=objective), dtype=torch.float32, seed=seed)

    return model


@settings(max_examples=60)
@given(
    attention=st.sampled_from(["mla", "gqa"]),
    ffn=st.sampled_from(["moe", "dense"]),
    depth=st.integers(1, 3),
    hidden=st.sampled_from(["post-norm", "pre-norm"]),
    batch=st.integers(1, 3),
    draft_tokens=st.integers(1, 4),
    length=st.integers(1, 6),
    new=st.integers(0, 17),
    end=st.none() | st.integers(0, FEW - 1),
    seed=st.integers(0, 10**6),
)
def test_greedy_tokens_are_those_of_plain_decoding(make, attention, ffn, depth, hidden, batch, draft_tokens, length, new, end, seed):
    model = make(attention, ffn, depth=depth, hidden=hidden, seed=seed)
    prompt = torch.randint(FEW, (batch, length), generator=torch.Generator().manual_seed(seed))
    options = {"max_new_tokens": new, "eos_token_id": -1 if end is None else end}
    ours = model.generate(prompt, speculative="mtp", draft_tokens=draft_tokens, **options)
    assert torch.equal(ours, model.generate(prompt, **options))


class Oracle:
    """Drafts the right tokens up to a mistake in each row, and checks the model's states against a pass without a cache."""

    def __init__(self, model, right, count, pick):
        self.model, self.right, self.count, self.pick = model, right, count, pick
        self.tokens = right[:, :0]
        self.mistakes = []

    def draft(self, hidden, following, choose):
        first = self.right[:, :1] if not self.tokens.shape[1] else self.tokens[:, :0]
        self.tokens = torch.cat((self.tokens, first, following), dim=1)
        fresh, size = self.model.hidden(self.tokens[:, :-1]), following.shape[1]
        for one, other in ((hidden.raw, fresh.raw), (hidden.normed, fresh.normed)):
            assert torch.allclose(one, other[:, -size:], atol=1e-5)
        assert torch.equal(self.tokens, self.right[:, : self.tokens.shape[1]])
        guesses = self.right[:, self.tokens.shape[1] :][:, : self.count].clone()
        guesses = torch.nn.functional.pad(guesses, (0, self.count - guesses.shape[1]))
        self.mistakes.append([self.pick.randint(0, self.count) for _ in guesses])
        for row, mistake in zip(guesses, self.mistakes[-1], strict=True):
            row[mistake : mistake + 1] = (row[mistake : mistake + 1] + 1) % FEW
        return guesses


@pytest.fixture
def oracle(make, monkeypatch):
    """Decodes with an oracle; returns what it drafted for, the right tokens, and the acceptance."""

    def run(parts, batch, count, seed, end=-1, new=24):
        model, used = make(*parts.split("-"), seed=seed), []
        prompt = torch.randint(FEW, (batch, 4), generator=torch.Generator().manual_seed(seed))
        right = model.generate(prompt, max_new_tokens=new, eos_token_id=end)

        def drafter(model, batch, length, draft_tokens):
            used.append(Oracle(model, right, draft_tokens, random.Random(seed)))
            return used[-1]

        monkeypatch.setattr(model.goals["next-token"], "drafter", drafter, raising=False)
        acceptance = Acceptance()
        how = {"speculative": "next-token", "draft_tokens": count, "acceptance": acceptance}
        ours = model.generate(prompt, max_new_tokens=new, eos_token_id=end, **how)
        assert torch.equal(ours, right)
        return used[0], acceptance

    return run


@pytest.mark.parametrize("parts", ["mla-moe", "gqa-dense"])
@pytest.mark.parametrize(("batch", "count"), [(1, 1), (1, 4), (3, 2)])
@pytest.mark.parametrize("seed", range(4))
def test_rewound_caches_give_the_states_of_a_fresh_prefill(oracle, parts, batch, count, seed):
    drafter, acceptance = oracle(parts, batch, count, seed)
    assert len(drafter.mistakes) == acceptance.passes > 24 / (count + 1) - 2


def test_acceptance_counts_what_was_right_in_each_row(oracle):
    drafter, acceptance = oracle("gqa-dense", 3, 2, 5)
    *whole, _ = drafter.mistakes  # the last draft was cut by `max_new_tokens`, or not even made
    accepted = [sum(mistake > place for row in whole for mistake in row) for place in range(2)]
    assert 0 <= acceptance.accepted[0] - accepted[0] <= 3
    assert 0 <= acceptance.accepted[1] - accepted[1] <= 3
    assert acceptance.rates == pytest.approx([a / b for a, b in zip(acceptance.accepted, acceptance.drafted, strict=True)])
    assert acceptance.tokens_per_pass == acceptance.tokens / acceptance.passes
    tokens = sum(min(row) + 1 for row in whole)
    assert 0 <= acceptance.tokens - tokens <= 3


def test_a_drafter_that_is_always_right_gives_all_tokens_of_every_pass(make, monkeypatch):
    model, prompt, pick = make(), torch.randint(FEW, (2, 4)), random.Random(0)
    right = model.generate(prompt, max_new_tokens=16, eos_token_id=-1)
    monkeypatch.setattr(pick, "randint", lambda least, most: most)
    monkeypatch.setattr(model.goals["mtp"], "drafter", lambda model, batch, length, k: Oracle(model, right, k, pick))
    acceptance = Acceptance()
    model.generate(prompt, max_new_tokens=16, eos_token_id=-1, speculative="mtp", draft_tokens=4, acceptance=acceptance)
    assert (acceptance.passes, acceptance.tokens) == (3, 15)  # and one token from the prompt's pass
    assert acceptance.drafted == acceptance.accepted == [6, 6, 6, 6]
    assert acceptance.rates == [1.0] * 4 and acceptance.tokens_per_pass == 5
    assert str(acceptance).startswith("5.00 tokens per pass of the model in 3 passes; drafted tokens accepted: 100.0%")


def test_rows_that_ended_neither_hold_back_the_others_nor_count(make, monkeypatch):
    """Row 0 ends within a draft; then it is drafted wrongly for ever."""
    model = make()
    right = torch.tensor([[1, 2, 3, 4, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]])

    class Wrong:
        def draft(self, hidden, following, choose):
            self.at = getattr(self, "at", 0) + following.shape[1]
            guesses = right[:, self.at + 1 : self.at + 4].clone()
            if self.at > 4:
                guesses[0] = 5
            return torch.nn.functional.pad(guesses, (0, 3 - guesses.shape[1]))

    def certain(hidden):  # a model whose most likely next token is the right one
        at = hidden.context.positions[0] + 1
        return torch.nn.functional.one_hot(right[:, at.clamp(max=9)], FEW).float()

    def hidden(ids, **how):
        passes.append(type(model).hidden(model, ids, **how))
        return passes[-1]

    passes = []
    monkeypatch.setattr(model.goals["mtp"], "drafter", lambda *how: Wrong())
    monkeypatch.setattr(model, "hidden", hidden)
    monkeypatch.setattr(model, "logits", lambda normed: certain(passes[-1]) if normed.ndim == 3 else certain(passes[-1])[:, -1])
    acceptance = Acceptance()
    ours = model.generate(right[:, :2], max_new_tokens=8, eos_token_id=0, speculative="mtp", draft_tokens=3, acceptance=acceptance)
    assert torch.equal(ours, right)
    assert acceptance.drafted == acceptance.accepted
    assert (acceptance.passes, acceptance.tokens) == (2, 7)


# Sampling


def fresh_distributions(seed, vocabulary, count, *, narrow):
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(1, n, vocabulary, generator=generator).mul(1.5).softmax(dim=-1) for n in (count + 1, count))
    if narrow:  # as top-k leaves them: some tokens are possible in one only
        p[..., 0], q[..., 1] = 0, 0
        p, q = (t / t.sum(dim=-1, keepdim=True) for t in (p, q))
    return p, torch.cat((q, torch.zeros(1, 1, vocabulary)), dim=1)


def chi_square(counts, expected):
    assert not counts[expected == 0].any()
    possible = expected > 0
    return ((counts - expected)[possible] ** 2 / expected[possible]).sum().item()


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_judged_position_has_the_models_distribution(seed, narrow):
    """Chi-square with 6 or 5 degrees of freedom: 40 has a probability below 1e-6."""
    rows, (p, q) = 100_000, fresh_distributions(seed, 7, 2, narrow=narrow)
    generator = torch.Generator().manual_seed(seed)
    drafts = torch.stack([torch.multinomial(q[0, j], rows, replacement=True, generator=generator) for j in range(2)], dim=1)
    fits, outcome = judge(drafts, p.expand(rows, -1, -1), q.expand(rows, -1, -1), generator)
    for j in range(3):
        assert chi_square(torch.bincount(outcome[:, j], minlength=7), p[0, j] * rows) < 40
    assert torch.equal(outcome[:, :2][fits], drafts[fits])
    for j in range(2):  # the share of accepted guesses is the overlap of p and q
        assert fits[:, j].float().mean().item() == pytest.approx(torch.minimum(p, q)[0, j].sum().item(), abs=0.01)


def test_where_both_agree_every_guess_is_accepted():
    p = torch.rand(1, 1, 5).softmax(dim=-1).expand(500, 2, -1)
    drafts = torch.multinomial(p[:, 0], 1)
    fits, outcome = judge(drafts, p, torch.cat((p[:, :1], torch.zeros(500, 1, 5)), dim=1))
    assert fits.all() and torch.equal(outcome[:, :1], drafts)


VOCABULARY, NEW = 4, 3
SAMPLINGS = [Sampling(temperature=1.0), Sampling(temperature=0.7, top_k=3), Sampling(temperature=1.5, top_p=0.8)]


def sequence_distribution(model, prompt, sampling):
    """Of all `VOCABULARY ** NEW` continuations, from one pass over each."""
    tails = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=NEW)))
    logits = model(torch.cat((prompt.expand(len(tails), -1), tails), dim=1))[:, prompt.shape[1] - 1 : -1]
    p = probabilities(logits.flatten(0, 1), sampling).view_as(logits)
    return p.gather(-1, tails[..., None])[..., 0].double().prod(dim=1)


def sampled(model, prompt, sampling, *, rows, calls, draft_tokens=2):
    """How often each continuation was drawn."""
    torch.manual_seed(0)
    found = Counter()
    for _ in range(calls):
        out = model.generate(
            prompt.expand(rows, -1),
            max_new_tokens=NEW,
            speculative="mtp",
            draft_tokens=draft_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
        )
        found.update(map(tuple, out[:, prompt.shape[1] :].tolist()))
    return torch.tensor([found[tail] for tail in itertools.product(range(VOCABULARY), repeat=NEW)], dtype=torch.float64)


@pytest.fixture(scope="module")
def dice(make):
    """A small model whose MTP block often disagrees with it, and a prompt."""
    model = make("gqa", "dense", vocabulary=VOCABULARY, layers=1, depth=1, seed=26)
    return model.eval().requires_grad_(False), torch.tensor([[0, 3, 1]])


def statistic(counts, expected):
    """Chi-square in units of its standard deviation under the hypothesis, rare continuations taken together."""
    rare = expected < 5
    counts, expected = (torch.cat((t[~rare], t[rare].sum()[None])) for t in (counts, expected))
    freedom = (expected > 0).sum().item() - 1
    return (chi_square(counts, expected) - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["plain", "top-k", "top-p"])
@pytest.mark.parametrize(("rows", "calls"), [(1, 500), (3, 250)])
def test_sequences_have_the_models_distribution(dice, sampling, rows, calls):
    model, prompt = dice
    counts = sampled(model, prompt, sampling, rows=rows, calls=calls)
    assert statistic(counts, sequence_distribution(model, prompt, sampling) * rows * calls) < 4


def test_that_distribution_test_would_notice_a_wrong_residual(dice, monkeypatch):
    """Drawing from p, not from max(p - q, 0), when a guess is refused."""

    def wrong(drafts, p, q, generator):
        fits, outcome = judge(drafts, p, q, generator)
        again = torch.multinomial(p.flatten(0, 1), 1).view(outcome.shape)
        outcome[:, :-1] = torch.where(fits, drafts, again[:, :-1])
        return fits, outcome

    monkeypatch.setattr(speculate, "judge", wrong)
    (model, prompt), sampling = dice, SAMPLINGS[0]
    counts = sampled(model, prompt, sampling, rows=1, calls=500)
    assert statistic(counts, sequence_distribution(model, prompt, sampling) * 500) > 8


def test_a_seed_repeats_a_draw(make):
    model, prompt = make(), torch.randint(FEW, (2, 4))
    how = {"max_new_tokens": 20, "temperature": 2.0, "speculative": "mtp", "draft_tokens": 2}
    first = model.generate(prompt, seed=1, **how)
    torch.manual_seed(99)
    assert torch.equal(model.generate(prompt, seed=1, **how), first)
    assert not torch.equal(model.generate(prompt, seed=2, **how), first)


# Requests


def test_impossible_requests_say_what_to_do(make, tiny, build):
    prompt = torch.ones(1, 3, dtype=torch.int64)
    without, with_it = build(tiny(objective={"next-token": {"use": "next-token"}})), make()
    for model, use, message in (
        (without, "mtp", r"has no objective 'mtp' to draft with; it has next-token\. .*objective\.mtp\.use = \"mtp\""),
        (with_it, "mpt", r"There is no objective 'mpt' to draft with\. Did you mean 'mtp'\?"),
        (with_it, "next-token", r"'next-token' does not draft tokens\. Those here that do: mtp\."),
    ):
        with pytest.raises(BestiaryError, match=message):
            model.generate(prompt, max_new_tokens=2, speculative=use)
    with pytest.raises(BestiaryError, match="draft_tokens 0 is less than 1"):
        with_it.generate(prompt, max_new_tokens=2, speculative="mtp", draft_tokens=0)


def test_an_objective_is_found_by_its_key_as_well(tiny, build):
    model = build(tiny(objective={"ahead": {"use": "mtp"}}), dtype=torch.float32)
    prompt = torch.randint(31, (1, 4))
    plain = model.generate(prompt, max_new_tokens=5)
    for use in ("ahead", "mtp"):
        assert torch.equal(model.generate(prompt, max_new_tokens=5, speculative=use), plain)


def test_a_stream_hands_over_tokens_one_by_one_up_to_the_last_position(make):
    model, prompt = make(), torch.randint(FEW, (1, 60))
    tokens = list(stream(model, prompt, max_new_tokens=4, sampling=Sampling(eos_token_id=-1), speculation=Speculation("mtp", 3)))
    assert [tuple(token.shape) for token in tokens] == [(1,)] * 4
    assert torch.equal(torch.cat(tokens)[None], model.generate(prompt, max_new_tokens=4, eos_token_id=-1)[:, 60:])
