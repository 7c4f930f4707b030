"""Makes the golden renderings of chat templates with transformers; run by hand.

Usage: python tests/make_template_golden.py [TEMPLATE_DIR GOLDEN_FILE]
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from transformers.utils import get_json_schema

DATA = Path(__file__).parent / "data" / "chat"
SPECIAL_TOKENS = {"bos_token": "<bos>", "eos_token": "<|im_end|>", "pad_token": "<pad>"}
FULL_TEXT = {"base", "loop-tools", "loop-tools-preserve", "values-of-every-kind", "unicode", "html"}


def main() -> None:
    """Render every conversation with every template."""
    templates, golden_file = DATA / "templates", DATA / "golden.json"
    if len(sys.argv) == 3:
        templates, golden_file = Path(sys.argv[1]), Path(sys.argv[2])
    conversations = json.loads((DATA / "conversations.json").read_text(encoding="utf-8"))
    renderings = [
        {"template": file.name, "conversation": conversation["id"], **rendering(file, conversation)}
        for file in sorted(templates.glob("*.jinja"))
        for conversation in conversations
    ]
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in renderings)
    schemas = json.dumps(tool_schemas(), ensure_ascii=False)
    golden_file.write_text(
        f'{{"transformers": "{transformers.__version__}",\n"special_tokens": '
        f'{json.dumps(SPECIAL_TOKENS)},\n"tool_schemas": {schemas},\n'
        f'"renderings": [\n{lines}\n]}}\n',
        encoding="utf-8",
    )
    print(f"{golden_file}: {len(renderings)} renderings, transformers {transformers.__version__}")


def rendering(file: Path, conversation: dict[str, Any]) -> dict[str, Any]:
    """What transformers makes of one conversation: its size and hash, or its error."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **SPECIAL_TOKENS
    )
    options = {"add_generation_prompt": True, **conversation.get("kwargs", {})}
    try:
        text = tokenizer.apply_chat_template(
            conversation["messages"] * conversation.get("repeat", 1),
            tools=conversation.get("tools"),
            chat_template=file.read_text(encoding="utf-8"),
            tokenize=False,
            **options,
        )
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
    entry = {"bytes": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return {**entry, "text": text} if conversation["id"] in FULL_TEXT else entry


def tool_schemas() -> dict[str, Any]:
    """Schemas of the functions in tool_functions.py, as transformers writes them."""
    spec = importlib.util.spec_from_file_location("tool_functions", DATA / "tool_functions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {function.__name__: get_json_schema(function) for function in module.GOOD}


if __name__ == "__main__":
    main()
