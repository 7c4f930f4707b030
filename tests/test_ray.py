"""Batches and a server on a local Ray."""

from __future__ import annotations

import gc
import json
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
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
def ray_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as patch:
        # Else Ray takes the token of the home directory, or writes one. Read when it is imported.
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # other processes are not our fault
        ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "flashmoe[ray]"')
        pytest.importorskip("ray.data")
        yield ray
    gc.collect()  # what Ray leaves open warns here, not in somebody else's test


@pytest.fixture
def ray(ray_module: Any) -> Iterator[Any]:
    """A cluster of this test's own: Ray 2.60 may keep an actor, and its machine, for nobody."""
    ray_module.init(
        address="local",
        num_cpus=2,
        resources={"flashmoe": 2},
        object_store_memory=100_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    ray_module.data.DataContext.get_current().enable_progress_bars = False
    yield ray_module
    ray_module.shutdown()


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


def run_page(number: int, **changes: str) -> dict[str, Any]:
    """Run a block of docs/scale.md with a small model, on this machine."""
    page = (Path(__file__).parent.parent / "docs" / "scale.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[number]
    changes |= {
        'ray.init(address="auto")\n': "",
        "/models/qwen3.5-397b-a17b-4bit": str(flashmoe.demo_model_path()),
        'memory="24GB"': 'memory="100MB", threads=1',
        "machines=4": "machines=2",
    }
    for old, new in changes.items():
        assert old in code, f"docs/scale.md has no {old}"
        code = code.replace(old, new)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/scale.md", "exec"), names)
    return names


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


def test_the_page_of_many_prompts(ray: Any, generator: flashmoe.Generator, tmp_path: Path) -> None:
    prompts = [{"prompt": question} for question in QUESTIONS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    run_page(
        0,
        **{
            '"prompts.jsonl"': repr(str(tmp_path / "prompts.jsonl")),
            '"answers"': repr(str(tmp_path / "answers")),
            "max_tokens=256": "max_tokens=10",
        },
    )
    files = sorted((tmp_path / "answers").iterdir())
    got = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    want = [generator.generate(question, max_tokens=10).text for question in QUESTIONS]
    assert [(row["prompt"], row["answer"]) for row in got] == list(
        zip(QUESTIONS, want, strict=True)
    )


def test_the_page_of_many_users(ray: Any, generator: flashmoe.Generator) -> None:
    """OpenAI's client; what runs when the application is deleted ends whole."""
    serve = pytest.importorskip("ray.serve")
    openai = pytest.importorskip("openai")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_page(1, **{"0.0.0.0": "127.0.0.1", "8000": str(port)})

    def client(key: str, host: str = "llm.example.org") -> Any:
        return openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1",
            api_key=key,
            default_headers={"Host": host},
            max_retries=0,
        )

    good = client("a-long-secret")
    got = good.chat.completions.create(model="qwen", messages=CHATS[0], temperature=0)
    assert got.choices[0].message.content == generator.chat(CHATS[0]).content
    with pytest.raises(openai.NotFoundError):
        good.chat.completions.create(model="other", messages=CHATS[0])
    with pytest.raises(openai.AuthenticationError):
        client("another").models.list()
    with pytest.raises(openai.PermissionDeniedError):
        client("a-long-secret", "evil.example.org").models.list()

    parts: list[Any] = []
    begun = threading.Event()

    def listen() -> None:
        ends = generator.model.tokenizer.eos_token_ids
        for chunk in good.completions.create(
            model="qwen",
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
