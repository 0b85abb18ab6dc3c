"""Recipes and studies: what they accept, and that they name everything that is wrong at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from bestiary import BestiaryError
from bestiary.lab.checked import table
from bestiary.lab.options import Recipe
from bestiary.lab.recipe import load_recipe
from bestiary.lab.studies.study import load_study

STUDY = """
schema = 1
recipe = "recipe.toml"
baseline = "base"
[variants.gqa]
block.attention.use = "gqa"
[variants.base]
"""


def problems(load, path: Path, text: str, **options) -> list[str]:
    path.write_text(text)
    with pytest.raises(BestiaryError) as caught:
        load(path, **options)
    return [str(problem) for problem in caught.value.problems]


def test_paths_start_at_the_recipes_folder(lab: Path, monkeypatch):
    monkeypatch.chdir("/")
    recipe = load_recipe(lab / "recipe.toml")
    assert recipe.model == str(lab / "tiny.toml")
    assert recipe.data.source == (str(lab / "text"),)
    assert recipe.manifest().model.hidden_size == 32


def test_a_written_recipe_reads_back_equal(lab: Path):
    recipe = load_recipe(lab / "recipe.toml", set=["block.attention.use=gqa", "train.seed=3"])
    written = table(recipe)
    del written["schema"]
    assert Recipe.model_validate(written) == recipe


def test_a_budget_in_tokens_is_rounded_up_to_steps(lab: Path, change):
    assert load_recipe(change("steps = 12", "tokens = 257")).steps == 3


def test_settings_go_to_the_recipe_or_to_its_model(lab: Path):
    changes = ["train.steps=20", "block.ffn.use=dense", "block.ffn.intermediate_size=8", "set.model.rms_norm_eps=1e-5"]
    recipe = load_recipe(lab / "recipe.toml", set=changes)
    manifest = recipe.manifest()
    assert recipe.steps == 20
    assert [layer.ffn.use for layer in manifest.layers] == ["dense", "dense"]
    assert manifest.model.rms_norm_eps == 1e-5


def test_everything_wrong_with_a_recipe_is_said_at_once(lab: Path):
    text = """
schema = 1
modle = "tiny.toml"
[data]
sequence_lenght = 32
held_out = 2.0
[train]
steps = 10
[schedule]
warmup = 1.5
[optimizer]
betas = [0.9]
"""
    path = lab / "bad.toml"
    found = problems(load_recipe, path, text)
    assert f"{path}: modle: the recipe has no option 'modle'. Did you mean 'model'?" in next(p for p in found if "modle" in p)
    assert any(p.startswith(f"{path}: model: the recipe needs 'model'") for p in found)
    assert any("[data] has no option 'sequence_lenght'. Did you mean 'sequence_length'?" in p for p in found)
    assert any(f"{path}: data.held_out:" in p and "(found 2.0)" in p for p in found)
    assert any(f"{path}: schedule.warmup: expected a whole number" in p for p in found)
    assert any("optimizer.betas" in p for p in found)
    assert len(found) == 6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema = 1", "schema = 9", "schema 9 is unknown"),
        ("schema = 1", "", "does not say its schema"),
        ("steps = 12", "", "expected either steps or tokens"),
        ("steps = 12", "steps = 12\ntokens = 5", "expected either steps or tokens"),
        ("[log]", "[schedule]\nwarmup = 8\ndecay = 8\n[log]", "take 16 steps, and the run has 12"),
        ("tiny.toml", "tinny.toml", "There is no file"),
        ('"tiny.toml"', '"deepseek-v3-nono"', "Did you mean 'deepseek-v3-nano'"),
        ("[data]", "[data", "not valid TOML"),
    ],
)
def test_single_mistakes_are_named(change, old: str, new: str, message: str):
    with pytest.raises(BestiaryError, match=message):
        load_recipe(change(old, new))


def test_a_missing_recipe_is_named(tmp_path: Path):
    with pytest.raises(BestiaryError, match=r"There is no file .*nothing\.toml"):
        load_recipe(tmp_path / "nothing.toml")


def test_a_study_puts_its_baseline_first_and_its_variants_on_top_of_the_recipe(lab: Path):
    (lab / "study.toml").write_text(STUDY)
    study = load_study(lab / "study.toml", set=["train.steps=2", "model.rms_norm_eps=1e-5"])
    recipes = {name: variant.recipe for name, variant in study.variants.items()}
    assert list(recipes) == ["base", "gqa"]
    assert {name: recipe.manifest().layers[0].attention.use for name, recipe in recipes.items()} == {"base": "mla", "gqa": "gqa"}
    assert {recipe.steps for recipe in recipes.values()} == {2}
    assert {recipe.manifest().model.rms_norm_eps for recipe in recipes.values()} == {1e-5}


def test_a_variant_may_undo_what_the_recipe_set(lab: Path, change):
    change("[data]", "[set]\nblock.attention.use = 'gqa'\nblock.attention.num_key_value_heads = 1\n[data]")
    (lab / "study.toml").write_text(STUDY.replace('use = "gqa"', 'use = "mla"'))
    variants = load_study(lab / "study.toml").variants
    assert variants["base"].recipe.manifest().layers[0].attention.use == "gqa"
    assert variants["gqa"].recipe.manifest().layers[0].attention.use == "mla", "options of the component that is gone do not linger"


def test_an_inline_recipe_is_a_recipe(lab: Path):
    body = (lab / "recipe.toml").read_text().replace("schema = 1", "").replace("[", "[recipe.").replace("[recipe.\n", "[\n")
    text = STUDY.replace('recipe = "recipe.toml"', "") + "[recipe]\n" + body
    (lab / "study.toml").write_text(text)
    assert load_study(lab / "study.toml").variants["base"].recipe.steps == 12


def test_everything_wrong_with_a_study_is_said_at_once(lab: Path):
    text = (
        STUDY.replace('baseline = "base"', 'baseline = "basis"').replace('use = "gqa"', 'use = "gqq"') + '[variants."../up"]\nblok.x = 1\n'
    )
    found = problems(load_study, lab / "study.toml", text)
    assert any("there is no variant 'basis'. Did you mean 'base'?" in p for p in found)
    assert any("variants.gqa" in p and "Did you mean 'gqa'?" in p for p in found)
    assert any("use letters, digits" in p for p in found)
    assert any("../up" in p and "no section called 'blok'" in p for p in found)
    assert len(found) == 4
