"""The checkpoint's tokenizer: text to token ids and back, and the values stored beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmoe.chat import ChatTemplate
from flashmoe.errors import TokenizerError
from flashmoe.panics import translated
from flashmoe.stream_decoder import StreamDecoder, make_stream_decoder

if TYPE_CHECKING:
    import tokenizers

    from flashmoe.structured import Grammars

_LONG_TEXT = 20_000  # characters; tokenizers holds the GIL for a text, but not for a batch
_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_SAMPLING_VALUES = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


class Tokenizer:
    """Text to token ids and back, exactly as the ``tokenizers`` library does it.

    Attributes:
        special_tokens: Names such as ``eos_token`` and the text of each.
        eos_token_ids: Every id that ends an answer, from all the files that name one.
        chat_template: The checkpoint's chat template, ``None`` where it has none.
        generation_defaults: Sampling values the checkpoint recommends; see
            :meth:`from_directory`.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
        chat_template: ChatTemplate | None = None,
        generation_defaults: Mapping[str, float] | None = None,
    ) -> None:
        """Wrap a tokenizer that is already loaded.

        Args:
            backend: The tokenizer. Its truncation and padding are switched off.
            special_tokens: Names such as ``eos_token`` and the text of each.
            eos_token_ids: Every id that ends an answer.
            chat_template: The chat template.
            generation_defaults: Recommended sampling values.
        """
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        special = {
            number: token.content
            for number, token in backend.get_added_tokens_decoder().items()
            if token.special
        }
        self._special_ids = frozenset(special)
        self._special_texts = frozenset(special.values())
        longest_first = sorted(self._special_texts, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)))
        self.special_tokens = dict(special_tokens or {})
        self.eos_token_ids = eos_token_ids
        self.chat_template = chat_template
        self.generation_defaults = dict(generation_defaults or {})
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @classmethod
    def from_directory(cls, path: Path, *, num_logits: int | None = None) -> Tokenizer:
        """Load the tokenizer of a checkpoint.

        ``tokenizer.json`` is needed, all else is optional: ``tokenizer_config.json``
        (its ``added_tokens_decoder`` completes the added tokens by id),
        ``special_tokens_map.json``, ``generation_config.json``, ``config.json`` and
        the chat template files.

        ``generation_defaults`` holds the sampling values that
        ``generation_config.json`` sets. ``do_sample: false`` gives temperature 0,
        which is greedy decoding; an absent ``do_sample`` leaves the values as they
        stand, so a temperature that is written down is used.

        Args:
            path: The checkpoint directory.
            num_logits: Rows of the model's output; ids at or above it cannot be
                embedded.

        Raises:
            TokenizerError: A file is missing or broken, two files disagree, or the
                tokenizer has ids that the model does not.
            TemplateError: A chat template file cannot be read.
        """
        config = _read_json(path / "tokenizer_config.json")
        backend = _load_backend(path, config)
        special_tokens = _special_tokens(path, config)
        generation = _read_json(path / "generation_config.json")
        eos_token_ids = _eos_token_ids(path, backend, special_tokens.get("eos_token"), generation)
        tokenizer = cls(
            backend,
            special_tokens=special_tokens,
            eos_token_ids=eos_token_ids,
            chat_template=ChatTemplate.from_directory(
                path, special_tokens, config.get("chat_template")
            ),
            generation_defaults=_sampling_values(path / "generation_config.json", generation),
        )
        if num_logits is not None and tokenizer.vocab_size > num_logits:
            raise TokenizerError(
                f"{path / 'tokenizer.json'}: the highest token id is {tokenizer.vocab_size - 1}, "
                f"but the model has only {num_logits} (vocab_size in config.json); "
                "this tokenizer belongs to another model"
            )
        return tokenizer

    @cached_property
    def grammars(self) -> Grammars:
        """Compiles what answers must follow, and keeps it."""
        from flashmoe.structured import Grammars

        return Grammars(*self.grammar_source())

    def grammar_source(self) -> tuple[str, int, list[int]]:
        """What :class:`Grammars` takes, plain: tokenizer.json, ids there are, ids that end."""
        return self._backend.to_str(), self.vocab_size, sorted(self.eos_token_ids)

    @property
    def bos_token(self) -> str | None:
        """Text of the token that begins a document, if there is one."""
        return self.special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """Text of the tokenizer's own end token, if there is one."""
        return self.special_tokens.get("eos_token")

    @property
    def pad_token(self) -> str | None:
        """Text of the padding token, if there is one."""
        return self.special_tokens.get("pad_token")

    @property
    def unk_token(self) -> str | None:
        """Text of the token for unknown text, if there is one."""
        return self.special_tokens.get("unk_token")

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Encode text.

        Text of added tokens, such as ``<|im_end|>``, becomes these tokens.

        Args:
            text: Any text.
            add_special_tokens: Add what the tokenizer adds around a document, usually a
                begin token. Chat templates write their own, so the default is not to.

        Raises:
            TokenizerError: The text cannot be encoded, for example because of a lone
                surrogate.
        """
        with translated(TokenizerError, "the text cannot be encoded"):
            text.encode()
            if len(text) > _LONG_TEXT:
                texts = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
                return list(texts[0].ids)
            return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def control_texts(self, text: str) -> set[str]:
        """The special tokens whose text is part of a text.

        Args:
            text: Any text.
        """
        return set(self._special_pattern.findall(text)) if self._special_texts else set()

    def encode_plainly(self, control: str) -> list[int]:
        """Encode the text of a special token as ordinary text.

        Args:
            control: One of :meth:`control_texts`.

        Raises:
            TokenizerError: That cannot be done.
        """
        for cut in range(1, len(control)):
            ids = self.encode(control[:cut]) + self.encode(control[cut:])
            if not self._special_ids.intersection(ids):
                return ids
        raise TokenizerError(f"{control!r} cannot be encoded as text, only as a special token")

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Decode token ids; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: Token ids. Ids without a token, such as the padding rows of a model's
                output, have no text.
            skip_special_tokens: Leave special tokens out.

        Raises:
            TokenizerError: An id is negative or too large to be one.
        """
        with translated(TokenizerError, "the token ids cannot be decoded"):
            return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def stream(self, *, skip_special_tokens: bool = True) -> StreamDecoder:
        """Begin to decode ids that arrive one at a time.

        Args:
            skip_special_tokens: Leave special tokens out.
        """
        hidden = self._special_texts if skip_special_tokens else frozenset()

        def visible_token(token_id: int) -> str | None:
            token = self.id_to_token(token_id)
            return None if token in hidden else token

        decode = partial(self.decode, skip_special_tokens=False)
        return make_stream_decoder(self._backend.decoder, visible_token, decode)

    def token_to_id(self, token: str) -> int | None:
        """Id of a token given by its stored text, ``None`` if there is no such token."""
        return self._backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Stored text of a token (byte-level: in the byte alphabet), ``None`` if unused."""
        with translated(TokenizerError, "not a token id"):
            return self._backend.id_to_token(token_id)


def _load_backend(path: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer of tokenizer.json, completed by the added tokens of the configuration."""
    import tokenizers

    file = path / "tokenizer.json"
    if not file.is_file():
        raise TokenizerError(
            f"{file}: missing; the checkpoint has no tokenizer that can be read, "
            "work with token ids or copy tokenizer.json from the original model"
        )
    with translated(TokenizerError, f"{file}: broken"):
        _refuse_subword_prefix(file.read_bytes())
        backend = tokenizers.Tokenizer.from_file(str(file))
    declared = _declared_added_tokens(path / "tokenizer_config.json", config)
    wrong = [i for i, token in declared.items() if backend.token_to_id(token["content"]) != i]
    if not wrong:
        return backend
    with translated(TokenizerError, f"{file}: broken"):
        stored = json.loads(file.read_text(encoding="utf-8"))
        known = {token["id"]: token for token in stored["added_tokens"]}
        merged = {**{i: {**declared[i], "id": i} for i in wrong}, **known}
        stored["added_tokens"] = [merged[i] for i in sorted(merged)]  # ids are given in this order
        backend = tokenizers.Tokenizer.from_str(json.dumps(stored))
    for i in wrong:
        content = declared[i]["content"]
        if backend.token_to_id(content) != i:
            raise TokenizerError(
                f"{path / 'tokenizer_config.json'}: added token {content!r} should have id {i}, "
                f"but in tokenizer.json it gets {backend.token_to_id(content)}; "
                "the two files do not belong together"
            )
    return backend


_PREFIX = re.compile(rb'continuing_subword_prefix"\s*:\s*(?!null|""|\s)')
_HIDDEN = re.compile(rb"\\u00[4-7]")  # letters that are written as escapes


def _refuse_subword_prefix(stored: bytes) -> None:
    """Refuse BPE with a continuing_subword_prefix.

    No model here has one, and ``tokenizers`` up to 0.23 cuts the parts of a merge in the middle of
    a character then: it aborts the process, which cannot be caught.
    """
    if not _PREFIX.search(stored) and not _HIDDEN.search(stored):
        return

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if any(key == "merges" for key, _ in pairs):
            for key, value in pairs:
                if key == "continuing_subword_prefix" and value:
                    raise ValueError(f"BPE with continuing_subword_prefix {value!r}")
        return dict(pairs)

    json.loads(stored, object_pairs_hook=look)


def _declared_added_tokens(file: Path, config: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The tokens of ``added_tokens_decoder`` by id, every flag present."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "special": False}
    declared = {}
    with translated(TokenizerError, f"{file}: added_tokens_decoder is not a table of tokens by id"):
        for key, token in config.get("added_tokens_decoder", {}).items():
            values = {name: bool(token.get(name, default)) for name, default in flags.items()}
            normalized = bool(token.get("normalized", not values["special"]))
            content = str(token["content"])
            content.encode()  # half a character is no text
            declared[int(key)] = {
                "content": content,
                "normalized": normalized,
                **values,
            }
    return declared


def _special_tokens(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Text of the named special tokens; an older extra file counts only without added tokens."""
    values = dict(config)
    if "added_tokens_decoder" not in config:
        values.update(_read_json(path / "special_tokens_map.json"))
    named = {}
    for name in _SPECIAL_TOKENS:
        value = values.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if text is None:
            continue
        if not isinstance(text, str):
            raise TokenizerError(
                f"{path / 'tokenizer_config.json'}: {name} is {value!r}, not a token's text"
            )
        with translated(TokenizerError, f"{path / 'tokenizer_config.json'}: {name}"):
            text.encode()
        named[name] = text
    return named


def _eos_token_ids(
    path: Path,
    backend: tokenizers.Tokenizer,
    eos_token: str | None,
    generation: Mapping[str, Any],
) -> frozenset[int]:
    """Every end token that a file of the checkpoint names."""
    model = _read_json(path / "config.json")
    text_model = model.get("text_config")
    named = [
        *_id_list(path / "generation_config.json", generation.get("eos_token_id")),
        *_id_list(path / "config.json", model.get("eos_token_id")),
    ]
    if isinstance(text_model, dict):
        named += _id_list(path / "config.json", text_model.get("eos_token_id"))
    if eos_token:
        token_id = backend.token_to_id(eos_token)
        if token_id is None:
            raise TokenizerError(
                f"{path / 'tokenizer_config.json'}: eos_token {eos_token!r} is not a token of "
                "tokenizer.json; answers would not end"
            )
        named.append(token_id)
    return frozenset(named)


def _id_list(file: Path, value: object) -> list[int]:
    ids: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
    if any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in ids):
        raise TokenizerError(f"{file}: eos_token_id is {value!r}, not a token id or a list of them")
    return ids


def _sampling_values(file: Path, generation: Mapping[str, Any]) -> dict[str, float]:
    """The sampling values of a generation_config.json; ``do_sample: false`` means greedy."""
    values = {}
    for name in _SAMPLING_VALUES:
        value = generation.get(name)
        if value is None:
            continue
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TokenizerError(f"{file}: {name} is {value!r}, not a number")
        values[name] = value
    if generation.get("do_sample") is False:
        values["temperature"] = 0.0
    return values


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object; an absent file is an empty one."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{file}: holds {type(value).__name__}, not a JSON object")
    return value
