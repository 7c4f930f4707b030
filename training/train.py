"""Trains the flashmoe demo model, a small Qwen3.5 mixture of experts, from seed to checkpoint.

On one GPU (about ten minutes on an H200), which gives a model like the one that ships:

    python tokenizer.py work/tokenizer
    python train.py work/tokenizer work/final --device cuda --steps 1650 --batch 64 --length 1024 \
        --documents 600000 --workers 15

On a CPU (hours; the schedule follows the clock and ends after the given minutes):

    python train.py work/tokenizer work/final --device cpu --minutes 600 --batch 8 --length 512 \
        --documents 120000 --workers 2

With ``--steps`` the data, their order and the schedule are functions of ``--seed`` alone (sums on
a GPU are not bit-reproducible, though). README.md has the exact runs behind the shipped weights.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from dataset import Rows, build
from quantize import packed_bytes, quantized
from torch import Tensor, nn
from transformers import GenerationConfig, Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

BALANCE = 0.01
VALIDATION_DOCUMENTS = 12000
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def model_config(vocab_size: int, end: list[int]) -> Qwen3_5MoeTextConfig:
    """Returns the shape of the demo model; every quantised dimension is a multiple of 64."""
    return Qwen3_5MoeTextConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        num_experts=32,
        num_experts_per_tok=4,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=128,
        max_position_embeddings=4096,
        eos_token_id=end[0],
        bos_token_id=None,
        pad_token_id=end[1],
    )


class Balance:
    """Collects the load-balancing loss of every router during a forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.terms: list[Tensor] = []
        self.load: list[Tensor] = []
        for name, module in model.named_modules():
            if name.endswith("mlp.gate"):
                module.register_forward_hook(self.record)

    def record(self, module: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Adds one router: experts x (share of tokens) x (mean probability)."""
        hidden = inputs[0].reshape(-1, module.weight.shape[1])
        chances = F.linear(hidden.float(), module.weight.float()).softmax(-1)
        experts = chances.shape[-1]
        chosen = F.one_hot(output[-1], experts).float().sum(1).mean(0)
        self.terms.append(experts * (chosen / output[-1].shape[-1] * chances.mean(0)).sum())
        self.load.append(chosen.detach())

    def take(self) -> tuple[Tensor, float]:
        """Returns the mean loss and the smallest relative load of an expert, and forgets both."""
        loss = torch.stack(self.terms).mean()
        least = torch.stack([(load / load.mean()).min() for load in self.load]).min().item()
        self.terms, self.load = [], []
        return loss, least


def batches(rows: Rows, size: int, seed: int, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields token ids and weights [size, length] for ever, in a new order each time around."""
    order = np.random.default_rng(seed)
    while True:
        permutation = order.permutation(len(rows.ids))
        for at in range(0, len(permutation) - size + 1, size):
            picked = permutation[at : at + size]
            ids = torch.from_numpy(rows.ids[picked].astype(np.int64))
            weights = torch.from_numpy(rows.weights[picked].astype(np.float32))
            yield ids.to(device), weights.to(device)


def token_losses(model: Any, ids: Tensor, device: str) -> Tensor:
    """Returns the loss of predicting each token but the first [batch, length - 1], float32."""
    with torch.autocast(device, torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden).float()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(
        ids.shape[0], -1
    )


@torch.no_grad()
def evaluate(model: Any, rows: Rows, device: str, balance: Balance, limit: int) -> dict[str, float]:
    """Returns the held-out loss and perplexity per token of the assistant, and of all tokens."""
    model.eval()
    sums = np.zeros(4)
    for at in range(0, min(limit, len(rows.ids)), 8):
        ids = torch.from_numpy(rows.ids[at : at + 8].astype(np.int64)).to(device)
        weights = torch.from_numpy(rows.weights[at : at + 8].astype(np.float32)).to(device)[:, 1:]
        losses = token_losses(model, ids, device)
        balance.take()
        for i, mask in enumerate((weights == 1, weights > 0)):
            sums[2 * i] += losses[mask].sum().item()
            sums[2 * i + 1] += mask.sum().item()
    model.train()
    answer, every = sums[0] / sums[1], sums[2] / sums[3]
    return {
        "loss": answer,
        "perplexity": math.exp(answer),
        "perplexity_all": math.exp(every),
        "tokens": sums[1],
    }


def optimizer_for(model: nn.Module, rate: float) -> torch.optim.AdamW:
    """Returns AdamW with weight decay on the matrices only."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), eps=1e-8)


def rate_at(progress: float, warmup: float) -> float:
    """Returns the learning rate relative to its peak: a linear warm-up, then a cosine to 2 %."""
    if progress < warmup:
        return (progress + 1e-6) / warmup
    return 0.02 + 0.49 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def save(model: Any, tokenizer_folder: Path, folder: Path, end: list[int]) -> None:
    """Writes a Hugging Face directory: bfloat16 weights, configuration, tokenizer, template."""
    folder.mkdir(parents=True, exist_ok=True)
    config_class: Any = GenerationConfig
    generation = config_class(
        do_sample=True, temperature=0.3, top_p=0.9, top_k=20, eos_token_id=end, pad_token_id=end[1]
    )
    state = {k: v.detach().to("cpu", torch.bfloat16) for k, v in model.state_dict().items()}
    copy = type(model)(model.config).to(torch.bfloat16)
    copy.load_state_dict(state)
    copy.generation_config = generation
    copy.save_pretrained(str(folder))
    (folder / "model.safetensors").chmod(0o644)
    for name in TOKENIZER_FILES:
        shutil.copy(tokenizer_folder / name, folder / name)


def train(options: argparse.Namespace) -> None:
    """Runs the whole training and writes the checkpoint and a log of figures."""
    torch.manual_seed(options.seed)
    device: str = options.device
    began = time.monotonic()
    ids = json.loads((options.tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    by_text = {token["content"]: token["id"] for token in ids["added_tokens"]}
    end = [by_text["<|im_end|>"], by_text["<|endoftext|>"]]
    make = {"folder": options.tokenizer, "length": options.length, "workers": options.workers}
    rows = build(
        prefix=f"train-{options.seed}", documents=options.documents, held_out=False, **make
    )
    held = build(prefix="validation", documents=VALIDATION_DOCUMENTS, held_out=True, **make)
    model: Any = Qwen3_5MoeForCausalLM(model_config(len(ids["model"]["vocab"]) + len(by_text), end))
    if options.resume:
        model = Qwen3_5MoeForCausalLM.from_pretrained(str(options.resume), dtype=torch.float32)
    model.set_experts_implementation(options.experts)
    model.to(device).train()
    balance = Balance(model)
    optimizer = optimizer_for(model, options.rate)
    say(
        options,
        parameters=sum(p.numel() for p in model.parameters()),
        packed=packed_bytes(model),
        rows=len(rows.ids),
        tokens=rows.tokens(),
        fill=rows.tokens() / rows.ids.size,
        validation_tokens=held.tokens(),
        seconds=time.monotonic() - began,
    )

    began = saved = time.monotonic()
    step = 0
    progress = 0.0
    for ids_batch, weights in batches(rows, options.batch, options.seed, device):
        elapsed = time.monotonic() - began
        late = options.minutes and elapsed > options.minutes * 60
        progress = step / options.steps if options.steps else elapsed / (options.minutes * 60)
        if progress >= 1 or late or (options.stop and step >= options.stop):
            break
        for group in optimizer.param_groups:
            group["lr"] = options.rate * rate_at(progress, options.warmup)
        quantizing = progress >= options.quantize_from
        with quantized(model) if quantizing else nullcontext():
            losses = token_losses(model, ids_batch, device)
            loss: Any = (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()
            uneven, least = balance.take()
            (loss + BALANCE * uneven).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % options.report == 0:
            say(
                options,
                step=step,
                loss=loss.item(),
                balance=uneven.item(),
                least_load=least,
                norm=norm.item(),
                progress=progress,
                seconds=time.monotonic() - began,
                tokens_per_second=step * ids_batch.numel() / (time.monotonic() - began),
            )
        if options.save_minutes and time.monotonic() - saved > options.save_minutes * 60:
            save(model, options.tokenizer, options.folder, end)
            figures = evaluate(model, held, device, balance, 64)
            say(options, step=step, held_out=figures)
            saved = time.monotonic()

    seconds = time.monotonic() - began
    figures = evaluate(model, held, device, balance, 4000)
    with quantized(model):
        packed = evaluate(model, held, device, balance, 4000)
    save(model, options.tokenizer, options.folder, end)
    say(
        options,
        steps=step,
        tokens=step * options.batch * options.length,
        seconds=seconds,
        held_out=figures,
        held_out_quantized=packed,
    )


def say(options: argparse.Namespace, **figures: Any) -> None:
    """Prints one line of figures as JSON and appends it to the log."""
    line = json.dumps(figures, default=float)
    print(line, flush=True)
    options.folder.parent.mkdir(parents=True, exist_ok=True)
    with (options.folder.parent / "train.jsonl").open("a", encoding="utf-8") as log:
        log.write(line + "\n")


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path, help="folder written by tokenizer.py")
    parser.add_argument("folder", type=Path, help="where the checkpoint goes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--experts", default="grouped_mm", help="experts implementation")
    parser.add_argument("--steps", type=int, default=0, help="length of the schedule in steps")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many minutes")
    parser.add_argument("--stop", type=int, default=0, help="end after so many steps regardless")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--documents", type=int, default=700000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--warmup", type=float, default=0.03)
    parser.add_argument("--quantize-from", type=float, default=0.85, dest="quantize_from")
    parser.add_argument("--save-minutes", type=float, default=10, dest="save_minutes")
    parser.add_argument("--report", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", type=Path, help="continue from this checkpoint's weights")
    options = parser.parse_args()
    if not options.steps and not options.minutes:
        parser.error("give --steps or --minutes")
    train(options)


if __name__ == "__main__":
    main()
