"""What users ask tools to do: the wording, the arguments, the result and the answer."""
# ruff: noqa: E501, SIM905

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from corpus.facts import COUNTRIES
from corpus.smalltalk import FIRST_NAMES
from corpus.voice import Voice

Args = dict[str, Any]

CITIES = [row[1] for row in COUNTRIES] + (
    "New York,Los Angeles,Chicago,Boston,Seattle,Toronto,Montreal,Hamburg,Munich,Cologne,Milan,Naples,Venice,Barcelona,Seville,Lyon,Marseille,Nice,Geneva,Zurich,Basel,"
    "Oxford,Cambridge,Manchester,Liverpool,Glasgow,Edinburgh,Dublin,Antwerp,Rotterdam,Gothenburg,Bergen,Krakow,Kyoto,Osaka,Shanghai,Mumbai,Sydney,Melbourne,Auckland,Lagos,Cape Town,Istanbul,Dubai,Singapore,Hong Kong,San Francisco"
).split(",")
WEATHER = [
    "sunny",
    "cloudy",
    "rainy",
    "windy",
    "snowy",
    "foggy",
    "clear",
    "stormy",
    "partly cloudy",
    "light rain",
]
TOPICS = "music sports science history cooking travel books films gardens space robots health birds money art trains".split()
LANGUAGES = "French German Spanish Italian Japanese Chinese Polish Dutch Swedish Greek Turkish Arabic".split()
ROOMS = ["kitchen", "bedroom", "living room", "bathroom", "garage", "hall", "office", "garden"]
ITEMS = "milk bread eggs apples cheese rice tea coffee butter tomatoes soap flour sugar bananas pasta salt".split()
TASKS = [
    "water the plants",
    "call the doctor",
    "buy milk",
    "feed the cat",
    "pay the rent",
    "send the letter",
    "wash the car",
    "clean the kitchen",
    "take out the rubbish",
    "read the report",
    "call my mother",
    "go for a walk",
]
PAIRS = [
    ("kilometres", "miles", 0.6214),
    ("miles", "kilometres", 1.6093),
    ("kilograms", "pounds", 2.2046),
    ("pounds", "kilograms", 0.4536),
    ("metres", "feet", 3.2808),
    ("feet", "metres", 0.3048),
    ("litres", "gallons", 0.2642),
    ("inches", "centimetres", 2.54),
    ("hours", "minutes", 60.0),
    ("weeks", "days", 7.0),
]
CURRENCIES = [
    ("euros", "EUR"),
    ("dollars", "USD"),
    ("pounds", "GBP"),
    ("yen", "JPY"),
    ("francs", "CHF"),
    ("crowns", "SEK"),
]


@dataclass(frozen=True)
class Use:
    """One call of a tool: what the user says, the arguments, the result and its words."""

    ask: str
    args: Args
    result: Any
    answer: str


def place(v: Voice) -> str:
    """Returns a city, sometimes an invented one so that names are copied and not recalled."""
    return v.name() if v.chance(0.3) else v.pick(CITIES)


def phrase(v: Voice) -> str:
    """Returns a short invented or everyday title of one to three words."""
    words = "blue silver river old little night garden summer green golden city rain snow moon last first red quiet".split()
    nouns = "song road house tree star bird story letter door dream island winter window dance light train".split()
    if v.chance(0.4):
        return " ".join(v.name() for _ in range(v.number(1, 2)))
    return f"{v.pick(words)} {v.pick(nouns)}".title()


def weather(v: Voice) -> Use:
    city, sky, degrees = place(v), v.pick(WEATHER), v.number(-10, 36)
    if v.chance(0.3):
        days = v.number(2, 9)
        highs = [degrees + v.number(-4, 4) for _ in range(3)]
        ask = v.say(
            "[What will the weather be like in {c} for the next {d} days?|Give me the {d} day forecast for {c}.|I need a forecast for {c} for {d} days.|How will the weather in {c} be over {d} days?|Weather forecast for {c}, {d} days]",
            c=city,
            d=days,
        )
        answer = v.say(
            "[The forecast for {c}|In {c} the next days]: [mostly {s}|{s}], with [highs between {a} and {b}|temperatures from {a} to {b}] degrees.",
            c=city,
            s=sky,
            a=min(highs),
            b=max(highs),
        ).replace("The forecast for", "Here is the forecast for")
        return Use(
            ask,
            {"city": city, "days": days},
            {"city": city, "days": days, "condition": sky, "low": min(highs), "high": max(highs)},
            answer,
        )
    ask = v.say(
        "[What is the weather like in {c}?|What's the weather in {c}[ today| now|]?|How is the weather in {c}[ today|]?|Is it [cold|warm|raining|sunny] in {c}[ today|]?|weather in {c}|Tell me the weather in {c}.|Do I need [an umbrella|a coat] in {c}?|How [warm|cold|hot] is it in {c}?|I am going to {c}. What is the weather like[ there|]?|Check the weather [in|for] {c}[, please|].]",
        c=city,
    )
    key = v.pick(["temperature", "temperature_c", "temp"])
    answer = v.say(
        "[It is {s} in {c}[ right now|], with {t} degrees.|The weather in {c} is {s}, and the temperature is {t} degrees.|In {c} it is {s} at {t} degrees[ Celsius|].]",
        c=city,
        s=sky,
        t=degrees,
    )
    result = (
        {key: degrees, "condition": sky}
        if v.chance(0.5)
        else {"city": city, "condition": sky, key: degrees}
    )
    return Use(ask, {"city": city}, result, answer)


def clock(v: Voice) -> Use:
    city, hour, minute = place(v), v.number(0, 23), v.number(0, 59)
    time = f"{hour:02d}:{minute:02d}"
    ask = v.say(
        "[What time is it in {c}[ now|]?|What is the time in {c}?|Tell me the [current |]time in {c}.|time in {c}|How late is it in {c}?|Can you tell me the time in {c}?]",
        c=city,
    )
    return Use(
        ask,
        {"city": city},
        {"city": city, "time": time} if v.chance(0.5) else {"time": time},
        v.say(
            "[It is {t} in {c}[ now|].|The time in {c} is {t}.|In {c} it is {t} [now|].]",
            t=time,
            c=city,
        ).replace(" .", "."),
    )


def calculator(v: Voice) -> Use:
    a, b = v.number(11, 9999), v.number(2, 999)
    sign = v.pick("+-*")
    word = {"+": "plus", "-": "minus", "*": "times"}[sign]
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    said = v.say("[{a} {w} {b}|{a} {w} {b}|{a} {s} {b}]", a=a, b=b, w=word, s=sign)
    ask = v.say(
        "[What is {e}?|How much is {e}?|Calculate {e}.|Please work out {e}.|Compute {e}[ for me|].|{e}|{e} = ?|Can you calculate {e}?]",
        e=said,
    )
    return Use(
        ask,
        {"expression": f"{a} {sign} {b}"},
        {"result": result} if v.chance(0.6) else result,
        v.say(
            "[{a} {w} {b} is {r}.|The result is {r}.|The answer is {r}.]",
            a=a,
            b=b,
            w=word,
            r=result,
        ),
    )


def convert(v: Voice) -> Use:
    source, target, factor = v.pick(PAIRS)
    value = v.number(1, 500)
    result = round(value * factor, 2)
    ask = v.say(
        "[Convert {n} {a} to {b}.|How many {b} are {n} {a}?|What is {n} {a} in {b}?|How much is {n} {a} in {b}?|{n} {a} in {b}]",
        n=value,
        a=source,
        b=target,
    )
    return Use(
        ask,
        {"value": value, "from": source, "to": target},
        {"result": result, "unit": target} if v.chance(0.5) else {"result": result},
        v.say(
            "[{n} {a} are {r} {b}.|{n} {a} is about {r} {b}.|That is {r} {b}.]",
            n=value,
            a=source,
            r=result,
            b=target,
        ),
    )


def currency(v: Voice) -> Use:
    (name_a, a), (name_b, b) = v.some(CURRENCIES, 2)
    amount, result = v.number(1, 900), v.number(100, 99999) / 100
    ask = v.say(
        "[Convert {n} {a} to {b}.|How much is {n} {a} in {b}?|What are {n} {a} worth in {b}?|Change {n} {a} into {b}.]",
        n=amount,
        a=v.pick([name_a, a]),
        b=v.pick([name_b, b]),
    )
    return Use(
        ask,
        {"amount": amount, "from": a, "to": b},
        {"amount": result, "currency": b},
        v.say(
            "[{n} {a} are {r} {b}.|{n} {a} is {r} {b} at the moment.]", n=amount, a=a, r=result, b=b
        ),
    )


def search(v: Voice) -> Use:
    query = (
        v.say(
            "[best|cheap|old|new] {t} [in|near] {c}",
            t=v.pick(["restaurants", "hotels", "museums", "parks", "bookshops", "cafes"]),
            c=place(v),
        )
        if v.chance(0.5)
        else v.say("[how to|history of|news about|facts about] {t}", t=v.pick([*TOPICS, v.name()]))
    )
    hits = [phrase(v), phrase(v)]
    ask = v.say(
        "[Search for {q}.|Search the web for {q}.|Look up {q}[, please|].|Find {q}[ for me|].|Can you search for {q}?]",
        q=query,
    )
    return Use(
        ask,
        {"query": query},
        {"results": hits},
        v.say(
            "[I found two results: {a} and {b}.|The search found {a} and {b}.|Here are the first results: {a}, {b}.]",
            a=hits[0],
            b=hits[1],
        ),
    )


def timer(v: Voice) -> Use:
    minutes = v.number(1, 90)
    ask = v.say(
        "[Set a timer for {n} minutes.|Start a {n} minute timer.|Timer for {n} minutes, please.|Wake me in {n} minutes.|Remind me in {n} minutes.]",
        n=minutes,
    )
    return Use(
        ask,
        {"minutes": minutes},
        {"status": "ok", "minutes": minutes},
        v.say(
            "[The timer is set for {n} minutes.|Done! Your timer will ring in {n} minutes.|I have set a timer for {n} minutes.]",
            n=minutes,
        ),
    )


def reminder(v: Voice) -> Use:
    task, time = v.pick(TASKS), f"{v.number(6, 22):02d}:{v.pick(['00', '15', '30', '45'])}"
    ask = v.say(
        "[Remind me to {t} at {h}.|Please remind me at {h} to {t}.|Set a reminder for {h}: {t}.|Don't let me forget to {t} at {h}.]",
        t=task,
        h=time,
    )
    return Use(
        ask,
        {"text": task, "time": time},
        {"status": v.pick(["ok", "saved", "created"])},
        v.say(
            "[I will remind you to {t} at {h}.|Done! At {h} I will remind you to {t}.|Your reminder for {h} is saved.]",
            t=task,
            h=time,
        ),
    )


def message(v: Voice) -> Use:
    name = v.pick(FIRST_NAMES) if v.chance(0.6) else v.name()
    text = v.say(
        "[I will be late|I am on my way|See you at {n}|Happy birthday|Dinner is ready|Call me back|The meeting is at {n}|I am at home|Thank you for the gift|The {w} has arrived]",
        n=v.number(1, 12),
        w=v.pick(ITEMS),
    )
    ask = v.say(
        '[Send a message to {n}: {t}|Tell {n}: {t}|Write to {n}: {t}|Text {n} "{t}"|Send {n} the message "{t}".]',
        n=name,
        t=text,
    )
    return Use(
        ask,
        {"to": name, "text": text},
        {"status": v.pick(["sent", "ok", "delivered"])},
        v.say(
            "[Your message to {n} has been sent.|I have sent your message to {n}.|Done! {n} will get your message.]",
            n=name,
        ),
    )


def translate(v: Voice) -> Use:
    text = v.say(
        "[good morning|good night|thank you|where is the station|I am hungry|the {w} is fresh|my name is {n}|how much is the {w}|see you tomorrow|a table for two]",
        w=v.pick(ITEMS),
        n=v.pick(FIRST_NAMES),
    )
    language, result = v.pick(LANGUAGES), f"{v.name().lower()} {v.name().lower()}"
    ask = v.say(
        '[Translate "{t}" into {l}.|How do you say "{t}" in {l}?|What is "{t}" in {l}?|Please translate "{t}" to {l}.]',
        t=text,
        l=language,
    )
    return Use(
        ask,
        {"text": text, "language": language},
        {"translation": result},
        v.say(
            '[In {l}, "{t}" is "{r}".|"{t}" means "{r}" in {l}.|The translation is "{r}".]',
            l=language,
            t=text,
            r=result,
        ),
    )


def song(v: Voice) -> Use:
    title = phrase(v)
    ask = v.say(
        "[Play {t}.|Play the song {t}[, please|].|I want to hear {t}.|Can you play {t}?|Put on {t}.]",
        t=title,
    )
    return Use(
        ask,
        {"title": title},
        {"status": "playing", "title": title},
        v.say("[Now playing {t}.|I am playing {t}. Enjoy!|{t} is playing now.]", t=title),
    )


def lamp(v: Voice) -> Use:
    room, state = v.pick(ROOMS), v.pick(["on", "off"])
    ask = v.say(
        "[Turn {s} the [light|lamp] in the {r}.|Turn the {r} light {s}.|Switch {s} the light in the {r}[, please|].|[Light|Lights] {s} in the {r}]",
        s=state,
        r=room,
    )
    return Use(
        ask,
        {"room": room, "state": state},
        {"ok": True},
        v.say(
            "[The light in the {r} is {s} now.|Done, the {r} light is {s}.|I have turned {s} the light in the {r}.]",
            r=room,
            s=state,
        ),
    )


def shopping(v: Voice) -> Use:
    item, count = v.pick(ITEMS), v.number(1, 12)
    ask = v.say(
        "[Add {n} {i} to my [shopping |]list.|Put {n} {i} on the [shopping |]list.|I need {n} {i}. Add it to the list.]",
        n=count,
        i=item,
    )
    return Use(
        ask,
        {"item": item, "quantity": count},
        {"status": "added", "items": v.number(1, 20)},
        v.say(
            "[I have added {n} {i} to your list.|Done! {n} {i} is on your list now.|Your list now has {n} {i}.]",
            n=count,
            i=item,
        ),
    )


def dice(v: Voice) -> Use:
    sides, count = v.pick([4, 6, 8, 10, 12, 20]), v.number(1, 5)
    rolls = [v.number(1, sides) for _ in range(count)]
    ask = v.say(
        "[Roll {c} dice with {s} sides.|Throw {c} dice with {s} sides.|Please roll {c} {s}-sided dice.]",
        c=count,
        s=sides,
    )
    shown = ", ".join(map(str, rolls))
    return Use(
        ask,
        {"sides": sides, "count": count},
        {"rolls": rolls},
        v.say("[You rolled {r}.|The dice show {r}.|The result is {r}.]", r=shown),
    )


def file(v: Voice) -> Use:
    path = (
        v.say("{n}.[txt|md|csv|json|py]", n=v.name().lower())
        if v.chance(0.5)
        else v.say("[notes|todo|report|letter|data|readme|list].[txt|md|csv|json]")
    )
    line = v.say(
        "[The meeting is at {n}.|Buy {n} {w}.|Call {p}.|The code is {n}.]",
        n=v.number(1, 99),
        w=v.pick(ITEMS),
        p=v.pick(FIRST_NAMES),
    )
    ask = v.say(
        "[Read the file {p}.|What is in {p}?|Open {p}[, please|].|Show me {p}.|What does {p} say?]",
        p=path,
    )
    return Use(
        ask,
        {"path": path},
        {"content": line} if v.chance(0.5) else line,
        v.say("[The file {p} says: {l}|{p} contains: {l}|It says: {l}]", p=path, l=line),
    )


def stock(v: Voice) -> Use:
    symbol, price = (
        "".join(v.pick("ABCDEFGHKLMNPRSTUVWXYZ") for _ in range(v.number(3, 4))),
        v.number(100, 90000) / 100,
    )
    ask = (
        v.say(
            "[What is the price of {s}?|How much is {s} [stock|] [today|now|]?|Give me the stock price of {s}.|stock price of {s}]",
            s=symbol,
        )
        .replace("  ", " ")
        .replace(" ?", "?")
    )
    return Use(
        ask,
        {"symbol": symbol},
        {"symbol": symbol, "price": price},
        v.say(
            "[The price of {s} is {p}.|{s} costs {p} at the moment.|{s} stands at {p}.]",
            s=symbol,
            p=price,
        ),
    )


def person(v: Voice) -> Use:
    name, number = (
        v.pick(FIRST_NAMES) if v.chance(0.5) else v.name(),
        "".join(str(v.number(0, 9)) for _ in range(6)),
    )
    ask = v.say(
        "[What is the phone number of {n}?|Find the number of {n}.|Give me {n}'s phone number.|How can I call {n}?|Look up {n} in my contacts.]",
        n=name,
    )
    return Use(
        ask,
        {"name": name},
        {"name": name, "phone": number},
        v.say(
            "[The number of {n} is {p}.|You can call {n} at {p}.|{n} has the number {p}.]",
            n=name,
            p=number,
        ),
    )


def train(v: Voice) -> Use:
    a, b = place(v), place(v)
    time = f"{v.number(5, 23):02d}:{v.number(0, 59):02d}"
    ask = v.say(
        "[When is the next train from {a} to {b}?|Find a train from {a} to {b}.|I want to go from {a} to {b}.|Next train from {a} to {b}, please.]",
        a=a,
        b=b,
    )
    return Use(
        ask,
        {"from": a, "to": b},
        {"departure": time, "platform": v.number(1, 20)},
        v.say(
            "[The next train from {a} to {b} leaves at {t}.|You can take the train to {b} at {t}.|There is a train to {b} at {t}.]",
            a=a,
            b=b,
            t=time,
        ),
    )
