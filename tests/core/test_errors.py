"""Messages: where, what, and what to type."""

from __future__ import annotations

from bestiary.core.errors import BestiaryError, Problem, suggest


def test_a_problem_reads_place_fact_remedy():
    assert str(Problem("it is odd.", "a.toml: model", "Use an even one.")) == "a.toml: model: it is odd. Use an even one."


def test_an_error_shows_all_of_its_problems_and_keeps_them():
    error = BestiaryError(Problem("one.", "a"), "two.")
    assert str(error) == "a: one.\ntwo."
    assert error.problems == (Problem("one.", "a"), Problem("two."))


def test_a_far_fetched_name_is_not_suggested_but_all_are_listed():
    assert suggest("zebra", ["mla", "gqa"]) == "Known: gqa, mla."
    assert suggest("glq", ["mla", "gqa"]) == "Did you mean 'gqa'? Known: gqa, mla."
    assert suggest("x", []) == "Known: none."
