"""From manifest data to a manifest: what each mistake says, and who set what."""

from __future__ import annotations

import pytest

import bestiary
from bestiary.core.errors import BestiaryError


def problems(reference, *items):
    with pytest.raises(BestiaryError) as caught:
        bestiary.resolve(reference, set=items)
    return [str(problem) for problem in caught.value.problems]


def value(manifest, path):
    (setting,) = [s for s in manifest.settings if s.path == path]
    return setting.value, setting.source


# What each mistake says

MISTAKES = [
    ("block.attention.use=gqq", "No attention component is called 'gqq'. Did you mean 'gqa'? Known: gqa, mla"),
    ("block.attention.kv_lora_rnk=4", "attention 'mla' has no option 'kv_lora_rnk'. Did you mean 'kv_lora_rank'?"),
    ("block.attention.rope.thta=4", "attention 'mla' has no option 'rope.thta'. Did you mean 'theta'? Known: scaling, theta."),
    ("block.ffn.router.n_grup=2", "router 'sigmoid-group' has no option 'n_grup'. Did you mean 'n_group'?"),
    ("block.ffn.router.use=softmax-topc", "No router component is called 'softmax-topc'. Did you mean 'softmax-topk'?"),
    ("block.fnn.use=dense", "block.fnn: there is no slot called 'fnn'. Did you mean 'ffn'?"),
    ("modle.hidden_size=4", "there is no section called 'modle'. Did you mean 'model'?"),
    ("model.hidden_sise=4", "[model] has no option 'hidden_sise'. Did you mean 'hidden_size'?"),
    ("precision.use=bf61", "No precision component is called 'bf61'. Did you mean 'bf16'? Known: bf16, fp32, fp64, fp8."),
    ("objective.next-token.use=nexttoken", "No objective component is called 'nexttoken'. Did you mean 'next-token'?"),
    ("parallelism.micro_batchs=2", "parallelism 'local' has no option 'micro_batchs'. Did you mean 'micro_batches'?"),
    ("hub.repository=a/b", "[hub] has no option 'repository'. Did you mean 'repo'?"),
    ("model.hidden_size=wide", "[model], option 'hidden_size': input should be a valid integer, unable to parse string"),
    ("model.hidden_size=0", "[model], option 'hidden_size': input should be greater than 0 (found 0)."),
    ("model.rms_norm_eps=inf", "[model], option 'rms_norm_eps': input should be a finite number (found inf)."),
    ("block.attention.rope.theta=fast", "attention 'mla', option 'rope.theta': input should be a valid number"),
    ("block.attention.rope.scaling={type='yarn'}", "needs 'rope.scaling.factor', which is not set. Set block.attention.rope"),
    ("block.attention.rope.scaling={type='yran'}", "'yran' found using 'type' does not match any of the expected tags: 'linear'"),
    ("block.ffn.router=sigmoid", "'router' is a router component: expected a table, found 'sigmoid'. Write router.use = ..."),
    ("block.ffn.router.use=3", "No router component is called '3'."),
    ("objective.mtp=true", "expected a table, or false to leave it out; found True."),
    ("objective.next-token=false", "every objective is switched off. Keep one, such as next-token."),
    ("objective.mtp.depth=1", "no objective component is named. Set objective.mtp.use; known: mtp, next-token."),
    ("model=3", "expected a table, found 3. Write [model]."),
    ("schema=2", "schema 2 is unknown. This bestiary reads schema = 1."),
    ("schema=true", "schema True is unknown. This bestiary reads schema = 1."),
]  # fmt: skip


@pytest.mark.parametrize(("item", "message"), MISTAKES)
def test_a_mistake_is_named_with_its_place_and_its_remedy(tiny, item, message):
    found = problems(tiny(), item)
    assert any(message in problem for problem in found), found
    assert any(f"--set {item}" in problem for problem in found) or "which is not set" in message or "switched off" in message


IMPOSSIBLE = [
    ("block.ffn.router.n_group=4", "n_group = 4 does not divide 6 experts. Use one of [1, 2, 3, 6]."),
    ("block.ffn.router.topk_group=4", "topk_group = 4 exceeds n_group = 3. Use at most 3."),
    ("block.ffn.num_experts_per_tok=5", "2 groups of 2 experts hold fewer than num_experts_per_tok = 5. Raise topk_group."),
    ("block.ffn.num_experts_per_tok=7", "num_experts_per_tok = 7 exceeds n_routed_experts = 6. Use at most 6."),
    ("block.ffn.router.n_group=6", "n_group = 6 leaves one expert a group, and groups are ranked by their two best. Use at most 3."),
    ("block.attention.qk_rope_head_dim=3", "qk_rope_head_dim = 3 is odd, and RoPE turns pairs. Use an even number."),
    ("block.attention={use='gqa', num_key_value_heads=2, head_dim=4}", "= 2 does not divide the 3 attention heads. Use one of [1, 3]."),
    ("block.attention={use='gqa'}", "hidden_size = 14 is no multiple of num_attention_heads = 3. Set head_dim."),
    ("block.attention={use='gqa', head_dim=5}", "head_dim = 5 is odd, and RoPE turns pairs. Use an even head_dim."),
    ("block.ffn.router={use='softmax-topk', norm_topk_prob=true, routed_scaling_factor=2}", "exclude each other"),
]  # fmt: skip


@pytest.mark.parametrize(("item", "message"), IMPOSSIBLE)
def test_options_that_cannot_stand_together_say_what_would(tiny, item, message):
    (found,) = problems(tiny(), item)
    assert message in found
    assert found.startswith('manifest: block.at."0:2".')


def test_an_objective_that_is_left_out_may_be_given_as_false(tiny):
    data = tiny(objective={"next-token": {"use": "next-token"}, "mtp": {"use": "mtp"}})
    assert list(bestiary.resolve(data, set=["objective.mtp=false"]).objectives) == ["next-token"]


def test_all_mistakes_are_shown_at_once(tiny):
    items = [
        "model.hidden_sise=4",
        "block.attention.use=gqq",
        "block.ffn.router.use=soft",
        "block.ffn.k=2",
        "precision.use=fp61",
        "hug.repo=x",
    ]
    found = problems(tiny(), *items)
    assert len(found) == len(items)
    assert all(any(f"--set {item}" in problem for problem in found) for item in items)


def test_a_missing_option_names_itself_and_the_file_that_lacks_it(tmp_path, tiny):
    (tmp_path / "gone.toml").write_text(
        'schema = 1\n[model]\nhidden_size = 8\n[block.attention]\nuse = "gqa"\n[block.ffn]\nuse = "dense"\n'
    )
    found = problems(tmp_path / "gone.toml")
    assert f"{tmp_path / 'gone.toml'}: model: [model] needs 'vocab_size', which is not set. Set model.vocab_size." in found


def test_a_missing_sub_slot_lists_what_could_fill_it(tiny):
    moe = {"use": "moe", "n_routed_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 8}
    (found,) = problems(tiny(ffn=moe))
    assert found.endswith(
        "ffn 'moe' needs 'router', which is not set. Set block.ffn.router.use; known: sigmoid-group, softmax-group, softmax-topk."
    )
    (found,) = problems(tiny(ffn=moe | {"router": {"n_group": 2}}))
    assert found.endswith("no router component is named. Set block.ffn.router.use; known: sigmoid-group, softmax-group, softmax-topk.")


def test_a_slot_that_nothing_fills_is_named(tiny):
    data = tiny()
    del data["block"]["attention"]
    (found,) = problems(data)
    assert found == "block.attention: no attention component is named. Set block.attention.use; known: gqa, mla."


def test_overlapping_and_outlying_rows_are_refused(tiny):
    found = problems(tiny(layers=3), "block.at.0:2.ffn.k=1", "block.at.1:.ffn.k=1", "block.at.0:9.attention.use=mla")
    assert any('rows "0:2" and "1:" both set ffn of layer 1.' in problem for problem in found)
    assert any("slice '0:9' reaches outside the 3 layers. Layers go from 0 to 2" in problem for problem in found)


def test_a_manifest_says_its_schema(tiny):
    data = tiny()
    del data["schema"]
    assert problems(data) == ["schema: the manifest does not say its schema. Write schema = 1 at its top."]


def test_a_setting_that_is_given_twice_complains_about_the_last(tiny):
    (found,) = problems(tiny(), "block.attention.use=gqa", "block.attention.use=mlaa")
    assert found.startswith("--set block.attention.use=mlaa")


# Files and what they extend


@pytest.fixture
def files(tmp_path):
    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.toml").write_text(text)
        return tmp_path

    return write


def test_a_circle_of_extends_is_shown(files):
    folder = files(a='extends = "./b.toml"', b='extends = "./c.toml"', c='extends = "./a.toml"')
    (found,) = problems(folder / "a.toml")
    assert "extends: this goes in a circle: a -> b -> c -> a. Remove one of these `extends`." in found


def test_a_file_that_extends_itself_is_a_circle(files):
    folder = files(a='extends = "./a.toml"')
    assert "a -> a" in problems(folder / "a.toml")[0]


def test_extending_an_unknown_model_names_the_nearest_and_the_file(files):
    folder = files(a='extends = "deepseek-v33"')
    (found,) = problems(folder / "a.toml")
    assert found.startswith(f"{folder / 'a.toml'}: extends: No model is called 'deepseek-v33'. Did you mean 'deepseek-v3'? Known: ")


def test_extending_a_missing_file_names_both_files(files):
    folder = files(a='extends = "./gone.toml"')
    (found,) = problems(folder / "a.toml")
    assert found.startswith(f"{folder / 'a.toml'}: extends: There is no file {folder / 'gone.toml'}.")


def test_extends_takes_one_name(files):
    folder = files(a='extends = ["deepseek-v3"]')
    assert "extends: expected one name, path or Hub id in quotes" in problems(folder / "a.toml")[0]


def test_a_file_that_is_not_toml_names_the_line(files):
    folder = files(a="schema = 1\nmodel = {\n")
    assert f"{folder / 'a.toml'}: this is not valid TOML" in problems(folder / "a.toml")[0]


def test_a_mistake_in_a_parent_is_blamed_on_the_parent(files):
    folder = files(
        parent='extends = "deepseek-v3-mini"\nblock.attention.kv_rank = 4\n', child='extends = "./parent.toml"\nprecision.use = "fp16"\n'
    )
    found = problems(folder / "child.toml")
    assert any(problem.startswith(f"{folder / 'parent.toml'}: block.attention.kv_rank: attention 'mla' has no option") for problem in found)
    assert any(problem.startswith(f"{folder / 'child.toml'}: precision") for problem in found)


# Who set what


def test_every_option_knows_whether_default_parent_child_or_setting_set_it(files):
    folder = files(child='extends = "deepseek-v3-mini"\nblock.ffn.n_shared_experts = 2\n')
    manifest = bestiary.resolve(folder / "child.toml", set=["block.ffn.router.topk_group=3"])
    assert value(manifest, "block.ffn.router.topk_group") == (3, "--set block.ffn.router.topk_group=3")
    assert value(manifest, "block.ffn.n_shared_experts") == (2, str(folder / "child.toml"))
    assert value(manifest, "block.ffn.n_routed_experts") == (32, "deepseek-v3-mini.toml")
    assert value(manifest, "block.ffn.router.bias_update_speed") == (0.001, "default")
    assert value(manifest, "parallelism.use") == ("local", "default")
    assert value(manifest, "objective.next-token.use")[0] == "next-token"


def test_options_of_a_row_are_listed_under_the_row():
    manifest = bestiary.resolve("deepseek-v3-mini", set=["block.at.3:5.ffn.n_shared_experts=2"])
    assert value(manifest, 'block.at."3:5".ffn.n_shared_experts') == (2, "--set block.at.3:5.ffn.n_shared_experts=2")
    assert value(manifest, 'block.at."3:5".ffn.n_routed_experts') == (32, "deepseek-v3-mini.toml")
    assert value(manifest, "block.ffn.n_shared_experts") == (1, "deepseek-v3-mini.toml")


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v2-lite", "kimi-k2", "qwen3-8b"])
def test_no_option_is_listed_twice(name):
    paths = [setting.path for setting in bestiary.resolve(name).settings]
    assert len(paths) == len(set(paths))


def test_changing_the_component_drops_the_options_of_the_old_one():
    manifest = bestiary.resolve("deepseek-v3", set={"block.attention.use": "gqa"})
    assert {layer.attention.table()["use"] for layer in manifest.layers} == {"gqa"}
    assert not [s.path for s in manifest.settings if "kv_lora_rank" in s.path]


def test_equal_layers_share_one_part_and_the_rows_hold_where_they_say():
    manifest = bestiary.resolve("deepseek-v3")
    assert [layer.ffn.use for layer in manifest.layers] == ["dense"] * 3 + ["moe"] * 58
    assert len({id(layer.ffn) for layer in manifest.layers}) == 2
    assert len({id(layer.attention) for layer in manifest.layers}) == 1
