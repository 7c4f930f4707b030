"""Reading a request's JSON: every field has a type, and what is wrong is said by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flashmoe import strict_json
from flashmoe.server.failures import Failure


def parse(body: bytes) -> Fields:
    """The fields of a request.

    Args:
        body: What came.

    Raises:
        Failure: It is not a JSON object.
    """
    try:
        value = strict_json.loads(body)
    except UnicodeDecodeError:
        raise Failure(400, "the body is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Failure(400, f"the body is not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise Failure(400, "the body must be a JSON object")
    return Fields(value)


class Fields:
    """A JSON object; ``null`` is as good as absent.

    Attributes:
        values: The object.
        where: Its place in the request, "" for the whole.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        """Wrap an object.

        Args:
            values: The object.
            where: Its place in the request.
        """
        self.values = values
        self.where = where

    def path(self, name: str) -> str:
        """A field's place in the request."""
        return f"{self.where}.{name}" if self.where else name

    def wrong(self, name: str, what: str) -> Failure:
        """The failure for a field that is not what it must be.

        Args:
            name: The field.
            what: It must be.
        """
        return Failure(400, f"{self.path(name)} must be {what}", param=self.path(name))

    def has(self, name: str) -> bool:
        """Whether the field is there."""
        return self.values.get(name) is not None

    def any(self, name: str) -> Any:
        """A field of any type."""
        return self.values.get(name)

    def text(self, name: str) -> str | None:
        """A string, if it is there."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def required_text(self, name: str) -> str:
        """A string that must be there."""
        value = self.text(name)
        if value is None:
            raise self.wrong(name, "given")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number within bounds, if it is there."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(name, f"a whole number in {low} .. {high}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number within bounds, if it is there."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, "a number")
        if not low <= value <= high:
            raise self.wrong(name, f"in {low:g} .. {high:g}")
        return float(value)

    def object(self, name: str) -> Fields | None:
        """An object, if it is there."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, self.path(name))

    def list(self, name: str) -> Sequence[Any]:
        """A list; empty if it is not there."""
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        return value

    def objects(self, name: str) -> Sequence[Fields]:
        """A list of objects; empty if it is not there."""
        found = []
        for index, value in enumerate(self.list(name)):
            if not isinstance(value, dict):
                raise self.wrong(f"{name}[{index}]", "an object")
            found.append(Fields(value, self.path(f"{name}[{index}]")))
        return found

    def texts(self, name: str, most: int) -> Sequence[str]:
        """A string, or a list of a few; empty if it is not there."""
        value = self.values.get(name)
        if isinstance(value, str) and value:
            return [value]
        found = self.list(name)
        if len(found) > most:
            raise self.wrong(name, f"at most {most} strings")
        if not all(isinstance(one, str) and one for one in found):
            raise self.wrong(name, "a string or a list of strings, none of them empty")
        return found

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        """One of a few strings, if it is there."""
        value = self.text(name)
        if value is not None and value not in choices:
            raise self.wrong(name, f"one of {', '.join(choices)}")
        return value
