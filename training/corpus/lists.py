"""Lists, colours, spelling and comparisons: small tasks with words."""
# ruff: noqa: E501, SIM905

from __future__ import annotations

from corpus.facts import ANIMALS, COUNTRIES, THINGS
from corpus.voice import Exchange, Voice, assistant, user

KINDS: dict[str, list[str]] = {
    key: values.split(",")
    for key, values in {
        "fruits": "apples,bananas,cherries,grapes,lemons,mangoes,oranges,peaches,pears,plums,strawberries,raspberries,kiwis,melons",
        "vegetables": "carrots,potatoes,tomatoes,onions,peas,beans,spinach,broccoli,cucumbers,peppers,leeks,cabbage",
        "colours": "red,blue,green,yellow,orange,purple,pink,brown,black,white,grey",
        "musical instruments": "the piano,the guitar,the violin,the flute,the drums,the trumpet,the cello,the harp",
        "sports": "football,tennis,swimming,running,basketball,skiing,cycling,rowing,volleyball",
        "drinks": "water,tea,coffee,milk,lemonade,apple juice,hot chocolate",
        "jobs": "a doctor,a teacher,a baker,a farmer,a nurse,a painter,a pilot,a gardener,a cook",
        "tools": "a hammer,a saw,a screwdriver,a drill,a pair of pliers,a spade",
        "clothes": "a shirt,a pair of trousers,a coat,a hat,a pair of socks,a scarf,a pair of shoes",
        "flowers": "roses,tulips,daisies,sunflowers,lilies,violets,daffodils",
        "trees": "oaks,beeches,pines,firs,birches,maples,willows",
        "school subjects": "maths,history,geography,music,art,biology,physics,English",
        "parts of the body": "the head,the arms,the legs,the hands,the feet,the heart,the eyes,the ears",
        "things in a kitchen": "a pot,a pan,a knife,a spoon,a fork,a plate,a stove,a fridge",
        "hobbies": "reading,painting,gardening,cooking,dancing,hiking,singing,photography",
        "metals": "iron,gold,silver,copper,tin,lead,zinc",
        "rivers": "the Nile,the Amazon,the Rhine,the Danube,the Thames,the Mississippi,the Volga",
        "breakfast foods": "bread,eggs,porridge,fruit,yoghurt,pancakes,cheese",
    }.items()
}
COLOURS: dict[str, str] = dict(
    row.split(":")
    for row in (
        "the sky:blue;grass:green;snow:white;coal:black;a banana:yellow;a lemon:yellow;a tomato:red;a strawberry:red;blood:red;milk:white;a carrot:orange;an orange:orange;chocolate:brown;"
        "the sun:yellow;a leaf:green;a fire engine:red;a polar bear:white;a crow:black;an elephant:grey;a cucumber:green;a pumpkin:orange;salt:white;a frog:green;a flamingo:pink;a violet:purple;"
        "wood:brown;a swan:white;a pig:pink;a mouse:grey;a cherry:red;a canary:yellow;a lime:green;coffee:brown;paper:white;the sea:blue"
    ).split(";")
)
RHYMES = [
    row.split(",")
    for row in "cat,hat,mat,bat;house,mouse,blouse;tree,bee,sea,free;moon,spoon,soon,noon;light,night,bright,kite;day,play,way,stay;rain,train,plane,chain;dog,fog,log,frog;ring,sing,king,spring;star,car,far,jar;bed,red,head,bread;cake,lake,make,snake;boat,goat,coat,note;sun,fun,run,one;book,cook,look,hook;blue,shoe,new,true".split(
        ";"
    )
]
PLURALS = [
    row.split(":")
    for row in "mouse:mice child:children foot:feet tooth:teeth man:men woman:women goose:geese sheep:sheep fish:fish book:books box:boxes city:cities leaf:leaves knife:knives tomato:tomatoes baby:babies dog:dogs house:houses wolf:wolves bus:buses".split()
]
PAST = [
    row.split(":")
    for row in "go:went see:saw eat:ate write:wrote read:read run:ran sing:sang swim:swam think:thought buy:bought bring:brought come:came give:gave take:took find:found make:made speak:spoke sleep:slept walk:walked play:played".split()
]
SYNONYMS = [
    row.split(":")
    for row in "big:large small:little happy:glad fast:quick begin:start clever:smart quiet:silent beautiful:lovely sad:unhappy rich:wealthy easy:simple hard:difficult angry:furious cold:chilly end:finish answer:reply help:assist".split()
]
COUNTS = ["zero", "one", "two", "three", "four", "five"]


def joined(items: list[str]) -> str:
    """Returns the items as a phrase: ``a, b and c``."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def listing(v: Voice) -> Exchange:
    """Returns a request for some things of one kind, and that many of them."""
    count = v.number(2, 5)
    roll = v.number(0, 9)
    if roll < 6:
        kind = v.pick(list(KINDS))
        picked = v.some(KINDS[kind], min(count, len(KINDS[kind])))
        label = kind
    elif roll < 8:
        continent = v.pick(sorted({row[2] for row in COUNTRIES} - {"Oceania"}))
        picked = [
            row[0] for row in v.some([row for row in COUNTRIES if row[2] == continent], count)
        ]
        label = f"countries in {continent}"
    elif roll < 9:
        family = v.pick(["mammal", "bird", "reptile", "insect", "fish"])
        rows = [row for row in ANIMALS if row[1] == family]
        picked = [f"the {row[0]}" for row in v.some(rows, min(count, len(rows)))]
        label = {"fish": "fish"}.get(family, family + "s")
    else:
        label, word = v.pick(
            [
                ("animals in Africa", "Africa"),
                ("animals on a farm", "farm"),
                ("animals in the sea", "in the sea"),
                ("animals in the forest", "forest"),
            ]
        )
        rows = [row for row in ANIMALS if word in row[2]]
        picked = [f"the {row[0]}" for row in v.some(rows, min(count, len(rows)))]
    number = COUNTS[len(picked)]
    if v.chance(0.25):
        ask = v.say(
            "[What {k} do you know?|Which {k} are there?|Tell me some {k}.|Name some {k}.|List some {k}.]",
            k=label,
        )
    else:
        ask = v.say(
            "[Name {n} {k}.|List {n} {k}.|Tell me {n} {k}.|Can you name {n} {k}?|Give me {n} {k}[, please|].|{n} {k}, please.]",
            n=v.pick([number, str(len(picked))]),
            k=label,
        )
    answer = joined(picked)
    said = v.say(
        "[{A}.|Here are {n}: {a}.|{N} {k} are {a}.]",
        A=answer[0].upper() + answer[1:],
        a=answer,
        n=number,
        N=number.capitalize(),
        k=label,
    )
    return [user(ask[0].upper() + ask[1:]), assistant(said, f"I name {number} {label}.")]


def colour(v: Voice) -> Exchange:
    """Returns a question about the colour of a thing."""
    name = v.pick(list(COLOURS))
    value, start = COLOURS[name], name[0].upper() + name[1:]
    if v.chance(0.3):
        guess = v.pick(sorted(set(COLOURS.values())))
        right = guess == value
        return [
            user(f"Is {name} {guess}?"),
            assistant(
                f"Yes, {name} is {value}." if right else f"No, {name} is {value}.",
                f"{start} is {value}.",
            ),
        ]
    ask = v.say(
        "[What colour is {n}?|What color is {n}?|Which colour has {n}?|Tell me the colour of {n}.]",
        n=name,
    )
    return [
        user(ask),
        assistant(
            v.say("[{s} is {c}.|{s} is usually {c}.]", s=start, c=value), f"{start} is {value}."
        ),
    ]


def words(v: Voice) -> Exchange:
    """Returns a small task with a word: spelling, rhymes, plurals, past tense, synonyms."""
    kind = v.number(0, 5)
    if kind == 0:
        word = v.pick(
            [name.split()[-1] for name in THINGS] + [row[0].split()[-1] for row in ANIMALS]
        ).lower()
        ask = v.say(
            '[How do you spell {w}?|Spell {w}.|Can you spell the word {w}?|Spell the word "{w}".]',
            w=word,
        )
        return [
            user(ask),
            assistant(
                f"{word.capitalize()} is spelled {'-'.join(word.upper())}.", f"I spell {word}."
            ),
        ]
    if kind == 1:
        group = v.pick(RHYMES)
        first, *others = v.some(group, len(group))
        ask = v.say(
            "[What rhymes with {w}?|Find a rhyme for {w}.|Which words rhyme with {w}?|Give me a rhyme for {w}.]",
            w=first,
        )
        return [
            user(ask),
            assistant(
                v.say("{w} rhymes with {o}.", w=first.capitalize(), o=joined(others)),
                "I look for a rhyme.",
            ),
        ]
    if kind == 2:
        one, many = v.pick(PLURALS)
        ask = v.say(
            '[What is the plural of {w}?|What is the plural of "{w}"?|One {w}, two what?]', w=one
        )
        return [
            user(ask),
            assistant(f'The plural of "{one}" is "{many}".', f"One {one}, two {many}."),
        ]
    if kind == 3:
        now, then = v.pick(PAST)
        ask = v.say('[What is the past tense of {w}?|What is the past of "{w}"?]', w=now)
        return [
            user(ask),
            assistant(
                f'The past tense of "{now}" is "{then}".', f"Today I {now}, yesterday I {then}."
            ),
        ]
    if kind == 4:
        a, b = v.pick(SYNONYMS)
        ask = v.say(
            '[What is another word for {w}?|Give me a synonym for {w}.|What is a synonym of "{w}"?]',
            w=a,
        )
        return [
            user(ask),
            assistant(f'Another word for "{a}" is "{b}".', f"{a.capitalize()} means {b}."),
        ]
    word = v.pick([row[0].split()[-1] for row in ANIMALS])
    ask = v.say(
        "[How many letters does the word {w} have?|How many letters are in {w}?|How long is the word {w}?|Which letter does {w} start with?]",
        w=word,
    )
    if "start" in ask:
        return [
            user(ask),
            assistant(
                f"{word.capitalize()} starts with the letter {word[0].upper()}.",
                "I look at the first letter.",
            ),
        ]
    return [
        user(ask),
        assistant(f'The word "{word}" has {len(word)} letters.', f"{'-'.join(word)}: {len(word)}."),
    ]


def difference(v: Voice) -> Exchange:
    """Returns a comparison of two things or two animals."""
    if v.chance(0.5):
        a, b = v.some(ANIMALS, 2)
        ask = (
            v.say(
                "[What is the difference between a {x} and a {y}?|How are a {x} and a {y} different?|Compare a {x} and a {y}.]",
                x=a[0],
                y=b[0],
            )
            .replace(" a o", " an o")
            .replace(" a e", " an e")
            .replace(" a a", " an a")
        )
        said = f"The {a[0]} is {'an' if a[1][0] in 'aei' else 'a'} {a[1]} that lives {a[2]} and eats {a[3]}. The {b[0]} is {'an' if b[1][0] in 'aei' else 'a'} {b[1]} that lives {b[2]} and eats {b[3]}."
        return [user(ask), assistant(said, f"I compare the {a[0]} and the {b[0]}.")]
    x, y = v.some(list(THINGS), 2)
    ask = v.say(
        "[What is the difference between {x} and {y}?|Compare {x} and {y}.|How do {x} and {y} differ?]",
        x=x,
        y=y,
    )
    first, second = THINGS[x].split(". ")[0].rstrip("."), THINGS[y].split(". ")[0].rstrip(".")
    return [
        user(ask),
        assistant(
            f"{x[0].upper()}{x[1:]} is {first}. {y[0].upper()}{y[1:]} is {second}.",
            f"I compare {x} and {y}.",
        ),
    ]


def lists(v: Voice) -> Exchange:
    """Returns one small task with words."""
    return v.pick([listing, listing, listing, colour, words, words, difference])(v)
