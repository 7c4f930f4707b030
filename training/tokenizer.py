"""Trains the demo model's byte-level BPE tokenizer (Qwen3.5's split, 4096 entries)."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from corpus.conversation import document
from rendering import TEMPLATE_PATH, render
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

VOCAB_SIZE = 4096
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKS = [
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]


def train(documents: int) -> Tokenizer:
    """Returns a tokenizer trained on the first ``documents`` seeds that are not held out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    marks = re.compile("|".join(re.escape(token) for token in CONTROL + MARKS))
    texts: list[str] = []
    for seed in range(documents):
        drawn = document(f"tokenizer-{seed}")
        if not drawn.held_out():
            texts += marks.split(render(drawn))
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE - len(CONTROL) - len(MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKS])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the tokenizer files and the chat template of a Hugging Face directory."""
    import transformers

    options: dict[str, Any] = {"clean_up_tokenization_spaces": False, "model_max_length": 4096}
    fast_class: Any = transformers.PreTrainedTokenizerFast
    fast = fast_class(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", **options
    )
    fast.chat_template = TEMPLATE_PATH.read_text(encoding="utf-8")
    fast.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Trains and saves the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=40000)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    save(train(options.documents), options.folder)


if __name__ == "__main__":
    main()
