"""Functions that are described as tools, by transformers for the golden file and by flashmoe."""

# ruff: noqa: UP006, UP007, UP035, UP045
from enum import Enum
from typing import Any, Dict, List, Literal, Optional, Tuple, Union


class Unit(Enum):
    CELSIUS = "celsius"
    KELVIN = "kelvin"


def weather(city: str, days: int = 1, metric: bool = True) -> str:
    """Weather for a city.

    Args:
        city: Name of the city, for example
            "Köln"
        days: How many days
        metric: Celsius: yes or no

    Returns:
        The forecast
    """
    return f"{city} {days} {metric}"


def everything(
    a: Union[str, int, float, bool],
    b: Optional[float],
    c: List[Dict[str, int]],
    d: Literal["x", 3],
    e: Unit,
    f: Tuple[int, str],
    g: dict,
    h: Any,
    i: Union[List[int], None],
    j: int | list[str] | None = None,
) -> None:
    """
    Many kinds of arguments.
    In two lines.

    Args:
        a: one

          still one, indented: deeper
        b: two
        c:
            three
        d: four
        e: five
        f: six
        g: seven
        h: eight
        i: nine
        j: ten
    """


def drink(beverage: str) -> list:
    """Order a drink

    Args:
        beverage: What to drink (choices: ["tea ", "coffee"])

    Raises:
        ValueError: Sold out
    """
    return [beverage]


def odd_result(x: "float") -> object:
    """A result without a JSON form.

    Args:
        x: The number

    Returns:
        Something
    """
    return x


def no_arguments():
    """Current time."""


class Service:
    def lookup(self, key: str, default: Optional[List] = None) -> Optional[int]:
        """Look something up.

        Args:
            key: The key
            default: If absent
        """


def no_docstring(x: int): ...


def no_hint(x):
    """Has no hint.

    Args:
        x: The number
    """


def no_description(x: int):
    """Has no description of its argument."""


def custom_type(x: Service):
    """Takes something without a JSON form.

    Args:
        x: The service
    """


def described_with_type(x: int):
    """Writes the type in the docstring.

    Args:
        x (int): The number
    """


GOOD = (weather, everything, drink, odd_result, no_arguments, Service().lookup)
BAD = (no_docstring, no_hint, no_description, custom_type, described_with_type)
