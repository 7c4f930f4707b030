"""The kinds of tools: the names, descriptions and parameters that their schemas may have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from corpus.tool_uses import (
    Use,
    calculator,
    clock,
    convert,
    currency,
    dice,
    file,
    lamp,
    message,
    person,
    reminder,
    search,
    shopping,
    song,
    stock,
    timer,
    train,
    translate,
    weather,
)
from corpus.voice import Voice


@dataclass(frozen=True)
class Kind:
    """One kind of tool: names it may have, what it does, its parameters and how it is used.

    ``params`` holds (key, possible names, type, descriptions, required).
    """

    names: list[str]
    about: list[str]
    params: list[tuple[str, list[str], str, list[str], bool]]
    use: Callable[[Voice], Use]


STRING, INTEGER, NUMBER = "string", "integer", "number"
CITY = (
    "city",
    ["city", "city", "city", "location", "place", "town"],
    STRING,
    ["Name of the city", "The city", "City name", "Where", "Place to look up"],
    True,
)
KINDS: list[Kind] = [
    Kind(
        [
            "get_weather",
            "get_weather",
            "get_weather",
            "weather",
            "get_current_weather",
            "weather_forecast",
            "fetch_weather",
        ],
        [
            "Get the weather for a city",
            "Weather for a city",
            "Current weather in a place",
            "Returns the weather of a city",
            "Get the current weather",
        ],
        [
            CITY,
            (
                "days",
                ["days", "days", "num_days"],
                INTEGER,
                ["Number of days", "How many days", "Days of the forecast"],
                False,
            ),
        ],
        weather,
    ),
    Kind(
        ["get_time", "current_time", "get_current_time", "clock", "time_in_city"],
        ["Get the current time in a city", "Local time of a city", "What time it is somewhere"],
        [CITY],
        clock,
    ),
    Kind(
        ["calculator", "calculator", "calculate", "compute", "evaluate", "math"],
        [
            "Evaluate an arithmetic expression",
            "A calculator",
            "Work out a sum",
            "Compute a mathematical expression",
        ],
        [
            (
                "expression",
                ["expression", "expression", "expr", "formula", "input"],
                STRING,
                ["The expression, such as 2 + 3", "What to compute", "Arithmetic expression"],
                True,
            )
        ],
        calculator,
    ),
    Kind(
        ["convert_units", "unit_converter", "convert", "convert_unit"],
        ["Convert a value from one unit to another", "Unit conversion", "Change units"],
        [
            (
                "value",
                ["value", "amount", "number"],
                NUMBER,
                ["The value", "Number to convert"],
                True,
            ),
            (
                "from",
                ["from", "from_unit", "source"],
                STRING,
                ["Unit to convert from", "Source unit"],
                True,
            ),
            (
                "to",
                ["to", "to_unit", "target"],
                STRING,
                ["Unit to convert to", "Target unit"],
                True,
            ),
        ],
        convert,
    ),
    Kind(
        ["convert_currency", "exchange", "currency_converter"],
        ["Convert money between currencies", "Exchange rates", "Convert an amount of money"],
        [
            ("amount", ["amount", "value"], NUMBER, ["Amount of money", "How much"], True),
            (
                "from",
                ["from", "from_currency", "source"],
                STRING,
                ["Currency code to convert from"],
                True,
            ),
            ("to", ["to", "to_currency", "target"], STRING, ["Currency code to convert to"], True),
        ],
        currency,
    ),
    Kind(
        ["search", "web_search", "search_web", "lookup", "find"],
        ["Search the web", "Find information", "Look something up on the internet"],
        [
            (
                "query",
                ["query", "query", "q", "text", "keywords"],
                STRING,
                ["What to search for", "The search words"],
                True,
            )
        ],
        search,
    ),
    Kind(
        ["set_timer", "start_timer", "timer"],
        ["Start a timer", "Set a kitchen timer"],
        [
            (
                "minutes",
                ["minutes", "duration", "time"],
                INTEGER,
                ["Length in minutes", "How many minutes"],
                True,
            )
        ],
        timer,
    ),
    Kind(
        ["add_reminder", "set_reminder", "remind", "create_reminder"],
        ["Create a reminder", "Remind the user of something"],
        [
            (
                "text",
                ["text", "task", "message", "title"],
                STRING,
                ["What to remember", "The task"],
                True,
            ),
            ("time", ["time", "at", "when"], STRING, ["Time of day", "When, as HH:MM"], True),
        ],
        reminder,
    ),
    Kind(
        ["send_message", "send_text", "message", "write_message"],
        ["Send a message to a person", "Send a text message"],
        [
            (
                "to",
                ["to", "recipient", "name", "person"],
                STRING,
                ["Who gets the message", "Name of the person"],
                True,
            ),
            (
                "text",
                ["text", "message", "body", "content"],
                STRING,
                ["The message", "What to send"],
                True,
            ),
        ],
        message,
    ),
    Kind(
        ["translate", "translate_text", "translator"],
        ["Translate a text", "Translate into another language"],
        [
            (
                "text",
                ["text", "sentence", "input"],
                STRING,
                ["Text to translate", "The text"],
                True,
            ),
            (
                "language",
                ["language", "target_language", "to"],
                STRING,
                ["Target language", "Language to translate into"],
                True,
            ),
        ],
        translate,
    ),
    Kind(
        ["play_song", "play_music", "play"],
        ["Play a song", "Play music"],
        [
            (
                "title",
                ["title", "song", "name", "track"],
                STRING,
                ["Title of the song", "What to play"],
                True,
            )
        ],
        song,
    ),
    Kind(
        ["set_light", "switch_light", "control_light", "lamp"],
        ["Switch a light", "Turn a lamp on or off"],
        [
            ("room", ["room", "location", "place"], STRING, ["The room", "Which room"], True),
            ("state", ["state", "power", "status"], STRING, ["on or off"], True),
        ],
        lamp,
    ),
    Kind(
        ["add_to_list", "add_item", "shopping_list"],
        ["Add something to the shopping list", "Put an item on the list"],
        [
            ("item", ["item", "name", "product"], STRING, ["What to add", "The item"], True),
            ("quantity", ["quantity", "count", "amount"], INTEGER, ["How many"], True),
        ],
        shopping,
    ),
    Kind(
        ["roll_dice", "dice", "throw_dice"],
        ["Roll some dice", "Throw dice"],
        [
            ("sides", ["sides", "faces"], INTEGER, ["Number of sides"], True),
            ("count", ["count", "number", "n"], INTEGER, ["How many dice"], True),
        ],
        dice,
    ),
    Kind(
        ["read_file", "open_file", "get_file", "cat"],
        ["Read a file", "Returns the content of a file"],
        [
            (
                "path",
                ["path", "file", "filename", "name"],
                STRING,
                ["Path of the file", "File name"],
                True,
            )
        ],
        file,
    ),
    Kind(
        ["get_stock_price", "stock_price", "get_price"],
        ["Price of a stock", "Get the current price of a share"],
        [
            (
                "symbol",
                ["symbol", "ticker", "stock"],
                STRING,
                ["Symbol of the stock", "Ticker symbol"],
                True,
            )
        ],
        stock,
    ),
    Kind(
        ["find_contact", "get_contact", "lookup_contact", "phone_book"],
        ["Find a person in the contacts", "Look up a phone number"],
        [("name", ["name", "person", "contact"], STRING, ["Name of the person", "Who"], True)],
        person,
    ),
    Kind(
        ["find_train", "next_train", "train_search", "get_connection"],
        ["Find a train", "Search for a train connection"],
        [
            (
                "from",
                ["from", "origin", "start"],
                STRING,
                ["Station of departure", "Where the trip starts"],
                True,
            ),
            (
                "to",
                ["to", "destination", "end"],
                STRING,
                ["Station of arrival", "Where the trip ends"],
                True,
            ),
        ],
        train,
    ),
]
