"""Chat templates: byte-equal to transformers, safe from hostile ones, clear in errors."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from flashmoe.chat import ChatTemplate, normalise_messages
from flashmoe.errors import TemplateError
from flashmoe.template_env import MAX_CHARACTERS

DATA = Path(__file__).parent / "data" / "chat"
GOLDEN = json.loads((DATA / "golden.json").read_text(encoding="utf-8"))
CONVERSATIONS = {
    conversation["id"]: conversation
    for conversation in json.loads((DATA / "conversations.json").read_text(encoding="utf-8"))
}
TEMPLATES = sorted(file.name for file in (DATA / "templates").glob("*.jinja"))
USER = [{"role": "user", "content": "hi"}]


@functools.cache
def load(name: str) -> ChatTemplate:
    source = (DATA / "templates" / name).read_text(encoding="utf-8")
    return ChatTemplate(source, GOLDEN["special_tokens"])


def render_conversation(template: ChatTemplate, conversation: dict[str, Any]) -> str:
    return template.render(
        conversation["messages"] * conversation.get("repeat", 1),
        tools=conversation.get("tools"),
        **conversation.get("kwargs", {}),
    )


def say(source: str, **kwargs: Any) -> str:
    return ChatTemplate(source).render(USER, **kwargs)


# Equal to transformers -----------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_renderings_equal_those_of_transformers(name: str) -> None:
    entries = [entry for entry in GOLDEN["renderings"] if entry["template"] == name]
    assert {entry["conversation"] for entry in entries} == set(CONVERSATIONS)
    rendered = 0
    for entry in entries:
        conversation = CONVERSATIONS[entry["conversation"]]
        if "error" in entry:
            with pytest.raises(TemplateError) as caught:
                render_conversation(load(name), conversation)
            assert entry["message"] in str(caught.value)
            continue
        text = render_conversation(load(name), conversation)
        if "text" in entry:
            assert text == entry["text"], entry["conversation"]
        assert len(text.encode()) == entry["bytes"], entry["conversation"]
        digest = hashlib.sha256(text.encode()).hexdigest()
        assert digest == entry["sha256"], entry["conversation"]
        rendered += 1
    assert rendered >= 60


@pytest.mark.parametrize(
    ("name", "conversation", "kwargs", "size", "digest"),
    [
        ("qwen3.6.jinja", "base", {}, 99, "7af1302f02f3"),
        ("qwen3.6.jinja", "base", {"enable_thinking": False}, 110, "657fe6d7831e"),
        ("qwen3.6.jinja", "base-tools", {}, 1272, "84c983fdf7f2"),
        ("qwen3.6.jinja", "loop-tools", {}, 1791, "3697eaaa903e"),
        ("qwen3.6.jinja", "loop-tools", {"preserve_thinking": True}, 1815, "5c3c42e6ad15"),
        ("qwen3.8.jinja", "base", {}, 308, "2fb9d80f1789"),
        ("qwen3.8.jinja", "base", {"enable_thinking": False}, 110, "657fe6d7831e"),
        ("qwen3.8.jinja", "base", {"reasoning_effort": "low"}, 237, "2a84512529c0"),
        ("qwen3.8.jinja", "base", {"reasoning_effort": "medium"}, 99, "7af1302f02f3"),
        ("qwen3.8.jinja", "base-tools", {}, 1481, "a450e4022f02"),
        ("qwen3.8.jinja", "loop-tools", {"preserve_thinking": True}, 2024, "5a4be3bf3a2a"),
        ("qwen3.jinja", "base", {}, 91, "c1254af41d72"),
        ("qwen3.jinja", "base", {"enable_thinking": False}, 110, "657fe6d7831e"),
        ("qwen3.jinja", "base-tools", {}, 748, "a8f6342e5b9d"),
        ("qwen3.jinja", "loop-tools", {}, 1195, "4fef80b77ba2"),
        ("qwen3-coder.jinja", "base", {}, 91, "c1254af41d72"),
        ("qwen3-coder.jinja", "base-tools", {}, 1301, "c07a804f0602"),
        ("qwen3-coder.jinja", "loop-tools", {}, 1793, "6c40596d559f"),
    ],
)
def test_vectors_derived_elsewhere(
    name: str, conversation: str, kwargs: dict[str, Any], size: int, digest: str
) -> None:
    chosen = CONVERSATIONS[conversation]
    text = load(name).render(chosen["messages"], tools=chosen.get("tools"), **kwargs)
    assert len(text.encode()) == size
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == digest


def test_the_prompt_in_words() -> None:
    rendered = load("qwen3.6.jinja").render(CONVERSATIONS["base"]["messages"])
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )


def test_the_callers_messages_are_not_touched() -> None:
    conversation = CONVERSATIONS["loop-tools"]
    before = json.dumps(conversation)
    render_conversation(load("qwen3.6.jinja"), conversation)
    normalise_messages(conversation["messages"], load("qwen3.jinja"))
    assert json.dumps(conversation) == before


# The environment -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ {'b': '<&>\\'é', 'a': [1, none, true]} | tojson }}", None),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% generation %}a{{ 1 }}{% endgeneration %}b", "a1b"),
        ("  {% if true %}\nx\n  {% endif %}\ny\n", "x\ny"),
        ("{{ unset is defined }} {{ unset }}", "False "),
        ("{{ given is none }}", "True"),
        ("{{ documents is none }} {{ tools is none }}", "True True"),
        ("{% set n = namespace(self=1, a=2) %}{% set n.a = 3 %}{{ n.self }}{{ n.a }}", "13"),
        ("{{ dict(a=1) }} {{ dict.fromkeys([1]) }}", "{'a': 1} {1: None}"),
        ("{{ messages[0]['content'] ~ messages[::-1][0].role }}", "hiuser"),
        ("{{ 'a' * 3 + 'b' }} {{ '%s-%05d' % ('x', 7) }} {{ 2 ** 10 * 3 }}", "aaab x-00007 3072"),
        ("{{ eos_token is defined }}", "False"),
        ("{{ dict.get is defined }}", "False"),
    ],
)
def test_the_environment(source: str, expected: str | None) -> None:
    if expected is None:
        expected = '{"b": "<&>\'é", "a": [1, null, true]}'
    assert say(source, given=None) == expected


def test_the_date_is_available() -> None:
    assert say("{{ strftime_now('%Y') }}") in {time.strftime("%Y"), str(time.gmtime().tm_year)}


def test_rich_values_become_plain_ones() -> None:
    class Mood(enum.StrEnum):
        GOOD = "good"

    class Level(enum.IntEnum):
        LOW = 3

    class Share(float):
        def __str__(self) -> str:
            return "harm"

    @dataclasses.dataclass
    class Message:
        role: str
        content: str

    class Model:
        def model_dump(self) -> dict[str, Any]:
            return {"role": "user", "content": "dumped"}

    source = "{% for m in messages %}{{ m.content }},{% endfor %}{{ [a, b, c, d, e] | tojson }}"
    text = ChatTemplate(source).render(
        [Message("user", "data"), Model(), {"role": "user", "content": Mood.GOOD}],
        a=np.int64(3),
        b=np.bool_(False),
        c=np.float32(0.5),
        d=object(),
        e=(Level.LOW, Share(0.25), np.zeros(2)),
    )
    assert text == 'data,dumped,good,[3, false, 0.5, "<object>", [3, 0.25, "<ndarray>"]]'


def test_reasoning_is_known_under_every_name() -> None:
    source = "{% for m in messages %}{{ m.thinking }}/{{ m.reasoning_content }};{% endfor %}"
    messages = [
        {"role": "assistant", "content": "", key: key[:3]}
        for key in ("reasoning_content", "thinking", "reasoning")
    ]
    assert ChatTemplate(source).render(messages) == "rea/rea;thi/thi;rea/rea;"


# Tools ---------------------------------------------------------------------------------


def tool_functions() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tool_functions", DATA / "tool_functions.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_functions_become_the_schemas_of_transformers() -> None:
    functions = tool_functions().GOOD
    assert {function.__name__ for function in functions} == set(GOLDEN["tool_schemas"])
    for function in functions:
        rendered = say("{{ tools[0] | tojson }}", tools=[function])
        assert rendered == json.dumps(GOLDEN["tool_schemas"][function.__name__], ensure_ascii=False)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (0, "'no_docstring': the function has no docstring"),
        (1, "'no_hint': argument 'x' has no type hint"),
        (2, "'no_description': the docstring does not describe 'x'"),
        (3, "argument 'x': the type .*Service.* has no JSON schema"),
        (4, "'described_with_type': the docstring does not describe 'x'"),
    ],
)
def test_functions_that_cannot_be_described_are_refused(index: int, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        say("{{ tools }}", tools=[tool_functions().BAD[index]])


def test_other_tools_are_refused() -> None:
    with pytest.raises(TemplateError, match="not int"):
        say("", tools=[5])


# Files ---------------------------------------------------------------------------------


def test_files_in_their_order(tmp_path: Path) -> None:
    def found(configured: object = None, **kwargs: Any) -> str:
        template = ChatTemplate.from_directory(tmp_path, {"bos_token": "<s>"}, configured)
        assert template is not None
        return template.render(USER, **kwargs)

    assert ChatTemplate.from_directory(tmp_path, {}) is None
    assert found("{{ bos_token }}config") == "<s>config"
    named = [
        {"name": "default", "template": "first"},
        {"name": "tool_use", "template": "with tools"},
    ]
    assert (found(named), found(named, tools=[])) == ("first", "with tools")
    (tmp_path / "chat_template.json").write_text('{"chat_template": "legacy"}')
    assert found(named, tools=[]) == "legacy"
    (tmp_path / "chat_template.jinja").write_text("file é", encoding="utf-8")
    assert found(named, tools=[]) == "file é"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("extra")
    assert (found(named), found(named, tools=[])) == ("file é", "extra")
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(TemplateError, match=r"templates for \['tool_use'\] only, not 'default'"):
        found()


@pytest.mark.parametrize(
    ("file", "content", "configured", "message"),
    [
        ("chat_template.jinja", b"\xff", None, r"chat_template\.jinja: cannot be read"),
        ("chat_template.json", b"{}", None, r"chat_template\.json: holds no chat_template"),
        ("chat_template.json", b"{", None, r"chat_template\.json: holds no chat_template"),
        ("x", b"", [{"name": "default"}], r"tokenizer_config\.json: chat_template is not"),
        ("x", b"", 5, r"tokenizer_config\.json: chat_template is not a template"),
        ("x", b"", {"default": 5}, r"holds something that is not text"),
    ],
)
def test_broken_files_are_named(
    tmp_path: Path, file: str, content: bytes, configured: object, message: str
) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(TemplateError, match=message):
        ChatTemplate.from_directory(tmp_path, {}, configured)


# Refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('no cats, please') }}", "refuses the conversation: no cats, please"),
        ("a\n{% if %}", "broken at line 2: Expected an expression"),
        ("{{ nothing.at.all }}", "UndefinedError: 'nothing' is undefined"),
        ("{{ 'a' + 1 }}", "fails on the conversation: TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ messages[0].update({'a': 1}) }}", "SecurityError"),
    ],
)
def test_errors_say_what_the_template_says(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        say(source)


def test_what_is_no_conversation_is_refused() -> None:
    template = ChatTemplate("x")
    with pytest.raises(TemplateError, match="conversation is empty"):
        template.render([])
    with pytest.raises(TemplateError, match="message 1 is not a dictionary"):
        template.render([*USER, "text"])
    with pytest.raises(TemplateError, match="document must be a dictionary"):
        template.render(USER, documents=["text"])  # type: ignore[list-item]


def test_an_unsafe_jinja_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.1.5")
    with pytest.raises(TemplateError, match=r"jinja2 3\.1\.5 lets templates out of its sandbox"):
        say("x")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.10.0rc1")
    assert say("x") == "x"


# What a hostile template may try --------------------------------------------------------

ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''['__class__'] }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ ''|attr('__cla' ~ 'ss__') }}",
    "{{ [].__class__.__base__ }}",
    "{{ {}.__class__ }}",
    "{{ ['']|map(attribute='__class__')|first }}",
    "{{ ['']|map('attr', '__class__')|first }}",
    "{{ ['']|groupby('__class__')|first|first }}",
    "{{ ['']|sum(attribute='__class__', start='') }}",
    "{{ [{'a': ''}]|map(attribute='a.__class__')|first }}",
    "{{ ['']|selectattr('__class__')|list|length or 1/0 }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ lipsum.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace.__init__.__builtins__ }}",
    "{{ namespace()._Namespace__attrs }}",
    "{{ namespace(__class__=1) }}",
    "{{ namespace({'__init__': 1}) }}",
    "{{ namespace(_x=1) }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "{{ dict.__class__ }}",
    "{{ dict.mro() }}",
    "{{ dict.__call__.__func__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['json'] }}",
    "{{ range.__self__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ self.__class__ }}",
    "{{ caller.__class__ }}{{ ''.__class__ }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}",
    "{{ '{x.__class__}'.format_map({'x': ''}) }}",
    "{{ ''.format.__self__.__class__ }}",
    "{{ ('{0.__cl' ~ 'ass__}').format(1) }}",
    "{{ ['{0.__class__}']|map('format', 1)|first }}{{ ''.__class__ }}",
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ ''.encode().__class__ }}",
    "{{ messages.__class__ }}",
    "{{ messages[0].__class__.__init__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].clear() }}",
    "{{ messages.sort() }}",
    "{{ messages[0].setdefault('a', 1) }}",
    "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% for x in (1,) %}{{ loop._iterable.__class__ }}{% endfor %}",
    "{% for x in (1,) %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends '/etc/passwd' %}",
    "{{ import('os') }}",
    "{{ open('/etc/passwd').read() }}",
    "{{ __import__('os') }}",
    "{{ eval('1') }}",
    "{{ (1).__class__ }}",
    "{{ (1).real.__class__ }}",
    "{{ 1.5.hex.__self__.__class__ }}",
    "{% set x = ''.__class__ %}{{ x.mro() }}",
    "{{ config.items() }}",
    "{{ request.application }}",
    "{{ url_for.__globals__ }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_way_out_of_the_sandbox(source: str) -> None:
    try:
        text = say(source)
    except TemplateError:
        return
    # Undefined prints as nothing, a placeholder as itself; nothing of Python may show.
    for leak in ("<class", "<function", "built-in", "module", "object at", "root:", "uid="):
        assert leak not in text, text
    assert text.strip() in {"", "1", "{0.__class__}"}, text


BOMBS = [
    "{{ ('a' * (10 ** 9)) | length }}",
    "{{ (10 ** 9) * 'a' }}",
    "{{ [0] * 10 ** 9 }}",
    "{{ '%0999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ 10 ** (10 ** 10) }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{% set s = 'a' * 10000 %}{% for i in range(99999) %}{{ s }}{% endfor %}",
    "{% for i in range(10 ** 9) %}{% endfor %}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
]


@pytest.mark.parametrize("source", BOMBS)
def test_what_would_fill_the_memory_is_stopped(source: str) -> None:
    started = time.monotonic()
    with pytest.raises(TemplateError):
        say(source)
    assert time.monotonic() - started < 2


def test_the_limit_on_output_is_named_and_leaves_room() -> None:
    half = MAX_CHARACTERS // 2
    assert len(say("{{ 'a' * n }}{{ 'b' * n }}", n=half)) == MAX_CHARACTERS
    with pytest.raises(TemplateError, match=f"printed more than {MAX_CHARACTERS} characters"):
        say("{{ 'a' * n }}{{ 'b' * n }}{{ 'c' }}", n=half)


# Messages of OpenAI-style clients --------------------------------------------------------

CLIENT_FORMS = {
    "call-arguments-as-text",
    "call-arguments-empty-text",
    "call-content-none",
    "call-content-none-reasoning",
    "content-missing",
    "developer",
    "parts-image",
    "parts-text",
    "parts-unknown",
    "role-missing",
    "system-late",
    "system-twice",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_transformers_renders_stays_as_it_is(name: str) -> None:
    unchanged = 0
    for entry in GOLDEN["renderings"]:
        if entry["template"] != name or entry["conversation"] in CLIENT_FORMS or "error" in entry:
            continue
        messages = CONVERSATIONS[entry["conversation"]]["messages"]
        assert normalise_messages(messages, load(name)) == messages, entry["conversation"]
        unchanged += 1
    assert unchanged >= 55


@pytest.mark.parametrize(
    ("name", "conversation"),
    [
        ("qwen3.jinja", "call-arguments-as-text"),
        ("qwen3.6.jinja", "parts-text"),
        ("qwen2.5.jinja", "system-late"),
        ("qwen3.jinja", "system-twice"),
        ("qwen3-coder.jinja", "developer"),
        ("qwen3.8.jinja", "call-content-none-reasoning"),
    ],
)
def test_client_forms_that_a_template_knows_stay(name: str, conversation: str) -> None:
    messages = CONVERSATIONS[conversation]["messages"]
    assert normalise_messages(messages, load(name)) == messages


@pytest.mark.parametrize("name", TEMPLATES)
def test_client_forms_render_as_the_plain_conversation(name: str) -> None:
    template = load(name)
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": [1, "é"]}}}
    text_call = {**call, "function": {"name": "f", "arguments": '{"a":[1,"\\u00e9"]}'}}
    plain = [
        {"role": "system", "content": "one\n\ntwo"},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "r"},
    ]
    client = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [text_call]},
        plain[3],
    ]
    rendered = template.render(normalise_messages([plain[0], *client], template))
    if name == "qwen3.jinja":  # renders the text of the arguments itself, as transformers does
        assert rendered.replace('{"a":[1,"\\u00e9"]}', '{"a": [1, "é"]}') == template.render(plain)
    else:
        assert rendered == template.render(plain)


@pytest.mark.parametrize("name", ["qwen3.6.jinja", "qwen3.8.jinja"])
def test_system_messages_move_to_the_front(name: str) -> None:
    messages = [
        {"role": "developer", "content": "one"},
        {"role": "user", "content": "a"},
        {"role": "system", "content": [{"type": "text", "text": "two"}]},
        {"role": "user", "content": "b"},
    ]
    with pytest.raises(TemplateError, match=r"role|beginning"):
        load(name).render(messages)
    text = load(name).render(normalise_messages(messages, load(name)))
    merged = [{"role": "system", "content": "one\n\ntwo"}, messages[1], messages[3]]
    assert text == load(name).render(merged)


def test_a_developer_message_is_never_lost() -> None:
    messages = [{"role": "developer", "content": "speak Latin"}, *USER]
    for name in TEMPLATES:
        text = load(name).render(normalise_messages(messages, load(name)))
        assert "speak Latin" in text, name


def test_absent_arguments_become_an_empty_object() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": " "}}
    messages = [*USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    normalised = normalise_messages(messages, load("qwen3.6.jinja"))
    assert normalised[1]["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "user", "content": [{"type": "image_url"}]}, "part of type 'image_url'"),
        ({"role": "user", "content": [7]}, "message 1 holds a part of type 'int'"),
        ({"role": "user", "content": [{"type": "text"}]}, "part of type 'text'"),
        ({"content": "x"}, "message 1 has no role"),
        ("text", "message 1 is not a dictionary"),
        ({"role": "assistant", "tool_calls": [5]}, "a tool call is int"),
        (
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "f", "arguments": "{'a': 1}"}}],
            },
            "message 1: the arguments of the call to 'f' are not valid JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            "are list, not a JSON object",
        ),
        ({"role": "system", "content": 7}, "content of a system message is int, not a text"),
    ],
)
def test_messages_that_cannot_be_used_are_refused(message: Any, error: str) -> None:
    with pytest.raises(TemplateError, match=error):
        normalise_messages([*USER, message], load("qwen3.6.jinja"))
