"""Questions that only make sense after what was said before: "And of Spain?", "Another one"."""
# ruff: noqa: E501

from __future__ import annotations

from corpus.facts import ANIMALS, COUNTRIES, PLANETS, RECIPES, THINGS
from corpus.knowledge import article
from corpus.prose import story_text
from corpus.smalltalk import FIRST_NAMES, TALK
from corpus.voice import Exchange, Voice, assistant, user


def capitals(v: Voice) -> Exchange:
    """Asks for one capital, and then only names other countries."""
    rows = v.some(COUNTRIES, v.number(2, 4))
    turns: Exchange = []
    for i, (country, city, _) in enumerate(rows):
        ask = (
            v.say("[What is the capital of {c}?|Capital of {c}?]", c=country)
            if i == 0
            else v.say("[And of {c}?|And {c}?|What about {c}?|And the capital of {c}?]", c=country)
        )
        turns += [
            user(ask),
            assistant(
                f"The capital of {country} is {city}.".replace("D.C..", "D.C."),
                f"{city} is the capital of {country}.",
            ),
        ]
    return turns


def animals(v: Voice) -> Exchange:
    """Asks about an animal, and then about "it"."""
    name, family, home, food, _, fact = v.pick(ANIMALS)
    cap = article(name).capitalize()
    turns = [
        user(
            v.say(
                "[What is {o}?|Tell me about the {n}.|Do you know what {o} is?]",
                o=article(name),
                n=name,
            )
        ),
        assistant(
            f"{cap} is {article(family)} that lives {home} and eats {food}. {fact}.",
            f"The user asks about the {name}.",
        ),
    ]
    asks = [
        ("[What does it eat?|And what does it eat?|What do they eat?]", f"{cap} eats {food}."),
        (
            "[Where does it live?|And where does it live?|Where do they live?]",
            f"{cap} lives {home}.",
        ),
        (
            "[Is it a mammal?|Is that a mammal?]",
            f"Yes, {article(name)} is a mammal."
            if family == "mammal"
            else f"No, {article(name)} is {article(family)}.",
        ),
    ]
    for ask, answer in v.some(asks, v.number(1, 2)):
        turns += [user(v.say(ask)), assistant(answer, f"It is still about the {name}.")]
    return turns


def my_name(v: Voice) -> Exchange:
    """The user says a name, and asks for it later."""
    name = v.pick(FIRST_NAMES) if v.chance(0.5) else v.name()
    turns = [
        user(
            v.say(
                "[My name is {n}.|I am {n}.|Hi, I'm {n}[.|!]|Hello, my name is {n}.|Call me {n}.]",
                n=name,
            )
        ),
        assistant(
            v.say(
                "[Nice to meet you, {n}! How can I help you?|Hello, {n}! What can I do for you?]",
                n=name,
            ),
            "The user says a name.",
        ),
    ]
    if v.chance(0.5):
        _, asks, answers = v.pick([row for row in TALK if "{" not in row[1][0]])
        turns += [user(v.say(v.pick(asks))), assistant(v.say(v.pick(answers)), "I answer briefly.")]
    ask = v.say("[What is my name?|Do you remember my name?|Who am I?|What was my name again?]")
    return [
        *turns,
        user(ask),
        assistant(
            v.say("[Your name is {n}.|You are {n}.|You told me that your name is {n}.]", n=name),
            f"The user is called {name}.",
        ),
    ]


def likes(v: Voice) -> Exchange:
    """The user says what he or she likes or has, and asks about it later."""
    what = v.pick(["colour", "animal", "food", "city", "number"])
    value = {
        "colour": v.pick(["blue", "green", "red", "yellow", "orange", "pink"]),
        "animal": v.pick(ANIMALS)[0],
        "food": v.pick(["pizza", "soup", "pasta", "bread", "rice", "cake"]),
        "city": v.pick(COUNTRIES)[1],
        "number": str(v.number(1, 99)),
    }[what]
    turns = [
        user(
            v.say(
                "[My favourite {w} is {x}.|I like the {w} {x} best.|Remember this: my favourite {w} is {x}.]",
                w=what,
                x=value,
            )
        ),
        assistant(
            v.say(
                "[That is a good choice!|{X} is a fine {w}.|I will remember it in this chat: {x}.]",
                x=value,
                X=value[0].upper() + value[1:],
                w=what,
            ),
            f"The favourite {what} is {value}.",
        ),
    ]
    ask = v.say(
        "[What is my favourite {w}?|Which {w} do I like best?|Do you remember my favourite {w}?]",
        w=what,
    )
    return [
        *turns,
        user(ask),
        assistant(v.say("Your favourite {w} is {x}.", w=what, x=value), f"The user said {value}."),
    ]


def another(v: Voice) -> Exchange:
    """Asks for a joke or a story, and then for another one."""
    if v.chance(0.5):
        _, asks, jokes = next(row for row in TALK if "joke" in row[0])
        first, second = v.some(jokes, 2)
        return [
            user(v.say(v.pick(asks))),
            assistant(first, "I tell a joke."),
            user(
                v.say(
                    "[Another one[!|, please.|.]|One more[!|, please.|.]|Tell me another one.|Do you know another one?]"
                )
            ),
            assistant(second, "I tell another joke."),
        ]
    ask = v.say("[Tell me a [short |]story.|A story, please.]")
    return [
        user(ask),
        assistant(story_text(v), "I tell a story."),
        user(v.say("[Another one[!|, please.]|Tell me another one.|One more story, please.]")),
        assistant(story_text(v), "I tell another story."),
    ]


def planets(v: Voice) -> Exchange:
    """Walks from one planet to the next."""
    at = v.number(0, 6)
    name, order, fact = PLANETS[at]
    after, after_order, after_fact = PLANETS[at + 1]
    return [
        user(v.say("[Tell me about {n}.|What is {n}?]", n=name)),
        assistant(
            f"{name} is the {order} planet from the sun. {fact}.",
            f"{name} is planet number {order}.",
        ),
        user(v.say("[And the next one?|Which planet comes next?|What comes after {n}?]", n=name)),
        assistant(
            f"After {name} comes {after}, the {after_order} planet. {after_fact}.",
            f"{after} comes next.",
        ),
    ]


def steps(v: Voice) -> Exchange:
    """Asks for the ingredients of a dish, and then how it is made."""
    dish = v.pick(list(RECIPES))
    ingredients, work = RECIPES[dish]
    return [
        user(v.say("[What do I need for {d}?|I want to make {d}. What do I need?]", d=dish)),
        assistant(f"For {dish} you need {ingredients}.", f"I list the ingredients of {dish}."),
        user(
            v.say(
                "[And how do I make it?|What do I do then?|How do I make it?|And then?|What are the steps?]"
            )
        ),
        assistant(
            "\n".join(f"{i}. {step}" for i, step in enumerate(work, 1))
            if v.chance(0.5)
            else " ".join(work),
            f"I describe how to make {dish}.",
        ),
    ]


def things(v: Voice) -> Exchange:
    """Asks what something is, and then about something else in few words."""
    a, b = v.some(list(THINGS), 2)
    return [
        user(v.say("What is {n}?", n=a)),
        assistant(f"{a[0].upper()}{a[1:]} is {THINGS[a]}.", f"I explain {a}."),
        user(v.say("[And {n}?|What about {n}?|And what is {n}?]", n=b)),
        assistant(f"{b[0].upper()}{b[1:]} is {THINGS[b]}.", f"I explain {b}."),
    ]


def followup(v: Voice) -> Exchange:
    """Returns several exchanges that belong together."""
    return v.pick([capitals, animals, my_name, my_name, likes, another, planets, steps, things])(v)
