"""Studies as files: seeds, matching, sweeps, changes of the recipe, and everything that is wrong at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from bestiary.core.accounting import account
from bestiary.core.errors import BestiaryError
from bestiary.lab.studies.full_scale import Large
from bestiary.lab.studies.study import Study, load_study

HEAD = 'schema = 1\nrecipe = "recipe.toml"\n'
GQA = '[variants.base]\n[variants.gqa]\nblock.attention.use = "gqa"\n'
EXAMPLES = Path(__file__).parents[3] / "examples" / "studies"


@pytest.fixture
def write(lab: Path):
    """A study from its text, loaded."""

    def load(text: str, **how) -> Study:
        (lab / "study.toml").write_text(HEAD + text)
        return load_study(lab / "study.toml", **how)

    return load


def size(study: Study, name: str, figure: str) -> float:
    return getattr(account(study.variants[name].manifest, sequence_length=32), figure)


def test_every_seed_sets_weights_and_data_alike_for_all(write):
    study = write('baseline = "base"\nseeds = [3, 5]\n' + GQA)
    for name in ("base", "gqa"):
        runs = study.runs(name)
        assert {seed: (recipe.train.seed, recipe.data.seed) for seed, recipe in runs.items()} == {3: (3, 3), 5: (5, 5)}


def test_without_seeds_there_is_one_run_of_the_recipes_own(write):
    study = write('baseline = "base"\n' + GQA, set=["train.seed=7", "data.seed=8"])
    assert {seed: recipe.data.seed for seed, recipe in study.runs("gqa").items()} == {7: 8}


@pytest.mark.parametrize("figure", ["parameters", "active_parameters"])
def test_matching_reaches_the_baselines_figure(write, figure):
    match = f'match = {{ same = "{figure}", by = "block.ffn.intermediate_size", tolerance = 0.05 }}\n'
    study = write(f'baseline = "base"\n{match}[variants.base]\n[variants.dense]\nblock.ffn.use = "dense"\n')
    matched = study.matched["dense"]
    assert study.variants["dense"].manifest.layers[-1].ffn.options.intermediate_size == matched.value
    assert size(study, "dense", figure) == matched.reached
    assert size(study, "base", figure) == matched.target
    assert abs(matched.deviation) < 0.05


def test_flops_are_matched_by_size_or_by_length(write):
    study = write(
        'baseline = "base"\nmatch = { same = "flops", tolerance = 0.1 }\n[variants.base]\n'
        "[variants.wide]\nblock.ffn.intermediate_size = 64\n"
        '[variants.gqa]\nblock.attention.use = "gqa"\nmatch.by = "block.attention.head_dim"\nmatch.multiple_of = 2\n'
    )
    spent = {name: size(study, name, "flops_training") * variant.recipe.budget.tokens for name, variant in study.variants.items()}
    assert study.variants["wide"].recipe.steps < study.variants["base"].recipe.steps == study.variants["gqa"].recipe.steps
    assert spent["wide"] == pytest.approx(spent["base"], rel=0.1) and spent["gqa"] == pytest.approx(spent["base"], rel=0.1)


def test_a_variant_overrides_the_rule_and_equal_ones_are_not_turned(write):
    study = write(
        'baseline = "base"\nmatch = { same = "parameters", by = "block.attention.head_dim", multiple_of = 2, tolerance = 0.05 }\n'
        + GQA
        + '[variants.hot]\noptimizer.lr = 0.5\n[variants.free]\nblock.attention.use = "gqa"\nmatch = "tokens"\n'
    )
    assert list(study.matched) == ["gqa"]


def test_equal_tokens_hold_when_the_batch_changes(write):
    study = write(
        'baseline = "base"\n[variants.base]\n[variants.small]\ntrain.batch_size = 2\n[variants.own]\nmatch = "nothing"\ntrain.steps = 3\n'
    )
    assert {name: variant.recipe.budget.tokens for name, variant in study.variants.items()} == {"base": 1536, "small": 1536, "own": 384}
    assert study.variants["small"].recipe.steps == 24


def test_variants_change_the_recipe_too(write):
    study = write('baseline = "base"\n[variants.base]\n[variants.hot]\noptimizer.lr = 0.5\nschedule.warmup = 3\n')
    hot = study.variants["hot"]
    assert (hot.recipe.optimizer.lr, hot.recipe.schedule.warmup) == (0.5, 3)
    assert hot.manifest.digest == study.variants["base"].manifest.digest


def test_a_grid_is_every_combination_and_one_at_a_time_each_alone(write):
    study = write(
        "[grid]\noptimizer.lr = [1e-2, 3e-2]\nblock.ffn.num_experts_per_tok = [1, 2]\n"
        "[one-at-a-time]\ntrain.batch_size = [2, 4]\noptimizer.betas = [[0.8, 0.9]]\n"
    )
    assert list(study.variants) == [
        "baseline",
        "lr-0.01_num_experts_per_tok-1",
        "lr-0.03_num_experts_per_tok-1",
        "lr-0.03_num_experts_per_tok-2",
        "batch_size-2",
        "betas-0.8-0.9",
    ]
    assert study.same_as_baseline == ("lr-0.01_num_experts_per_tok-2", "batch_size-4")
    both = study.variants["lr-0.03_num_experts_per_tok-1"]
    assert (both.recipe.optimizer.lr, both.manifest.layers[-1].ffn.options.num_experts_per_tok) == (0.03, 1)
    assert study.variants["betas-0.8-0.9"].recipe.optimizer.lr == 0.01


def test_sweeps_stand_on_the_baseline_and_take_tables(write):
    study = write(
        'baseline = "slow"\n[variants.slow]\noptimizer.lr = 1e-4\n[one-at-a-time]\n'
        'block.attention = [{ use = "gqa", num_key_value_heads = 1 }]\nobjective.mtp.weight = [0.1]\nobjective.next-token.weight = [0.5]\n'
    )
    assert list(study.variants) == ["slow", "attention-gqa-1", "mtp.weight-0.1", "next-token.weight-0.5"]
    assert all(variant.recipe.optimizer.lr == 1e-4 for variant in study.variants.values())
    assert study.variants["attention-gqa-1"].manifest.layers[0].attention.use == "gqa"


WRONG = {
    'baseline = "bass"\n[variants.base]\n': "there is no variant 'bass'. Did you mean 'base'?",
    "[variants.x]\ntrain.seed = 1\n": "a variant cannot change train.seed: set the study's seeds instead",
    "[variants.x]\ndata.held_out = 0.5\n": "a variant cannot change data.held_out",
    "[variants.x]\ntrain.steps = 5\n": "train.steps follows from match (tokens), and is set as well. Remove it here",
    "[variants.x]\noptimizer.rl = 5\n": "variants.x.optimizer.rl: [optimizer] has no option 'rl'",
    '[variants.x]\nblock.ffn.use = "dens"\n': "variants.x: block.ffn.use",
    "[variants.x]\nmatch.sam = 'tokens'\n": "has no option 'sam'. Did you mean 'same'?",
    "[variants.baseline]\nmatch = 'tokens'\n": "the baseline is what others are matched with",
    "match = 'parameters'\n[variants.x]\nblock.ffn.intermediate_size = 5\n": "equal parameters need an option to turn",
    "match = { same = 'parameters', by = 'block.ffn.width' }\n[variants.x]\nblock.ffn.use = 'dense'\n": "has no option 'width'",
    "[grid]\noptimizer.lr = 1e-3\n": "grid.optimizer.lr: expected a list of alternatives, found 0.001",
    "[grid]\noptimizer.lr = [1e-3]\n[one-at-a-time]\noptimizer.lr = [1e-3]\n": "two variants are called 'lr-0.001'",
    'full_scale = { model = "deepseek-v3", token = "1T" }\n': "[full_scale] has no option 'token'. Did you mean 'tokens'?",
    'full_scale = { model = "deepseek-v3", tokens = "much" }\n': "full_scale: tokens much: expected a positive number",
    'full_scale = { model = "deepseek-v3", tokens = "1T", gpu = "h8000" }\n': "There is no GPU 'h8000'",
    "seeds = [0.5]\n": "seeds",
    "one-at-a-tim = 5\n": "Did you mean 'one-at-a-time'?",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: WRONG[text][:40])
def test_mistakes_are_named(write, text):
    with pytest.raises(BestiaryError) as caught:
        write(text)
    assert WRONG[text] in str(caught.value)


def test_the_option_that_is_solved_for_cannot_be_set_as_well(write):
    rule = "match = { same = 'parameters', by = 'block.ffn.intermediate_size' }\n"
    with pytest.raises(BestiaryError, match=r"variants.x.block.ffn.intermediate_size: .* follows from match"):
        write(rule + "[variants.x]\nblock.ffn.use = 'dense'\nblock.ffn.intermediate_size = 5\n")


def test_at_full_scale_the_same_changes_are_matched_again(write):
    study = write(
        'baseline = "base"\nfull_scale = { model = "deepseek-v3", tokens = "14.8T", price = 2 }\n'
        + GQA
        + 'match = { same = "active_parameters", by = "block.attention.head_dim", multiple_of = 2, tolerance = 0.05 }\n'
        "[variants.wrong]\nblock.ffn.router.topk_group = 2\nblock.ffn.n_routed_experts = 8\n"
    )
    assert study.full_scale is not None
    base, gqa, wrong = (study.full_scale.large[name] for name in ("base", "gqa", "wrong"))
    assert isinstance(base, Large) and isinstance(gqa, Large)
    assert base.parameters == 671_026_419_200 and gqa.matched is not None
    assert gqa.active_parameters == pytest.approx(base.active_parameters, rel=0.05)
    assert base.cost.money == pytest.approx(2 * base.cost.hours)
    assert isinstance(wrong, BestiaryError), "8 experts cannot serve 8 groups of two"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_are_sound(path):
    study = load_study(path)
    tokens = {variant.recipe.budget.tokens for variant in study.variants.values()}
    assert len(tokens) == 1 and study.description
    assert all(abs(matched.deviation) <= 0.01 for matched in study.matched.values())
    assert path.stem == "demo" or (len(study.seeds or ()) >= 3 and study.full_scale)
