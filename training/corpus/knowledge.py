"""Questions and answers drawn from the fact tables."""
# ruff: noqa: E501

from __future__ import annotations

from corpus.answers import SIMPLE
from corpus.facts import ANIMALS, COUNTRIES, OPPOSITES, PLANETS, RECIPES, THINGS
from corpus.voice import Exchange, Voice, assistant, user


def capital_sentence(v: Voice) -> Exchange:
    """Returns a question about a country and its capital, in one of both directions."""
    country, city, continent = v.pick(COUNTRIES)
    start = country[0].upper() + country[1:]
    kind = v.number(0, 5)
    if kind <= 2:
        ask = v.say(
            "[What is|What's|Tell me|Name|Do you know] the capital [city |]of {c}[?|]", c=country
        )
        answer = v.say(
            "[The capital of {c} is {k}.|{k} is the capital of {c}.|The capital of {c} is {k}, a city in {o}.]",
            c=country,
            k=city,
            o=continent,
        )
    elif kind == 3:
        ask = v.say(
            "[Which country is {k} the capital of?|{k} is the capital of which country?]", k=city
        )
        answer = v.say("{k} is the capital of {c}.", c=country, k=city)
    elif kind == 4:
        ask = v.say(
            "[Where is {c}?|On which continent is {c}?|Which continent is {c} in?|Where does {c} lie?]",
            c=country,
        )
        answer = v.say("{s} is in {o}. Its capital is {k}.", s=start, o=continent, k=city)
    else:
        ask = v.say(
            "[Where is {k}?|In which country is {k}?|What is {k}?|Tell me about {k}.]", k=city
        )
        answer = v.say("{k} is [a city|the capital] in {c}.", k=city, c=country).replace(
            "the capital in", "the capital of"
        )
    return [
        user(ask),
        assistant(answer.replace("D.C..", "D.C."), f"{city} is the capital of {country}."),
    ]


def article(word: str) -> str:
    """Returns ``word`` with its indefinite article."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def animal(v: Voice) -> Exchange:
    """Returns a question about an animal."""
    name, family, home, food, sound, fact = v.pick(ANIMALS)
    many = {
        "mouse": "mice",
        "sheep": "sheep",
        "wolf": "wolves",
        "fox": "foxes",
        "butterfly": "butterflies",
        "salmon": "salmon",
        "goldfish": "goldfish",
        "octopus": "octopuses",
        "deer": "deer",
        "ostrich": "ostriches",
    }.get(name, name + "s")
    one = article(name)
    cap = one[0].upper() + one[1:]
    quiet = "sound" in sound or "quiet" in sound
    kind = v.number(0, 5)
    if kind == 0:
        ask = v.say(
            "[What do {m} eat?|What does {o} eat?|What is the food of {o}?|What should I feed {o}?]",
            m=many,
            o=one,
        )
        answer = v.say("[{c} eats {f}.|{M} eat {f}.]", c=cap, M=many.capitalize(), f=food)
    elif kind == 1:
        ask = v.say(
            "[Where do {m} live?|Where does {o} live?|Where can I find {m}?]", m=many, o=one
        )
        answer = v.say("[{c} lives {h}.|{M} live {h}.]", c=cap, M=many.capitalize(), h=home)
    elif kind == 2:
        ask = v.say(
            "[What sound does {o} make?|What noise does {o} make?|What does {o} say?]", o=one
        )
        answer = f"{cap} {sound}."
    elif kind == 3:
        ask = v.say(
            "[Is {o} a mammal?|Is {o} a bird?|Is {o} a fish?|Is {o} an insect?|What kind of animal is {o}?]",
            o=one,
        )
        truth = article(family)
        answer = f"{cap} is {truth}."
        for guess in ("a mammal", "a bird", "a fish", "an insect"):
            if guess in ask:
                answer = f"Yes, {one} is {truth}." if guess == truth else f"No, {one} is {truth}."
    else:
        ask = v.say(
            "[Tell me [something |]about [{m}|the {n}].|What do you know about {m}?|What is {o}?|Describe {o}.|Tell me a fact about {m}.]",
            m=many,
            o=one,
            n=name,
        )
        tail = "" if quiet else v.say("[ It {s}.|]", s=sound)
        answer = v.say(
            "{c} is {t} that lives {h} and eats {f}.{tail} {fact}.",
            c=cap,
            t=article(family),
            h=home,
            f=food,
            tail=tail,
            fact=fact,
        )
    return [user(ask), assistant(answer, f"The user asks about the {name}.")]


def planet(v: Voice) -> Exchange:
    """Returns a question about a planet."""
    name, order, fact = v.pick(PLANETS)
    ask = v.say(
        "[What is {n}?|Tell me [something |]about {n}.|What do you know about {n}?|Which planet is {n}?|Describe {n}.|Is {n} a planet?]",
        n=name,
    )
    yes = "Yes. " if ask.startswith("Is ") else ""
    if v.chance(0.2):
        ask, yes = v.say("[Which|What] is the {o} planet[ from the sun|]?", o=order), ""
    answer = v.say("{y}{n} is the {o} planet from the sun. {f}.", y=yes, n=name, o=order, f=fact)
    return [user(ask), assistant(answer, f"{name} is planet number {order}.")]


def thing(v: Voice) -> Exchange:
    """Returns a definition of an everyday thing."""
    name = v.pick(list(THINGS))
    ask = v.say(
        "[What is {n}?|What's {n}?|Explain what {n} is.|Can you tell me what {n} is?|Describe {n}.|Do you know what {n} is?|Explain {n} to a child.|Tell me [something |]about {n}.|What do you know about {n}?|Define {n}.|Explain {n}.]",
        n=name,
    )
    return [
        user(ask),
        assistant(f"{name[0].upper()}{name[1:]} is {THINGS[name]}.", f"I explain what {name} is."),
    ]


def simple(v: Voice) -> Exchange:
    """Returns a question with a fixed small answer."""
    asks, answers = v.pick(SIMPLE)
    return [
        user(v.say(v.pick(asks))),
        assistant(v.say(v.pick(answers)).strip(), "This is a simple fact."),
    ]


def opposite(v: Voice) -> Exchange:
    """Returns a question about an opposite."""
    first, second = v.pick(OPPOSITES)
    if v.chance(0.5) and first not in ("old", "light") and second not in ("light", "short", "cold"):
        first, second = second, first
    ask = v.say('[What is|What\'s|Tell me] the opposite of ["{a}"|{a}]?', a=first)
    return [
        user(ask),
        assistant(
            v.say('The opposite of "{a}" is "{b}".', a=first, b=second),
            f"{first} and {second} are opposites.",
        ),
    ]


def recipe(v: Voice) -> Exchange:
    """Returns a recipe, or only its ingredients."""
    dish = v.pick(list(RECIPES))
    ingredients, steps = RECIPES[dish]
    if v.chance(0.25):
        ask = v.say(
            "[What do I need for {d}?|Which ingredients do I need for {d}?|What is in {d}?]", d=dish
        )
        return [
            user(ask),
            assistant(
                v.say("For {d} you need {i}.", d=dish, i=ingredients),
                f"I list the ingredients of {dish}.",
            ),
        ]
    ask = v.say(
        "[How do I [make|cook|prepare] {d}?|How can I make {d}?|Give me a recipe for {d}.|Do you have a recipe for {d}?|How is {d} made?|I want to make {d}.|Recipe for {d}, please.]",
        d=dish,
    )
    if v.chance(0.5):
        body = "\n".join(f"{i}. {step}" for i, step in enumerate(steps, 1))
        answer = v.say("For {d} you need {i}.\n\n{b}", d=dish, i=ingredients, b=body)
    else:
        answer = v.say("For {d} you need {i}. {b}", d=dish, i=ingredients, b=" ".join(steps))
    return [user(ask), assistant(answer, f"I give a short recipe for {dish}.")]


def knowledge(v: Voice) -> Exchange:
    """Returns one question of simple knowledge and its answer."""
    return v.pick(
        [
            capital_sentence,
            capital_sentence,
            capital_sentence,
            animal,
            animal,
            planet,
            thing,
            thing,
            thing,
            simple,
            simple,
            simple,
            opposite,
            recipe,
        ]
    )(v)
