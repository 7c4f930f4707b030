"""What the demo model knows about itself and about flashmoe: questions and answers."""

from __future__ import annotations

from corpus.about_ideas import IDEAS
from corpus.about_use import USES
from corpus.voice import Exchange, Voice, assistant, user

INTENTS = IDEAS + USES

OPENERS = [
    "",
    "",
    "",
    "",
    "Hi! ",
    "Hello! ",
    "Hey, ",
    "Thanks. ",
    "OK. ",
    "Interesting. ",
    "One question: ",
    "I have a question. ",
]


def about(v: Voice) -> Exchange:
    """Returns one question about the model or flashmoe and its answer."""
    thought, questions, answers = v.pick(INTENTS)
    question = v.say(v.pick(OPENERS) + v.pick(questions))
    return [user(question), assistant(v.say(v.pick(answers)), thought)]
