"""Short texts on request: notes, letters, plans, advice and how-to answers."""
# ruff: noqa: E501

from __future__ import annotations

from corpus.smalltalk import FIRST_NAMES
from corpus.voice import Exchange, Voice, assistant, user

PEOPLE = [
    "my teacher",
    "my friend",
    "my neighbour",
    "my mother",
    "my father",
    "my sister",
    "my brother",
    "my boss",
    "my doctor",
    "my grandmother",
]
HOWTO: list[tuple[list[str], list[str]]] = [
    (
        ["How do I plant a tree?", "How can I plant a tree?"],
        [
            "Dig a hole that is twice as wide as the roots. Put the tree in, fill the hole with soil, and press it gently. Then water it well."
        ],
    ),
    (
        [
            "How do I grow [tomatoes|herbs|flowers]?",
            "How can I grow [vegetables|plants]?",
            "What do I need for a garden?",
        ],
        [
            "Choose a sunny place with good soil. Put the seeds into the earth, water them a little every day, and be patient."
        ],
    ),
    (
        ["How do I [clean|wash] [windows|a window|the windows]?"],
        [
            "Use warm water with a little soap and a soft cloth. Wipe the glass from top to bottom and dry it with paper."
        ],
    ),
    (
        ["How do I make a paper boat?", "How do I fold a paper [boat|plane]?"],
        [
            "Fold the paper in the middle, then fold the upper corners to the centre. Fold up the edges, open it from below, and pull it gently into shape."
        ],
    ),
    (
        ["How do I [tie|learn to tie] my shoes?"],
        [
            "Cross the laces and pull one under the other. Make a loop with one lace, lay the other around it, and pull it through."
        ],
    ),
    (
        ["How do I [wash|clean] my [clothes|shirts|socks]?"],
        [
            "Sort the clothes by colour, put them into the machine, and add a little soap. Choose a warm programme and hang them up to dry."
        ],
    ),
    (
        ["How can I save [money|energy|water]?", "How do I save [money|energy|water]?"],
        [
            "Use only what you need. [Turn off the light when you leave the room|Write down what you spend|Take short showers], and repair things before you buy new ones."
        ],
    ),
    (
        ["How do I make friends?", "How can I make new friends?", "How do I find friends?"],
        [
            "Be kind, listen well and be yourself. [Join a club or a class|Ask people about the things they like], and give it a little time."
        ],
    ),
    (
        ["How do I write a [good |]letter?", "How do I write a good [story|text|message]?"],
        [
            "Begin with a greeting, say what you want in short sentences, and end with a friendly wish. Read it once more before you send it."
        ],
    ),
    (
        [
            "How do I learn to [play the piano|play the guitar|swim|cook|draw|sing]?",
            "How can I learn to [cook|dance|swim|draw]?",
        ],
        [
            "Start with something easy and practise a little every day. A good teacher helps, and so does a friend who learns with you."
        ],
    ),
    (
        ["How do I take care of a [dog|cat|rabbit|pet]?", "What does a [dog|cat|pet] need?"],
        [
            "It needs fresh water, good food, a warm place to sleep and time with you every day. Visit an animal doctor once a year."
        ],
    ),
    (
        ["How do I stay warm[ in winter|]?", "What should I wear in winter?"],
        [
            "Wear several layers, a warm coat, a hat and gloves. Move a little and drink something hot."
        ],
    ),
    (
        ["What should I wear in summer?", "How do I stay cool[ in summer|]?"],
        ["Wear light clothes and a hat, drink a lot of water, and stay in the shade at noon."],
    ),
    (
        ["What should I do when it rains?", "It is raining. What can I do?"],
        [
            "Take an umbrella and a warm coat, or stay at home with [a book and a cup of tea|a game and some music]."
        ],
    ),
    (
        [
            "What should I [pack|take] for a [trip|journey|holiday]?",
            "Give me a packing list[ for a trip|].",
        ],
        [
            "Take clothes for every weather, good shoes, a toothbrush, your papers, some money and a book for the way."
        ],
    ),
    (
        [
            "What should I cook [tonight|today|for dinner]?",
            "Give me an idea for dinner.",
            "What can I eat tonight?",
            "I am hungry[.|!| What can I eat?]",
        ],
        [
            "How about [spaghetti with tomato sauce|a vegetable soup|an omelette with herbs|mashed potatoes and a salad]? Ask me for the recipe if you like.",
            "You could make [pancakes|a tomato soup|scrambled eggs|a cheese sandwich]. It is quick and easy.",
        ],
    ),
    (
        [
            "What should I read?",
            "Can you recommend a [good |]book?",
            "Recommend a book[ about {t}|].",
        ],
        [
            "I cannot name a certain title, but a good library will help you. Choose [a book with a first page that you like|a topic that you are curious about]."
        ],
    ),
    (
        [
            "What can I give [my friend|my mother|my sister] for [the|a] birthday?",
            "I need an idea for a [present|gift].",
        ],
        [
            "A [book|plant|cake|drawing] is a nice present. [Something that you have made yourself|A day together] is even better."
        ],
    ),
    (
        [
            "Plan my [day|morning|weekend].",
            "Make a plan for [today|my day|the weekend].",
            "How should I plan my day?",
        ],
        [
            "Here is a simple plan:\n\n1. Get up early and have a good breakfast.\n2. Do the most important work first.\n3. Take a walk after lunch.\n4. Spend the evening with friends or with a book."
        ],
    ),
    (
        [
            "How do I fix my [computer|phone|printer]?",
            "My [computer|phone|printer] does not work.",
            "My computer is slow.",
        ],
        [
            "Turn it off and on again first. If that does not help, check the cables and the free space on the disk, or ask somebody who knows the machine."
        ],
    ),
    (
        ["What is a good morning routine?", "How do I start the day well?"],
        [
            "Get up at the same time every day, drink a glass of water, move a little, and have a calm breakfast."
        ],
    ),
    (
        [
            "How do I [relax|calm down]?",
            "I am [nervous|stressed|angry]. What can I do?",
            "I am [nervous|stressed|angry].",
        ],
        [
            "Breathe slowly and count to ten. [A short walk|A cup of tea|Some quiet music] helps many people, and so does talking to a friend."
        ],
    ),
    (
        [
            "How do I become a [doctor|teacher|pilot|programmer|writer]?",
            "What do I need to become a [doctor|teacher|programmer]?",
        ],
        [
            "It takes time, practice and good teachers. Learn as much as you can about it, and ask people who do that work."
        ],
    ),
    (
        ["How do I learn programming?", "How can I learn Python?", "How do I start programming?"],
        [
            "Start with a small program in Python, such as one that prints your name. Change it step by step, and solve little problems every day."
        ],
    ),
    (
        [
            "Write a hello world program[ in Python|].",
            "Show me a Python program.",
            "How do I print [hello|text] in Python?",
        ],
        [
            'Here is a small program:\n\nprint("Hello, world!")\n\nSave it as hello.py and run it with python hello.py.'
        ],
    ),
    (
        [
            "Write a [loop|for loop][ in Python|].",
            "How do I count to ten in Python?",
            "Show me a loop in Python.",
        ],
        ["Here is a loop that counts to ten:\n\nfor number in range(1, 11):\n    print(number)"],
    ),
    (
        [
            "Write a function[ in Python|][ that adds two numbers|].",
            "How do I define a function in Python?",
        ],
        [
            "Here is a function that adds two numbers:\n\ndef add(a, b):\n    return a + b\n\nprint(add(2, 3))"
        ],
    ),
]


def note(v: Voice) -> Exchange:
    """Returns a request for a short note or letter, and the note."""
    who, name = v.pick(PEOPLE), v.pick(FIRST_NAMES)
    kind = v.pick(["thank-you note", "letter", "birthday card", "invitation", "apology"])
    ask = (
        v.say(
            "[Write|Please write|Can you write] [a short|a] {k} to {w}[.|, please.]", k=kind, w=who
        )
        .replace("a apology", "an apology")
        .replace("a invitation", "an invitation")
        .replace("?", "")
    )
    body = {
        "thank-you note": "[Thank you so much for your help|Thank you for the lovely gift]. [It made my day|I was very happy about it], and I will not forget it.",
        "letter": "[I hope you are well|How are you]. [I am fine, and the days are full|Here everything is fine]. [I would love to see you soon|Please write to me when you have time].",
        "birthday card": "[Happy birthday|All the best for your birthday]! [I wish you health, joy and good friends|May the new year of your life be bright and happy].",
        "invitation": "[I am having a little party on Saturday|I would like to invite you to dinner on Friday]. [There will be cake and music|We will cook together]. [I hope you can come|Please tell me if you have time].",
        "apology": "[I am sorry that I was late|I am sorry about yesterday]. [It was my mistake|I did not mean it]. [I will do better next time|I hope you can forgive me].",
    }[kind]
    text = v.say(
        "Dear [friend|{to}],\n\n" + body + "\n\n[Best wishes|Yours|With love],\n{n}",
        to=who.removeprefix("my ").capitalize(),
        n=name,
    ).replace("How are you.", "How are you?")
    return [user(ask), assistant(text, f"I write a short {kind}.")]


def writing(v: Voice) -> Exchange:
    """Returns one how-to answer or one short text."""
    if v.chance(0.3):
        return note(v)
    asks, answers = v.pick(HOWTO)
    ask = v.pick(asks)
    topic = v.pick(["animals", "history", "space", "cooking", "music", "birds"])
    return [user(v.say(ask, t=topic)), assistant(v.say(v.pick(answers)), "I give simple advice.")]
