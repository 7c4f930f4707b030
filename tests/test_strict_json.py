"""JSON that every other reader takes, too: no more, and no less."""

from __future__ import annotations

import json
import math

import pytest

from flashmoe import strict_json

TAKEN = ['{"a": [1, -0.5, 1e308, true, null, "\\ud83d\\ude00 \\\\ud800"]}', "0", '""', " [] "]
REFUSED = {
    "NaN": "contains NaN",
    '{"a": [-Infinity]}': "contains -Infinity",
    "1e999": "contains 1e999",
    "-1e999": "contains -1e999",
    '"\\ud800"': "half a character",
    '{"\\uDfff": 1}': "half a character",
    "[1,]": "Expecting value",
    "9" * 5000: "digits",
}


@pytest.mark.parametrize("text", TAKEN)
def test_json_is_taken(text: str) -> None:
    assert strict_json.loads(text) == strict_json.loads(text.encode()) == json.loads(text)


@pytest.mark.parametrize(("text", "why"), REFUSED.items(), ids=range(len(REFUSED)))
def test_what_is_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        strict_json.loads(text)


def test_places_are_told_where_they_are_known() -> None:
    with pytest.raises(json.JSONDecodeError):
        strict_json.loads("{")
    with pytest.raises(UnicodeDecodeError):
        strict_json.loads(b'"\xff"')


def test_half_a_character_for_a_caller_who_mends_it() -> None:
    assert strict_json.loads('"\\ud800"', halves=True) == "\ud800"
    with pytest.raises(ValueError, match="NaN"):
        strict_json.loads("NaN", halves=True)


def test_hooks() -> None:
    assert strict_json.loads("[1, 2]", parse_int=float) == [1.0, 2.0]
    assert math.isclose(strict_json.finite("2.5"), 2.5)
