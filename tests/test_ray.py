"""Batches and a server on a local Ray."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import flashmoe
from flashmoe.integrations.ray import Predictor

# Ray's own deprecations are its own business.
pytestmark = [
    pytest.mark.filterwarnings(f"default::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning", "ResourceWarning")
]
GREEDY = flashmoe.Sampler(temperature=0)
QUESTIONS = [
    "What is a mixture of experts?",
    "Thank you.",
    "What is the capital of Norway?",
    "Why are the experts on the SSD?",
    "What does flashmoe do?",
]
CHATS = [[{"role": "user", "content": question}] for question in QUESTIONS]
OPTIONS: dict[str, Any] = {"memory": "100MB", "threads": 1, "sampler": GREEDY, "max_tokens": 40}


@pytest.fixture(scope="module")
def generator() -> Iterator[flashmoe.Generator]:
    """Says what one alone answers."""
    with flashmoe.Model(flashmoe.demo_model_path(), memory="100MB") as model:
        yield flashmoe.Generator(model, GREEDY)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "flashmoe[ray]"')
    pytest.importorskip("ray.data")
    ray.init(
        num_cpus=2,
        resources={"flashmoe": 2},
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()


# ---- what a Predictor does, without Ray -------------------------------------------------


def test_conversations(generator: flashmoe.Generator) -> None:
    predictor = Predictor(flashmoe.demo_model_path(), column="messages", **OPTIONS)
    column = np.empty(len(CHATS), object)
    column[:] = CHATS
    got = predictor({"messages": column, "id": np.arange(5)})
    want = [generator.chat(chat, max_tokens=40) for chat in CHATS]
    assert got["answer"].tolist() == [one.content for one in want]
    assert got["finish_reason"].tolist() == [one.finish_reason for one in want]
    assert got["completion_tokens"].tolist() == [len(one.token_ids) for one in want]
    assert got["prompt_tokens"].tolist() == [one.stats.prompt_tokens for one in want]
    assert set(got["reasoning"]) == {""}
    assert got["id"].tolist() == [0, 1, 2, 3, 4]


def test_reasoning_is_a_column_of_its_own(generator: flashmoe.Generator) -> None:
    options = {"enable_thinking": True}
    predictor = Predictor(
        flashmoe.demo_model_path(), column="chat", template_options=options, **OPTIONS
    )
    # As a table has them: every message has the fields of all.
    chats = [[{**message, "tool_calls": None} for message in chat] for chat in CHATS]
    got = predictor({"chat": chats})
    want = [generator.chat(chat, max_tokens=40, **options) for chat in CHATS]
    assert all(one.reasoning for one in want)
    assert got["reasoning"].tolist() == [one.reasoning for one in want]
    assert got["answer"].tolist() == [one.content for one in want]


def test_token_ids_and_formats(generator: flashmoe.Generator) -> None:
    choice = {"type": "choice", "choices": ["Oslo", "Rome"]}
    predictor = Predictor(
        flashmoe.demo_model_path(), response_format=choice, output="city", **OPTIONS
    )
    ids = np.array(generator.model.tokenizer.encode("The capital of Norway is"))
    want = generator.generate("The capital of Norway is", response_format=choice).text
    got = predictor({"prompt": [ids, "The capital of Norway is"]})
    assert got["city"].tolist() == [want, want]


def test_refusals() -> None:
    predictor = Predictor(flashmoe.demo_model_path(), **OPTIONS)
    with pytest.raises(flashmoe.ArgumentError, match="no column 'prompt', only text, id"):
        predictor({"text": ["a"], "id": [1]})
    with pytest.raises(flashmoe.ArgumentError, match="a column answer already"):
        predictor({"prompt": ["a"], "answer": ["b"]})
    with pytest.raises(flashmoe.PromptError, match="prompt 1: the prompt is empty"):
        predictor({"prompt": ["a", ""]})
    thinking = Predictor(
        flashmoe.demo_model_path(),
        response_format={"type": "json_object"},
        template_options={"enable_thinking": True},
        **OPTIONS,
    )
    with pytest.raises(flashmoe.ArgumentError, match="begin with reasoning"):
        thinking({"prompt": CHATS[:1]})


# ---- on Ray -----------------------------------------------------------------------------


def test_answers_of_many_blocks_in_order(ray: Any, generator: flashmoe.Generator) -> None:
    """Two replicas at unequal work: 16 blocks whose rows take a token or 40."""
    from flashmoe.integrations.ray import predict

    rows = [
        {"id": i, "prompt": f"{QUESTIONS[i % 5]} {i}", "messages": CHATS[i % 5]} for i in range(64)
    ]
    dataset = ray.data.from_items(rows, override_num_blocks=16)
    got = predict(
        dataset,
        flashmoe.demo_model_path(),
        column="messages",
        machines=2,
        batch_size=4,
        num_cpus=0.5,
        **OPTIONS,
    ).take_all()
    want = [generator.chat(chat, max_tokens=40) for chat in CHATS]
    assert [row["id"] for row in got] == list(range(64))
    assert [row["answer"] for row in got] == [want[i % 5].content for i in range(64)]
    assert [row["completion_tokens"] for row in got] == [
        len(want[i % 5].token_ids) for i in range(64)
    ]


def test_errors_surface(ray: Any) -> None:
    from flashmoe.integrations.ray import predict

    rows = [{"prompt": "a"}, {"prompt": "b " * 5000}]
    error = "flashmoe.errors.ContextLengthError: prompt 1: the prompt has 5001 tokens"
    with pytest.raises(ray.exceptions.RayTaskError, match=error):
        predict(ray.data.from_items(rows), flashmoe.demo_model_path(), **OPTIONS).take_all()
    with pytest.raises(flashmoe.ArgumentError, match=r"3 machines are asked for and 2 offer"):
        predict(ray.data.from_items(rows), flashmoe.demo_model_path(), machines=3)


def test_serve(ray: Any, generator: flashmoe.Generator) -> None:
    """OpenAI's client; what runs when the application is deleted ends whole."""
    serve = pytest.importorskip("ray.serve")
    openai = pytest.importorskip("openai")

    from flashmoe.integrations.ray import serve_app
    from flashmoe.server import Settings

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    app = serve_app(
        flashmoe.demo_model_path(),
        settings=Settings(name="demo"),
        num_cpus=0.5,
        memory="100MB",
        threads=1,
    )
    serve.run(app)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    got = client.chat.completions.create(model="demo", messages=CHATS[0], temperature=0)
    assert got.choices[0].message.content == generator.chat(CHATS[0]).content
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=CHATS[0])

    parts: list[Any] = []
    begun = threading.Event()

    def listen() -> None:
        ends = generator.model.tokenizer.eos_token_ids
        for chunk in client.completions.create(
            model="demo",
            prompt="Once upon a time",
            max_tokens=1000,
            temperature=0,
            stream=True,
            logit_bias={str(end): -100 for end in ends},
        ):
            parts.append(chunk.choices[0])
            begun.set()

    with ThreadPoolExecutor() as pool:
        listening = pool.submit(listen)
        begun.wait(10)
        serve.delete("default")
        listening.result(30)
    assert parts[-1].finish_reason == "length" and len(parts) > 500
    serve.shutdown()
