"""Other engines: command lines, recorded output, settings they cannot do, how they are named."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from flashmoe.bench import compare, mlx_visit
from flashmoe.bench.compare import LlamaBench, MlxLm, parse_comparison
from flashmoe.bench.run import BenchError
from flashmoe.bench.setting import Setting
from flashmoe.errors import ArgumentError

RECORDED = """[
  {
    "build_commit": "0c1e570",
    "build_number": 1,
    "cpu_info": "AMD EPYC",
    "gpu_info": "",
    "backends": "CPU",
    "model_filename": "tiny.gguf",
    "model_type": "qwen35moe ?B (guessed) Q4_0",
    "model_size": 4546544,
    "model_n_params": 7982156,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_threads": 2,
    "load_mode": "mmap",
    "repack": false,
    "n_prompt": 0,
    "n_gen": 8,
    "n_depth": 4,
    "test_time": "2026-11-23T23:30:48Z",
    "avg_ns": 1905379,
    "stddev_ns": 0,
    "avg_ts": 4198.639746,
    "stddev_ts": 0.000000,
    "samples_ns": [ 1905379 ],
    "samples_ts": [ 4198.64 ]
  }
]
"""
NEW = "  -lm, --load-mode <auto|none|mmap|mlock|mmap+mlock|dio>\n  --repack <0|1>"
OLD = "  -mmp, --mmap <0|1>\n  --repack <0|1>"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that answers --help, and otherwise writes its arguments and a recorded result."""
    path = tmp_path / "llama-bench"
    path.write_text(
        f"#!{sys.executable}\nimport sys, pathlib\nhere = pathlib.Path(__file__).parent\n"
        "if '--help' in sys.argv:\n    print((here / 'help').read_text())\n"
        "else:\n    (here / 'arguments').write_text(' '.join(sys.argv[1:]))\n"
        "    print((here / 'answer').read_text())\n"
    )
    path.chmod(0o755)
    (tmp_path / "help").write_text(NEW)
    (tmp_path / "answer").write_text(RECORDED)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    return path


def bench(program: Path) -> LlamaBench:
    return LlamaBench(program, program.with_name("model.gguf"))


@pytest.mark.parametrize(
    ("setting", "arguments"),
    [
        (Setting(tokens=8, context=4, threads=2), "-r 3 -o json -p 0 -n 8 -d 4 -t 2"),
        (Setting("prefill", prompt=16), "-r 3 -o json -p 16 -n 0"),
        (
            Setting("prefill", prompt=16, cap=10**9, cold=True),
            "-r 3 -o json -p 16 -n 0 --no-warmup --load-mode mmap --repack 0",
        ),
    ],
)
def test_a_visit_of_llama_cpp(program: Path, setting: Setting, arguments: str) -> None:
    assert bench(program).visit(setting, 3, ["/usr/bin/env"]) == {"samples": [4198.64]}
    model = program.with_name("model.gguf")
    assert program.with_name("arguments").read_text() == f"-m {model} {arguments}"


def test_weights_stay_in_the_file_as_the_help_names_it(program: Path) -> None:
    program.with_name("help").write_text(OLD)
    command = bench(program).command("decode", 512, 8, 0, None, True)
    assert command[-4:] == ["--mmap", "1", "--repack", "0"]
    program.with_name("help").write_text("  -mmp, --mmap <0|1>")
    with pytest.raises(BenchError, match="has no --repack"):
        bench(program).command("decode", 512, 8, 0, None, True)


@pytest.mark.parametrize(
    "answer",
    ["[\n", "[]", "{}", '[{"avg_ts": 1}]', '[{"samples_ts": []}]', '[{"samples_ts": [0.0]}]', "[1]",
     '[{"samples_ts": [1.0]}, {"samples_ts": [1.0]}]'],
)  # fmt: skip
def test_what_is_no_result_is_refused(program: Path, answer: str) -> None:
    with pytest.raises(BenchError, match="llama-bench"):
        bench(program).parse(answer)


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        (Setting(batch=2), "one sequence at a time, not 2"),
        (Setting(experts_per_token=4), "the model's own number of experts"),
    ],
)
def test_other_work_is_not_compared(program: Path, setting: Setting, why: str) -> None:
    for engine in (bench(program), MlxLm(program.parent)):
        with pytest.raises(BenchError, match=why):
            engine.visit(setting, 1, [])


def test_mlx_lm_has_no_threads(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="leave --threads out"):
        MlxLm(tmp_path).visit(Setting(threads=2), 1, [])


def test_a_visit_of_mlx_lm_is_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run_command(command: list[str], text: str) -> str:
        seen.extend([command, json.loads(text)])
        return 'a warning\n{"samples": [7.0]}\n'

    monkeypatch.setattr(compare, "run_command", run_command)
    setting = Setting(tokens=8)
    assert MlxLm(tmp_path).visit(setting, 2, ["nice"]) == {"samples": [7.0]}
    assert seen[0] == ["nice", sys.executable, "-m", "flashmoe.bench.mlx_visit"]
    assert seen[1] == {"path": str(tmp_path), "setting": setting.as_dict(), "samples": 2}


@pytest.mark.parametrize(("kind", "rate"), [("decode", 8 / 2.0), ("prefill", 16 / 0.5)])
def test_mlx_lm_is_timed_from_token_to_token(
    monkeypatch: pytest.MonkeyPatch, kind: str, rate: float
) -> None:
    """On a clock that a prompt moves by half a second and each later token by a quarter."""
    import contextlib

    now, prompts = [0.0], []

    def generate_step(prompt: list[int], model: object, max_tokens: int) -> Any:
        prompts.append((len(prompt), max_tokens))
        for i in range(max_tokens):
            now[0] += 0.25 if i else 0.5
            yield i

    modules = {
        "mlx_lm": {},
        "mlx_lm.generate": {
            "generate_step": generate_step,
            "wired_limit": lambda model: contextlib.nullcontext(),
        },
        "mlx_lm.utils": {"load_model": lambda path: ("model", {"text_config": {"vocab_size": 9}})},
        "mlx": {},
        "mlx.core": {"array": list},
    }
    for name, contents in modules.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["mlx"].core = sys.modules["mlx.core"]  # type: ignore[attr-defined]
    monkeypatch.setattr(mlx_visit.time, "perf_counter", lambda: now[0])
    setting = Setting(kind, prompt=16, tokens=8, context=4).as_dict()
    assert mlx_visit.measure("model", setting, 2)["samples"] == [rate, rate]
    assert prompts == [(16, 1) if kind == "prefill" else (4, 9)] * 3  # the first warms up
    mlx_visit.measure("model", setting | {"cold": True}, 1)
    assert len(prompts) == 4


def test_engines_are_named(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = program.with_name("model.gguf")
    assert parse_comparison(f"llama.cpp={program}:{model}") == LlamaBench(program, model)
    monkeypatch.setenv("PATH", str(program.parent))
    assert parse_comparison(f"llama.cpp=llama-bench:{model}") == LlamaBench(program, model)
    (program.parent / "config.json").write_text("{}")
    found: list[object] = [object(), None]
    monkeypatch.setattr(compare, "find_spec", lambda name: found.pop(0))
    assert parse_comparison(f"mlx-lm={program.parent}") == MlxLm(program.parent)
    with pytest.raises(ArgumentError, match='pip install "mlx-lm"'):
        parse_comparison(f"mlx-lm={program.parent}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("vllm=/model", "names no engine"),
        ("llama.cpp", "must be llama.cpp=PROGRAM:MODEL"),
        ("llama.cpp={here}/llama-bench", "must be llama.cpp=PROGRAM:MODEL"),
        ("llama.cpp={here}/llama-bench:{here}/none.gguf", "none.gguf is no file"),
        ("llama.cpp={here}/none:{here}/model.gguf", "none is not there"),
        ("llama.cpp={here}/help:{here}/model.gguf", "help is not executable"),
        ("mlx-lm=", "no config.json"),
        ("mlx-lm={here}", "no config.json"),
    ],
)
def test_what_could_not_run_is_refused(
    program: Path, monkeypatch: pytest.MonkeyPatch, text: str, why: str
) -> None:
    monkeypatch.chdir(program.parent)
    with pytest.raises(ArgumentError, match=why):
        parse_comparison(text.format(here=program.parent))
