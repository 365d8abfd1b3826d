"""Options: the same checks, whether they come as strings or as values."""

import pytest

from clip4str_service.errors import InvalidRequestError
from clip4str_service.options import Detail, Options, Priority, options_from_strings, options_from_values
from clip4str_service.readings import ReadOptions


def test_defaults() -> None:
    options = options_from_strings({})
    assert options == Options()
    assert (options.detail, options.priority) == (Detail.CHARACTERS, Priority.INTERACTIVE)
    assert (options.top_k, options.charset, options.timeout_ms) == (0, None, None)


def test_strings_and_values_give_the_same() -> None:
    strings = {"detail": "text", "top_k": "5", "charset": "a{b}", "priority": "bulk", "timeout_ms": "600000"}
    values = {**strings, "top_k": 5, "timeout_ms": 600_000}
    assert options_from_strings(strings) == options_from_values(values)
    assert options_from_strings(strings).read_options() == ReadOptions(top_k=5, charset="a{b}")


@pytest.mark.parametrize(
    "charset", ["full", "alphanumeric", "digits", "lowercase", "uppercase", "0-9", "ABC"]
)
def test_charsets_by_name_or_by_characters(charset: str) -> None:
    assert options_from_strings({"charset": charset}).charset == charset


@pytest.mark.parametrize(
    ("name", "value", "mentions"),
    [
        ("detail", "words", "'text' or 'characters'"),
        ("top_k", "6", "5"),
        ("top_k", "-1", "0"),
        ("top_k", "many", "integer"),
        ("top_k", "1.5", "integer"),
        ("charset", "", "empty"),
        ("charset", "é", "'é'"),
        ("charset", "a" * 129, "128"),
        ("priority", "urgent", "'interactive' or 'bulk'"),
        ("timeout_ms", "0", "1"),
        ("timeout_ms", "600001", "600000"),
        ("colour", "red", "no such field"),
    ],
)
def test_wrong_option_is_named(name: str, value: str, mentions: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        options_from_strings({name: value})
    (violation,) = caught.value.violations
    assert violation.field == name
    assert mentions in violation.description


def test_wrong_value_is_named_by_its_path() -> None:
    with pytest.raises(InvalidRequestError, match=r"options\.top_k: .*; options\.timeout_ms: "):
        options_from_values({"top_k": 7, "timeout_ms": -1})


def test_long_lists_and_names_of_wrong_fields_are_cut() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        options_from_strings({f"{number}{'x' * 1000}": "" for number in range(100)})
    assert len(caught.value.violations) == 10
    assert len(caught.value.detail) < 1000
