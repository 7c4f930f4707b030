"""Small sums, comparisons, sequences and word problems, worked out by Python."""
# ruff: noqa: E501, SIM905

from __future__ import annotations

from corpus.smalltalk import FIRST_NAMES
from corpus.voice import Exchange, Voice, assistant, user

WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()
THINGS = (
    "apples books coins eggs stamps marbles flowers pencils cookies shells buttons oranges".split()
)


def small_sum(v: Voice) -> Exchange:
    """Returns a sum with one operation and its result."""
    a, b = v.number(0, 20), v.number(0, 20)
    if v.chance(0.55):
        a, b = v.number(0, 99), v.number(0, 99)
    kind = v.pick("+-*+-*/")
    if kind == "-":
        a, b = max(a, b), min(a, b)
    elif kind == "*":
        a, b = v.number(0, 12), v.number(0, 12)
    elif kind == "/":
        b = v.number(1, 12)
        a = b * v.number(0, 12)
    result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[kind]
    word = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[kind]
    sign = v.pick([kind, word, word]) if kind != "*" else v.pick(["*", "x", word, word])
    ask = v.say(
        "[What is|What's|How much is|Calculate|Compute|Please calculate|] {a} {sign} {b}[?|]",
        a=a,
        b=b,
        sign=sign,
    ).strip()
    answer = v.say("{a} {word} {b} is {r}.", a=a, b=b, word=word, r=result)
    if v.chance(0.2):
        answer = v.say(
            "[The answer is|That is|It is] {r}[.|, because {a} {word} {b} is {r}.]",
            a=a,
            b=b,
            word=word,
            r=result,
        )
    return [user(ask), assistant(answer, f"{a} {word} {b} is {result}.")]


def word_problem(v: Voice) -> Exchange:
    """Returns a little story with a sum in it."""
    name, thing = v.pick(FIRST_NAMES), v.pick(THINGS)
    a, b = v.number(2, 20), v.number(1, 12)
    if v.chance(0.5):
        ask = v.say(
            "{n} has {a} {t} and [gets|finds|buys] {b} more. How many {t} does {n} have[ now|]?",
            n=name,
            a=a,
            b=b,
            t=thing,
        )
        total, how = a + b, f"{a} plus {b} is {a + b}"
    else:
        a = a + b
        ask = v.say(
            "{n} has {a} {t} and [gives away|loses|sells] {b}[ of them|]. How many {t} [are left|does {n} have left]?",
            n=name,
            a=a,
            b=b,
            t=thing,
        )
        total, how = a - b, f"{a} minus {b} is {a - b}"
    answer = v.say(
        "{n} [now |]has {r} {t}[ left|], because {how}.", n=name, r=total, t=thing, how=how
    )
    return [
        user(ask),
        assistant(answer.replace(" left", "" if "plus" in how else " left"), f"{how}."),
    ]


def counting(v: Voice) -> Exchange:
    """Returns counting, comparing, ordering or spelling of numbers."""
    kind = v.number(0, 5)
    if kind == 0:
        low = v.number(1, 10)
        high = low + v.number(3, 10)
        ask = v.say("[Count|Please count|Can you count] from {a} to {b}[.|]", a=low, b=high)
        return [
            user(ask),
            assistant(", ".join(map(str, range(low, high + 1))) + ".", "I count up."),
        ]
    if kind == 1:
        a, b = v.some(range(1, 100), 2)
        more = v.chance(0.5)
        word = v.pick(["larger", "bigger", "greater"]) if more else "smaller"
        ask = v.say("[Which number is|Which is|What is] {w}[:|,] {a} or {b}?", w=word, a=a, b=b)
        best = max(a, b) if more else min(a, b)
        other = min(a, b) if more else max(a, b)
        return [user(ask), assistant(f"{best} is {word} than {other}.", f"I compare {a} and {b}.")]
    if kind == 2:
        n = v.number(0, 20)
        ask = v.say("[How do you write|Write|Spell] {n} [as a word|in words][?|]", n=n)
        return [
            user(ask),
            assistant(
                v.say('{n} is written [as |]"{w}".', n=n, w=WORDS[n]), f"The word is {WORDS[n]}."
            ),
        ]
    if kind == 3:
        n = v.number(1, 100)
        parity = "even" if n % 2 == 0 else "odd"
        ask = v.say("Is {n} [even or odd|an even number|an odd number]?", n=n)
        why = (
            "because it can be divided by two"
            if n % 2 == 0
            else "because it cannot be divided by two"
        )
        return [user(ask), assistant(f"{n} is {parity}, {why}.", f"{n} ends in {n % 10}.")]
    if kind == 4:
        step, start = v.number(2, 10), v.number(1, 10)
        row = [start + step * i for i in range(5)]
        ask = v.say("What comes next[:|?] {r}, ...", r=", ".join(map(str, row[:4])))
        return [
            user(ask),
            assistant(
                f"The next number is {row[4]}, because each number is {step} larger than the one before.",
                f"The step is {step}.",
            ),
        ]
    n = v.number(1, 50)
    ask = v.say("What is [[twice|double] {n}|{n} doubled]?", n=n)
    return [
        user(ask),
        assistant(v.say("[Twice|Double] {n} is {r}.", n=n, r=2 * n), f"{n} plus {n} is {2 * n}."),
    ]


def numbers(v: Voice) -> Exchange:
    """Returns one exchange about numbers."""
    return v.pick([small_sum, small_sum, small_sum, word_problem, counting])(v)
