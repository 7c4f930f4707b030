"""What a decoded token costs the host on Metal: dispatches, submissions, waits, processor time.

Runs the demo model on the emulated GPU of tests/metal, so it needs Linux, clang-19 and a build of
its own (CONTRIBUTING.md):

    CC=clang-19 CXX=clang++-19 OBJC=clang-19 \\
        pip install --target DIRECTORY --no-deps -Ccmake.define.FLASHMOE_METAL=ON .
    PYTHONPATH=DIRECTORY FAKE_METAL=lazy python benchmarks/metal_host_time.py

The time is that of the calling thread: our encoding, the router, and the fake device's own checks
and records, which Apple's driver replaces by work of its own. Kernels run on another thread and do
not count.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time

import numpy as np

import flashmoe
from flashmoe import _core

COUNTS = ("commits", "encoders", "dispatches", "barriers", "waits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=32)
    tokens = parser.parse_args().tokens
    fake = ctypes.CDLL(_core.__file__)
    fake.fake_metal_count.restype = ctypes.c_uint64
    with flashmoe.Model(flashmoe.demo_model_path(), device="metal", memory="1GB") as model:
        session, logits = model.new_session(), np.empty((1, model.vocab_size), np.float32)
        session.eval(model.check_tokens(model.tokenizer.encode("The expert loader reads")), logits)
        before = [fake.fake_metal_count(i) for i in range(len(COUNTS))]
        times = []
        for _ in range(tokens):
            token = np.array([logits.argmax()], np.int32)
            started = time.thread_time_ns()
            session.eval(token, logits)
            times.append(time.thread_time_ns() - started)
        after = [fake.fake_metal_count(i) for i in range(len(COUNTS))]
        each = [(z - a) / tokens for a, z in zip(before, after, strict=True)]
        layers = model.info()["num_hidden_layers"]
        session.close()
    figures = dict(zip(COUNTS, each, strict=True))
    host = statistics.median(times) / 1e3
    print(json.dumps({
        "layers": layers, **figures, "host_us": host,
        "host_us_per_dispatch": host / figures["dispatches"],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
