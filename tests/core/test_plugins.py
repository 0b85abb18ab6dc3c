"""Finding plugins: built-in and installed ones, and everything that can be wrong with the latter."""

from __future__ import annotations

import sys
import textwrap
from types import SimpleNamespace

import pytest

import bestiary
from bestiary.core import hookspecs, plugins
from bestiary.core.component import Component, Options
from bestiary.core.errors import BestiaryError
from bestiary.core.plugins import Origin, Plugins, discover


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(name, code, version="1.0")`: a distribution with one plugin, on `sys.path`."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(name: str, code: str, version: str = "1.0", entry: str = ""):
        module = f"plugin_{name.replace('-', '_')}"
        monkeypatch.delitem(sys.modules, module, raising=False)
        (tmp_path / f"{module}.py").write_text(HEAD + textwrap.dedent(code))
        info = tmp_path / f"dist_{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dist-{name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[bestiary]\n{entry or name} = {module}\n")
        return module

    return put


HEAD = """
from bestiary.core.component import Component, Options
from bestiary.core.hookspecs import hookimpl, hookspec
BESTIARY_API = 1
"""
FFN = """
@hookimpl
def bestiary_ffn():
    return Component("{}", Options, lambda options, site: None)
"""


def test_the_built_ins_fill_every_slot():
    found = discover()
    assert set(found.slots) == {"attention", "ffn", "objective", "parallelism", "precision", "router"}
    assert all(found.slots.values())
    assert [origin.plugin for origin in found.origins][: len(plugins.BUILTIN)] == list(plugins.BUILTIN)
    assert not found.broken


def test_an_installed_plugin_is_found_by_name_and_knows_where_it_comes_from(install):
    module = install("relu", FFN.format("relu2"), "2.5")
    component = discover().find("ffn", "relu2")
    assert component.origin == Origin("relu", "dist-relu", "2.5", module)
    assert plugins.distributions([component]) == {"dist-relu": "2.5"}
    assert discover().find("ffn", "dense").origin.distribution == "bestiary"


def test_what_is_installed_does_not_change_what_was_there(install):
    before = discover()
    install("relu", FFN.format("relu2"))
    after = discover()
    assert {slot: set(names) for slot, names in after.slots.items()} == {
        slot: set(names) | ({"relu2"} if slot == "ffn" else set()) for slot, names in before.slots.items()
    }


def test_a_plugin_may_offer_several_components(install):
    install("two", '@hookimpl\ndef bestiary_ffn():\n    return [Component(name, Options, print) for name in ("a", "b")]\n')
    assert {"a", "b"} <= set(discover().slots["ffn"])


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_a_name_that_is_taken_stops_the_host_and_names_both_plugins(install, name):
    install("greedy", FFN.format(name), "3.0")
    with pytest.raises(BestiaryError) as caught:
        discover()
    message = str(caught.value)
    assert f"ffn component '{name}' is offered by both" in message
    assert "greedy (dist-greedy 3.0)" in message
    assert "(bestiary " in message
    assert message.endswith("BESTIARY_BLOCK=greedy.")


def test_blocking_the_second_resolves_a_duplicate(install, monkeypatch):
    install("greedy", FFN.format("dense"))
    monkeypatch.setenv("BESTIARY_BLOCK", " greedy ,other")
    found = discover()
    assert found.blocked == ["greedy"]
    assert found.find("ffn", "dense").origin.plugin == "baseline"


def test_a_built_in_can_be_blocked_and_a_failed_search_says_so(monkeypatch):
    monkeypatch.setenv("BESTIARY_BLOCK", "attention_mla")
    with pytest.raises(BestiaryError, match=r"No attention component is called 'mla'\. .*Blocked by BESTIARY_BLOCK: attention_mla\."):
        discover().find("attention", "mla")


def test_a_plugin_that_offers_one_name_twice_is_refused(install):
    install("twice", '@hookimpl\ndef bestiary_ffn():\n    return [Component("same", Options, print)] * 2\n')
    found = discover()
    assert found.broken["twice"] == "twice (dist-twice 1.0) offers two ffn components called 'same'. Rename one of them."
    assert "same" not in found.slots["ffn"]


def test_two_plugins_of_one_name_are_not_mixed_up(install):
    install("first", FFN.format("one"), entry="moe")
    assert "Two plugins are called 'moe': moe (bestiary " in discover().broken["moe"]


BROKEN = {
    "import": ("import nothing_of_this_name\n", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    "syntax": ("def\n", "SyntaxError"),
    "hook": ("@hookimpl\ndef bestiary_atention(): ...\n", "'bestiary_atention', which is no hook. Did you mean 'bestiary_attention'?"),
    "old": ("BESTIARY_API = 0\n", "speaks plugin API 0, this bestiary speaks 1. Its module must say BESTIARY_API = 1"),
    "silent": ("del BESTIARY_API\n", "speaks plugin API None"),
    "wrong": ("@hookimpl\ndef bestiary_ffn():\n    return 'dense'\n", "must return a Component or a list of them; it returned 'd'"),
    "raising": ("@hookimpl\ndef bestiary_ffn():\n    raise OSError('no kernel')\n", "OSError: no kernel"),
    "greedy": ("@hookimpl\ndef bestiary_ffn(site):\n    return None\n", "PluginValidationError"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_does_not_stop_the_host_and_is_shown_when_a_name_is_not_found(install, name):
    code, why = BROKEN[name]
    install(name, code)
    found = discover()
    assert why in found.broken[name]
    assert name not in [origin.plugin for origin in found.origins]
    assert found.find("ffn", "dense")
    with pytest.raises(BestiaryError, match=rf"No ffn component is called 'fast'\. .*Plugins that did not load: {name} \("):
        found.find("ffn", "fast")


def test_a_broken_plugin_leaves_no_trace_in_the_slots(install):
    install("half", FFN.format("half") + "@hookimpl\ndef bestiary_atention():\n    return None\n")
    install("later", FFN.format("whole"))
    found = discover()
    assert set(found.slots) == set(Plugins().slots) | {"router"}
    assert "half" not in found.slots["ffn"]
    assert "whole" in found.slots["ffn"]


OPENS = """
import sys
@hookspec
def bestiary_sampler():
    "Chooses."
BESTIARY_HOOKSPECS = (sys.modules[__name__],)
"""
FILLS = '@hookimpl\ndef bestiary_sampler():\n    return Component("nucleus", Options, print)\n'


@pytest.mark.parametrize(("opener", "filler"), [("a-opens", "b-fills"), ("z-opens", "b-fills")])
def test_a_plugin_may_open_a_slot_that_another_fills_whichever_is_found_first(install, opener, filler):
    install(opener, OPENS)
    install(filler, FILLS)
    found = discover()
    assert not found.broken
    assert found.find("sampler", "nucleus").origin.plugin == filler


def test_an_unknown_slot_names_the_nearest():
    with pytest.raises(BestiaryError, match=r"There is no slot called 'atention'\. Did you mean 'attention'\?"):
        discover().find("atention", "mla")
    with pytest.raises(BestiaryError, match=r"There is no slot called 'routers'\. Did you mean 'router'\?"):
        bestiary.list_components("routers")


def test_list_components_gives_sorted_names():
    assert bestiary.list_components("attention") == sorted(discover().slots["attention"])
    assert bestiary.list_components()["router"] == ["sigmoid-group", "softmax-group", "softmax-topk"]


def test_a_manifest_can_be_resolved_with_plugins_of_ones_own(tiny):
    found = discover()
    component = Component("mine", Options, lambda options, site: None)
    module = SimpleNamespace(BESTIARY_API=hookspecs.API, bestiary_ffn=hookspecs.hookimpl(lambda: component))
    found.register(module, Origin("mine", "mine", "0", "here"))
    assert bestiary.resolve(tiny(ffn={"use": "mine"}), plugins=found).layers[0].ffn.use == "mine"
    with pytest.raises(BestiaryError, match="No ffn component is called 'mine'"):
        bestiary.resolve(tiny(ffn={"use": "mine"}))
