"""Merging manifest data, and reading `--set`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestiary.core.errors import BestiaryError
from bestiary.core.tree import Leaf, leaves, merge, parse_toml, plain, plant, settings, split_path

KEYS = st.sampled_from(["a", "b", "c-d", "0:3"])
TABLES = st.recursive(
    st.dictionaries(KEYS, st.integers(0, 3), max_size=3),
    lambda inner: st.dictionaries(KEYS, inner | st.integers(0, 3), max_size=3),
    max_leaves=6,
)


def merged(*tables):
    tree = {}
    for number, table in enumerate(tables):
        tree = merge(tree, plant(table, f"file {number}"))
    return tree


def test_tables_merge_deeply_and_the_later_value_wins():
    tree = merged({"block": {"ffn": {"use": "moe", "size": 1, "k": 2}}}, {"block": {"ffn": {"size": 3}}})
    assert plain(tree) == {"block": {"ffn": {"use": "moe", "size": 3, "k": 2}}}


def test_a_table_whose_use_changes_starts_afresh_at_any_depth():
    tree = merged(
        {"block": {"ffn": {"use": "moe", "k": 2, "router": {"use": "sigmoid", "groups": 8}}}},
        {"block": {"ffn": {"router": {"use": "softmax"}}}},
    )
    assert plain(tree)["block"]["ffn"] == {"use": "moe", "k": 2, "router": {"use": "softmax"}}
    assert plain(merge(tree, plant({"block": {"ffn": {"use": "dense"}}}, "child")))["block"]["ffn"] == {"use": "dense"}


def test_a_repeated_use_keeps_the_other_options():
    assert plain(merged({"use": "moe", "k": 2}, {"use": "moe", "size": 3})) == {"use": "moe", "k": 2, "size": 3}


def test_a_record_whose_type_changes_starts_afresh_but_a_component_with_an_option_called_type_does_not():
    assert plain(merged({"type": "yarn", "beta": 1}, {"type": "linear", "factor": 2})) == {"type": "linear", "factor": 2}
    assert plain(merged({"use": "x", "type": "a", "k": 1}, {"type": "b"})) == {"use": "x", "type": "b", "k": 1}


def test_a_value_replaces_a_table_and_a_table_a_value():
    assert plain(merged({"objective": {"mtp": {"depth": 1}}}, {"objective": {"mtp": False}})) == {"objective": {"mtp": False}}
    assert plain(merged({"scaling": False}, {"scaling": {"type": "yarn"}})) == {"scaling": {"type": "yarn"}}


@given(TABLES)
def test_planting_and_reading_back_changes_nothing(table):
    assert plain(plant(table, "file")) == table


@given(TABLES, TABLES)
def test_merging_leaves_its_inputs_alone_and_is_idempotent(base, over):
    below, above = plant(base, "base"), plant(over, "over")
    once = merge(below, above)
    assert plain(below) == base
    assert plain(above) == over
    assert merge(once, above) == once


@given(TABLES)
def test_every_leaf_remembers_its_file_and_a_path_that_leads_back_to_it(table):
    tree = plant(table, "file")
    for leaf in leaves(tree):
        node = tree
        for key in split_path(leaf.path):
            node = node[key]
        assert node is leaf
        assert leaf.source == "file"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-6", 1e-6),
        ("true", True),
        ('"7"', "7"),
        ("gqa", "gqa"),
        ("[1, 2]", [1, 2]),
        ("2.4.1", "2.4.1"),
        ("", ""),
        ("a=b", "a=b"),
    ],
)
def test_set_values_are_read_as_toml_and_otherwise_as_strings(text, value):
    assert plain(settings([f"a.b={text}"])) == {"a": {"b": value}}


def test_set_accepts_an_inline_table():
    assert plain(settings(["rope.scaling={type='linear', factor=2.0}"])) == {"rope": {"scaling": {"type": "linear", "factor": 2.0}}}


@pytest.mark.parametrize("path", ["block.at.0:3.ffn.size", 'block.at."0:3".ffn.size'])
def test_slice_keys_may_be_quoted_or_bare(path):
    assert plain(settings([f"{path}=96"])) == {"block": {"at": {"0:3": {"ffn": {"size": 96}}}}}


def test_quoted_keys_may_hold_dots():
    assert split_path('objective."v1.5".weight') == ["objective", "v1.5", "weight"]


def test_later_settings_win_and_name_themselves_as_their_source():
    tree = settings(["a.b=1", "a.c=2", "a.b=3"])
    assert plain(tree) == {"a": {"b": 3, "c": 2}}
    assert tree["a"]["b"] == Leaf(3, "--set a.b=3", "a.b")


def test_settings_may_be_a_mapping_whose_values_are_taken_as_they_are():
    assert plain(settings({"a.b": "3", "a.c": {"d": None}})) == {"a": {"b": "3", "c": {"d": None}}}


@pytest.mark.parametrize("item", ["block.ffn", "=3", "  =3"])
def test_a_setting_without_path_or_value_shows_how_to_write_one(item):
    with pytest.raises(BestiaryError, match=r"expected path=value, like --set block\.attention\.use=gqa"):
        settings([item])


@pytest.mark.parametrize("path", ["a..b", ".a", "a.", 'a."b'])
def test_a_broken_path_is_refused(path):
    with pytest.raises(BestiaryError, match="is no dotted path"):
        split_path(path)


def test_text_that_is_not_toml_names_file_and_line():
    with pytest.raises(BestiaryError, match=r"ablate\.toml: this is not valid TOML: .*line 2"):
        parse_toml("schema = 1\nuse = mla\n", "ablate.toml")
