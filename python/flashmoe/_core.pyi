"""The engine. Use flashmoe.Model, Generator and Sampler instead."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

class Model:
    def __init__(
        self,
        manifest: str,
        directory: str,
        *,
        device: str = "cpu",
        memory: int = 0,
        threads: int = 0,
        experts_per_token: int = 0,
        kv: str = "f16",
        read: str = "buffered",
        read_threads: int = 0,
        read_split: int = 0,
        read_timeout_ms: int = 0,
        prefill_rows: int = 0,
        expert_slots: int = 0,
        eviction: str = "auto",
        verify: str = "first",
        overlap: bool = True,
        guess: bool = True,
        cache: str = "",
    ) -> None: ...
    def info(self) -> dict[str, Any]: ...
    def check_open(self) -> None: ...
    def fingerprint(self) -> int: ...
    def record(self, on: bool) -> None: ...
    def recorded(self, out: NDArray[np.int32]) -> int: ...
    def expert_uses(self, out: NDArray[np.int64]) -> None: ...
    def layer_ns(self, out: NDArray[np.int64]) -> None: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...

class Session:
    def __init__(self, model: Model) -> None: ...
    def eval(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> None: ...
    def reset(self) -> None: ...
    def cancel(self) -> None: ...
    def resume(self) -> None: ...
    def save(self) -> NDArray[np.uint8]: ...
    def load(self, snapshot: Buffer | NDArray[np.uint8]) -> None: ...
    def close(self) -> None: ...
    def stats(self) -> dict[str, int]: ...
    @property
    def position(self) -> int: ...

def eval_together(
    sessions: list[Session],
    tokens: list[NDArray[np.int32]],
    logits: list[NDArray[np.float32]],
) -> None: ...
def sample(
    logits: NDArray[np.float32],
    *,
    temperature: float,
    top_p: float,
    min_p: float,
    top_k: int,
    rng: int,
) -> tuple[int, int]: ...
def logprob(logits: NDArray[np.float32], id: int) -> float: ...
def affine_encode(
    x: NDArray[np.float32],
    bits: int,
    group: int,
    scale: str,
    weight: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    biases: NDArray[np.uint8],
) -> None: ...
def affine_search(
    x: NDArray[np.float32],
    bits: int,
    group: int,
    scale: str,
    weight: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    biases: NDArray[np.uint8],
) -> float: ...
def xxh3_64(buffer: Buffer) -> int: ...
def probe_reads(
    manifest: str,
    directory: str,
    *,
    read: str,
    read_threads: int,
    read_split: int,
    seconds: float,
    cold: bool,
    seed: int,
) -> dict[str, Any]: ...
def devices() -> list[str]: ...
def selftest(device: str, *, cache: str, quick: bool) -> list[dict[str, Any]]: ...
def kernels() -> list[str]: ...
def cores() -> int: ...
