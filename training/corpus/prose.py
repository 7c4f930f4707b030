"""Stories and plain documents: stories on request, explanations, and pages without any chat."""
# ruff: noqa: E501

from __future__ import annotations

from corpus.about import INTENTS
from corpus.answers import SIMPLE
from corpus.facts import ANIMALS, COUNTRIES, PLANETS, RECIPES, THINGS
from corpus.knowledge import article
from corpus.smalltalk import FIRST_NAMES
from corpus.voice import Exchange, Voice, assistant, user

PLACES = [
    "in a small village",
    "in a house by the sea",
    "in a quiet forest",
    "in an old town",
    "in a valley between two mountains",
    "in a busy city",
    "in a garden full of flowers",
    "in a lighthouse",
    "on a farm on a hill",
    "on an island in the north",
]
TRAITS = [
    "curious",
    "brave",
    "kind",
    "shy",
    "clever",
    "cheerful",
    "patient",
    "careful",
    "lonely",
    "friendly",
]
OBJECTS = [
    "a golden key",
    "an old map",
    "a little lamp",
    "a silver bell",
    "a letter without a name",
    "a red umbrella",
    "a strange seed",
    "a wooden box",
    "a blue stone",
    "a tiny robot",
]
HELPERS = [
    "an old owl",
    "a friendly fox",
    "a quiet turtle",
    "a wise woman",
    "a young sailor",
    "a small mouse",
    "the baker",
    "a grey cat",
    "a clever crow",
    "a tired teacher",
]
LESSONS = [
    "that small steps lead far",
    "that it is good to ask for help",
    "that a friend is worth more than gold",
    "that patience brings the best fruit",
    "that even the smallest light is enough in the dark",
    "that kindness always comes back",
    "that home is where somebody waits for you",
]

START = [
    "Once upon a time there was {hero} [who lived {place}|{place}]. ",
    "{place_start} there lived {hero}. ",
    "Long ago, {hero} lived {place}. ",
]
PLOTS = [
    'One [morning|evening|day] {name} found {thing} [under a tree|on the doorstep|in the grass]. "[Who lost this|Where does this come from]?" {name} [wondered|asked], and went to look for the owner. On the way {name} met {helper}. "[Follow the river|Look behind the hill|Ask the wind]", said {helper_the}, "and you will find the answer." {name} walked [all day|for a long time] and at last came to [a little house|an old gate|a wooden bridge]. There somebody was already waiting, and was very happy to have {thing_the} back. ',
    "Every night {name} looked at the stars and dreamed of [far countries|a great journey|the sea]. One [day|morning] {name} packed [some bread and {thing}|{thing} and a warm coat] and set out. The road was long, and it began to [rain|snow]. Then {helper} came along and [offered a dry place|shared a warm meal]. They talked until the [rain stopped|sun came up], and from that day on they travelled together. ",
    'One [winter|autumn|spring] a great storm came, and all the lights went out. Everybody was afraid. But {name} remembered {thing} and said, "I have an idea." With the help of {helper}, {name} [climbed the highest hill|went from door to door], and soon [a warm light shone|there was light] for everyone. The people sang and thanked {name}. ',
    '{name} wanted to [grow the tallest sunflower|build a boat|bake the best bread] in the whole country. The first try [went wrong|failed], and the second one, too. "Do not give up", said {helper_the}. "[Good things need time|Try it once more]." So {name} tried again, this time [slowly|with more care], and it worked. Everybody came to see it, and {name} laughed with joy. ',
    'One [day|afternoon] {name} heard a small voice crying. It was {helper}, lost and far from home. "Do not worry", said {name}, "I will bring you back." They followed [the stream|the old path|the stars], crossed a bridge, and shared {thing} as a game on the way. When they arrived, there was [soup|cake|warm tea] for both of them. ',
    'There was one thing that {name} could not do: {name} could not [swim|sing|whistle|dance]. [It made {name} sad.|The others laughed about it.] Then {name} found {thing} and met {helper}, who said, "Let us practise together, a little every day." They practised [in the morning and in the evening|for many weeks], and when the summer feast came, {name} was the best of all. ',
]
ENDS = [
    "And {name} learned {lesson}.",
    "Since then {name} has known {lesson}.",
    "From that day on {name} was never [alone|lonely] again. [The end.|]",
    "That night {name} slept [deeply|well] and was happy. [The end.|]",
    "And if you go there today, you can still [hear people tell the story|see {name} smile].",
]


def definite(phrase: str) -> str:
    """Returns ``phrase`` with "the" in place of its indefinite article."""
    return phrase if phrase.startswith("the ") else "the " + phrase.split(" ", 1)[1]


def story_text(v: Voice, kind: str | None = None, name: str | None = None) -> str:
    """Returns a short story about an animal or a person called ``name``."""
    name = name or (v.pick(FIRST_NAMES) if v.chance(0.6) else v.name())
    kind = kind or v.pick(
        [row[0] for row in ANIMALS]
        + [
            "girl",
            "boy",
            "robot",
            "sailor",
            "baker",
            "gardener",
            "king",
            "queen",
            "painter",
            "teacher",
        ]
    )
    hero = f"{article(v.pick(TRAITS) + ' ' + kind)} called {name}"
    thing = v.pick(OBJECTS)
    place, helper = v.pick(PLACES), v.pick(HELPERS)
    text = v.say(
        v.pick(START) + v.pick(PLOTS) + v.pick(ENDS),
        hero=hero,
        name=name,
        place=place,
        place_start=place[0].upper() + place[1:],
        thing=thing,
        thing_the=definite(thing),
        helper=helper,
        helper_the=definite(helper),
        lesson=v.pick(LESSONS),
    ).strip()
    return text


def story(v: Voice) -> Exchange:
    """Returns a request for a story, perhaps with a wish, and the story."""
    if v.chance(0.55):
        kind = v.pick(
            [row[0] for row in ANIMALS]
            + ["robot", "sailor", "king", "queen", "girl", "boy", "baker", "painter"]
        )
        who = article(kind)
        if v.chance(0.3):
            name = v.pick(FIRST_NAMES) if v.chance(0.6) else v.name()
            ask = v.say(
                "[Tell me a [short |]story about|Write a [short |]story about|I want a story about] {w} [called|named] {n}.",
                w=who,
                n=name,
            )
            return [
                user(ask),
                assistant(
                    story_text(v, kind, name), f"I tell a short story about {who} called {name}."
                ),
            ]
        ask = v.say(
            "[Tell me a [short |]story about {w}[.|, please.]|Write a [short |]story about {w}.|Do you know a story about {w}?|A story about {w}, please.|Can you tell [me |]a story about {w}?|Make up a story about {w}.]",
            w=who,
        )
        return [user(ask), assistant(story_text(v, kind), f"I tell a short story about {who}.")]
    ask = v.say(
        "[Tell me a [short |]story[.|!|, please.]|Write a [short |]story.|Do you know a [good |]story?|I want to hear a story.|Tell me a bedtime story.|Can you tell me a story?|Once upon a time]"
    )
    text = story_text(v)
    return [user(ask), assistant(text, "I tell a short story.")]


def animal_page(v: Voice) -> str:
    """Returns a plain page about an animal."""
    name, family, home, food, sound, fact = v.pick(ANIMALS)
    cap = article(name)[0].upper() + article(name)[1:]
    more = [v.say("{c} lives {h}.", c=cap, h=home), v.say("It eats {f}.", f=food), f"{fact}."]
    if "sound" not in sound and "quiet" not in sound:
        more.append(f"It {sound}.")
    v.rng.shuffle(more)
    return v.say(
        "[The {n}\n\n|# The {n}\n\n|]{c} is {t}. {m}",
        n=name,
        c=cap,
        t=article(family),
        m=" ".join(more),
    )


def list_page(v: Voice) -> str:
    """Returns several facts as a page of short sentences."""
    kind = v.number(0, 3)
    if kind == 0:
        rows = [
            v.say("[The capital of {c} is {k}.|{k} is the capital of {c}.]", c=c, k=k).replace(
                "D.C..", "D.C."
            )
            for c, k, _ in v.some(COUNTRIES, v.number(3, 8))
        ]
    elif kind == 1:
        rows = [
            f"{n[0].upper()}{n[1:]} is {THINGS[n]}." for n in v.some(list(THINGS), v.number(3, 6))
        ]
    elif kind == 2:
        rows = [
            f"{n} is the {o} planet from the sun. {f}."
            for n, o, f in PLANETS[v.number(0, 3) : v.number(5, 8)]
        ]
    else:
        rows = [v.say(v.pick(a)).strip() for _, a in v.some(SIMPLE, v.number(3, 6))]
    return v.pick([" ", "\n", "\n\n"]).join(rows)


def recipe_page(v: Voice) -> str:
    """Returns a recipe as a plain page."""
    dish = v.pick(list(RECIPES))
    ingredients, steps = RECIPES[dish]
    return v.say(
        "[Recipe: |How to make |]{d}\n\nYou need {i}. {s}", d=dish, i=ingredients, s=" ".join(steps)
    )


def flashmoe_page(v: Voice) -> str:
    """Returns a plain page about flashmoe, made of several answers."""
    picked = v.some(
        [
            row
            for row in INTENTS
            if " you" not in row[2][0] and "I " not in row[2][0] and "I'm" not in row[2][0]
        ],
        v.number(2, 4),
    )
    return v.say("[About flashmoe\n\n||# flashmoe\n\n]") + v.pick([" ", "\n\n"]).join(
        v.say(v.pick([a for a in answers if "I " not in a] or answers)) for _, _, answers in picked
    )


def page(v: Voice) -> str:
    """Returns one plain document."""
    return v.pick(
        [
            story_text,
            story_text,
            story_text,
            animal_page,
            list_page,
            list_page,
            recipe_page,
            flashmoe_page,
        ]
    )(v)
