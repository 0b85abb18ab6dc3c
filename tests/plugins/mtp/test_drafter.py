"""The MTP drafter's caches against whole passes without any, and the method that a model gains from the objective."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from bestiary.core.contracts import Context, Hidden

VOCABULARY = 31


@pytest.fixture
def make(tiny, build):
    def model(parts="mla-moe", **options):
        objective = {"next-token": {"use": "next-token"}, "mtp": {"use": "mtp"} | options}
        return build(tiny(*parts.split("-"), objective=objective), dtype=torch.float32)

    return model


class Script:
    """Chooses given tokens and keeps the logits that it was shown."""

    def __init__(self, tokens):
        self.tokens, self.seen = tokens, []

    def __call__(self, logits):
        self.seen.append(logits)
        return self.tokens[:, len(self.seen) - 1]


def cut(hidden, start, stop):
    return Hidden(hidden.raw[:, start:stop], hidden.normed[:, start:stop], hidden.context)


@pytest.mark.parametrize("parts", ["mla-moe", "gqa-dense"])
@pytest.mark.parametrize("hidden", ["post-norm", "pre-norm"])
@pytest.mark.parametrize(("depth", "count"), [(1, 1), (2, 1), (2, 2), (3, 3), (3, 2)])
@torch.no_grad()
def test_after_any_pattern_of_acceptance_it_guesses_as_a_whole_pass_would(make, parts, hidden, depth, count):
    model = make(parts, depth=depth, hidden=hidden).eval()
    pick, ids = random.Random(depth * count), torch.randint(VOCABULARY, (2, 24))
    states, drafter = model.hidden(ids[:, :-1]), model.goals["mtp"].drafter(model, 2, 24, count)
    start, stop = 0, 5
    while stop < 24:
        guesses = ids[:, stop + 1 : stop + 1 + count].clone()
        for row in guesses:
            row[pick.randint(0, count) :] = pick.randrange(VOCABULARY)
        guesses = torch.cat((guesses, torch.zeros(2, count, dtype=torch.int64)), dim=1)[:, :count]
        script = Script(guesses)
        drafted = drafter.draft(cut(states, start, stop), ids[:, start + 1 : stop + 1], script)
        assert torch.equal(drafted, guesses)
        certain = ids[:, : stop + 1]
        whole = model.mtp_logits(torch.cat((certain, guesses), dim=1))
        for k, logits in enumerate(script.seen):
            assert torch.allclose(logits, whole[k][:, stop - 1], atol=1e-5)
        start, stop = stop, stop + pick.randint(1, count + 1)


@pytest.mark.parametrize("hidden", ["post-norm", "pre-norm"])
@pytest.mark.parametrize("depth", [1, 2])
@torch.no_grad()
def test_beyond_the_trained_depths_the_last_block_goes_on_from_its_own_states(make, depth, hidden):
    model, more = make(depth=depth, hidden=hidden).eval(), 2
    ids, guesses = torch.randint(VOCABULARY, (2, 9)), torch.randint(VOCABULARY, (2, depth + more))
    states, goal, script = model.hidden(ids[:, :-1]), model.goals["mtp"], Script(guesses)
    drafter = goal.drafter(model, 2, 20, depth + more)
    for start, stop in ((0, 6), (6, 8)):  # the second draft starts from rewound caches
        script.seen.clear()
        drafter.draft(cut(states, start, stop), ids[:, start + 1 : stop + 1], script)
    tokens = torch.cat((ids, guesses), dim=1)
    layer, state, length = goal.layers[-1], goal.passed_on(states.raw, states.normed), 8
    for k in range(depth):
        raw = goal.layers[k](model.model.embed(tokens[:, k + 1 : k + 1 + length]), state, Context(torch.arange(length)[None]))
        below, state = state, goal.passed_on(raw, goal.layers[k].shared_head.norm(raw))
    for extra in range(1, more + 1):
        below, length = torch.cat((below, state[:, -1:]), dim=1), length + 1
        raw = layer(model.model.embed(tokens[:, depth : depth + length]), below, Context(torch.arange(length)[None]))
        normed = layer.shared_head.norm(raw)
        state = goal.passed_on(raw, normed)
        assert torch.allclose(script.seen[depth - 1 + extra], model.logits(normed[:, -1]), atol=1e-5)


def test_the_model_gains_the_method_and_keeps_it_in_a_copy(make):
    model, ids = make(depth=2), torch.randint(VOCABULARY, (1, 7))
    assert [t.shape for t in model.mtp_logits(ids)] == [(1, 6, VOCABULARY), (1, 5, VOCABULARY)]
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert not any(t.any() for t in model.mtp_logits(ids))
    assert all(t.any() for t in other.mtp_logits(ids))


def test_without_the_objective_the_error_says_which_gives_it(tiny, build):
    model = build(tiny())
    assert not hasattr(model, "mtp_logits")
    with pytest.raises(AttributeError, match=r"no attribute 'mtp_logits'\. The objective 'mtp' gives it: .*objective\.mtp\.use = \"mtp\""):
        _ = model.mtp_logits
    with pytest.raises(AttributeError, match=r"no attribute 'mtp_logit'$"):
        _ = model.mtp_logit


@pytest.mark.parametrize("length", [1, 2])
def test_rows_too_short_for_a_depth_have_no_logits_there(make, length):
    assert [t.shape[1] for t in make(depth=3).mtp_logits(torch.ones(2, length, dtype=torch.int64))] == [length - 1, 0, 0]
