"""The command line as its users meet it: in processes of its own, with exit codes and messages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def bestiary(*arguments, cwd=None, **environment):
    """Runs one verb; returns exit code, standard output and standard error."""
    import os

    command = [sys.executable, "-m", "bestiary", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | {"COLUMNS": "200"} | environment)
    return done.returncode, done.stdout, done.stderr


def test_show_counts_deepseek_v3_exactly():
    code, out, _ = bestiary("show", "deepseek-v3", "--json")
    figures = json.loads(out)
    assert code == 0
    assert (figures["parameters"], figures["active_parameters"]) == (671_026_419_200, 36_625_618_432)
    assert figures["published"] == {"tensors": 91_991, "bytes": 688_574_839_360}
    assert figures["manifest"]["model"]["hidden_size"] == 7168


def test_show_as_a_table_names_parts_figures_and_digest():
    code, out, _ = bestiary("show", "deepseek-v3", "--set", "block.attention.use=gqa")
    assert code == 0
    for expected in ("671,026,419,200", "91,991"):
        assert expected not in out
    assert "gqa" in out and "sigmoid-group" in out and "digest" in out


def test_show_says_what_multiplies_in_fp8_here():
    arguments = ("show", "deepseek-v3-nano", "--set", "precision.use=fp8")
    reason = "auto: no other backend was measured to be faster on a CPU"
    assert f"precision here: backend emulation, reason {reason}" in bestiary(*arguments, CUDA_VISIBLE_DEVICES="")[1]
    here = json.loads(bestiary(*arguments, "--json", CUDA_VISIBLE_DEVICES="")[1])["here"]
    assert here == {"precision": {"backend": "emulation", "reason": reason}}


@pytest.mark.parametrize("verb", ["show", "list", "explain", "validate", "diff", "plugins"])
def test_verbs_that_look_do_not_import_torch(verb):
    arguments = {"list": [], "plugins": [], "diff": ["deepseek-v3", "deepseek-v2"]}.get(verb, ["deepseek-v3"])
    code = (
        "import sys; sys.argv = ['bestiary', *sys.argv[1:]]\n"
        "from bestiary.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, verb, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_list_takes_a_pattern():
    code, out, _ = bestiary("list", "kimi*", "--json")
    assert code == 0
    assert [row["name"] for row in json.loads(out)] == ["kimi-k2"]


def test_explain_says_who_set_each_option():
    _, out, _ = bestiary("explain", "deepseek-r1", "--set", "block.ffn.router.n_group=4", "--json")
    source = {row["path"]: row["source"] for row in json.loads(out)}
    assert source["block.ffn.router.n_group"].startswith("--set")
    assert source["block.attention.kv_lora_rank"] == "deepseek-v3.toml"
    assert source["hub.repo"] == "deepseek-r1.toml"
    assert source["model.tie_word_embeddings"] == "default"


def test_diff_lists_what_differs_and_says_when_nothing_does():
    _, out, _ = bestiary("diff", "deepseek-v2", "deepseek-v2.5", "--json")
    paths = [row["path"] for row in json.loads(out)]
    assert any(path.endswith("mscale") for path in paths) and not any("hidden_size" in path for path in paths)
    _, same, _ = bestiary("diff", "deepseek-v3", "deepseek-v3")
    assert "same model" in same


def test_plugins_lists_components_and_where_they_are_from():
    _, out, _ = bestiary("plugins", "--json")
    found = {(row["slot"], row["component"]) for row in json.loads(out)["components"]}
    assert {("attention", "mla"), ("router", "sigmoid-group"), ("objective", "mtp")} <= found


def test_a_blocked_plugin_is_named_where_it_is_missed():
    code, _, err = bestiary("validate", "deepseek-v3", BESTIARY_BLOCK="attention_mla")
    assert code == 1 and "attention_mla" in err and "'mla'" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["show", "deepsek-v3"], "Did you mean 'deepseek-v3'"),
        (["show", "deepseek-v3", "--set", "block.attention.use=gqq"], "Did you mean 'gqa'"),
        (["show", "deepseek-v3", "--set", "nonsense"], "path=value"),
        (["validate", "missing.toml"], "There is no file"),
        (["generate", "no-such-folder/model", "-p", "x"], "no-such-folder/model"),
        (["train", "no-recipe.toml"], "no-recipe.toml"),
        (["ablate", "no-study.toml"], "no-study.toml"),
    ],
)
def test_bad_input_is_one_message_exit_code_1_and_no_traceback(arguments, expected, tmp_path):
    code, out, err = bestiary(*arguments, cwd=tmp_path)
    assert code == 1 and expected in err
    assert "Traceback" not in err + out
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback():
    code, _, err = bestiary("show", "deepsek-v3", "--debug")
    assert code == 1 and "Traceback" in err


def test_wrong_usage_exits_with_2():
    assert bestiary("show")[0] == 2
    assert bestiary("no-such-verb")[0] == 2


RECIPE = """
schema = 1
model = "deepseek-v3-nano"
set.model.num_hidden_layers = 2
[data]
source = "text"
suffixes = [".txt"]
sequence_length = 32
held_out = 0.5
eval_tokens = 64
[train]
batch_size = 2
steps = 3
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text").mkdir()
    for i in range(12):
        (folder / "text" / f"{i}.txt").write_text(f"the quick brown fox {i} jumps over the lazy dog\n" * 20)
    (folder / "recipe.toml").write_text(RECIPE)
    code, out, err = bestiary("train", "recipe.toml", "--out", "run", cwd=folder)
    assert code == 0, err
    return folder, out


def test_train_says_where_the_run_lies(trained):
    folder, out = trained
    assert "finished" in out and "tokens/s" in out
    assert (folder / "run" / "model" / "config.json").exists()
    assert json.loads((folder / "run" / "summary.json").read_text())["steps"] == 3


def test_train_refuses_to_overwrite_a_run(trained):
    folder, _ = trained
    code, _, err = bestiary("train", "recipe.toml", "--out", "run", cwd=folder)
    assert code == 1 and "run" in err


def test_generate_continues_a_prompt_repeatably(trained):
    folder, _ = trained
    arguments = ("generate", "run/model", "-p", "the quick", "--max-new-tokens", "12", "--temperature", "1", "--seed", "3")
    first, second = (bestiary(*arguments, cwd=folder) for _ in range(2))
    assert first[0] == 0 and first == second and first[1].strip()


def test_generate_with_drafts_writes_the_same_text_and_says_what_was_accepted(trained):
    folder, _ = trained
    arguments = ("generate", "run/model", "-p", "the quick", "--max-new-tokens", "12", "--set", "precision.use=fp32")
    plain, drafted = bestiary(*arguments, cwd=folder), bestiary(*arguments, "--speculative", "mtp", "--draft-tokens", "2", cwd=folder)
    assert drafted[:2] == plain[:2] == (0, plain[1])
    assert "tokens per pass of the model in" in drafted[2] and "drafted tokens accepted: " in drafted[2]
    code, _, err = bestiary(*arguments, "--speculative", "mpt", cwd=folder)
    assert code == 1 and "Did you mean 'mtp'?" in err


def test_generate_from_fp8_blocks_writes_the_text_of_the_decoded_weights(trained):
    folder, _ = trained
    assert bestiary("convert", "run/model", "blocks", "--to", "fp8", cwd=folder)[0] == 0
    arguments = ("generate", "blocks", "-p", "the quick", "--max-new-tokens", "12", "--set")
    texts = [bestiary(*arguments, f"precision.use={use}", cwd=folder, BESTIARY_NATIVE="0") for use in ("fp8", "bf16")]
    assert texts[0] == texts[1] and texts[0][0] == 0 and texts[0][1].strip()


def test_show_and_validate_read_a_trained_folder(trained):
    folder, _ = trained
    code, out, err = bestiary("show", "run/model", "--json", cwd=folder)
    assert code == 0, err
    assert json.loads(out)["manifest"]["model"]["num_hidden_layers"] == 2
