"""flashmoe inside an application: a memory budget, answers that appear as they grow, a stop button.

python examples/embed.py
python examples/embed.py ~/models/qwen3.6-35b-a3b-4bit --memory 6GB
"""

from __future__ import annotations

import argparse
import queue
import threading

import flashmoe


class Answer:
    """A question that is answered in a thread of its own, so that the application stays alive."""

    def __init__(self, generator: flashmoe.Generator, question: str) -> None:
        self._generator = generator
        self._messages = [{"role": "user", "content": question}]
        # Short, so that the model waits for a slow reader; None is the end.
        self._pieces: queue.Queue[str | None] = queue.Queue(maxsize=1)
        self.finish_reason = "cancelled"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            for chunk in self._generator.stream_chat(self._messages, max_tokens=300):
                self._pieces.put(chunk.text)
                if chunk.finish_reason is not None:
                    self.finish_reason = chunk.finish_reason
        except flashmoe.CancelledError:
            pass  # the user pressed stop: finish_reason says so
        finally:
            self._pieces.put(None)

    def __iter__(self):
        yield from iter(self._pieces.get, None)
        self._thread.join()

    def stop(self) -> None:
        """The stop button: the answer ends within a layer of the model, in the middle of a read."""
        self._generator.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description="flashmoe inside an application")
    parser.add_argument("model", nargs="?", default=str(flashmoe.demo_model_path()))
    parser.add_argument("--memory", default="500MB", help="the most that the model may hold")
    options = parser.parse_args()

    try:
        model = flashmoe.Model(options.model, memory=options.memory)
    except flashmoe.BudgetError as error:  # the message has the sum, and what would be enough
        raise SystemExit(str(error)) from error
    with model, flashmoe.Generator(model) as generator:
        print("A whole answer:")
        answer = Answer(generator, "What is a mixture of experts?")
        for piece in answer:
            print(piece, end="", flush=True)
        stats = generator.stats
        print(f"\n[{answer.finish_reason}; {stats.completion_tokens} tokens, ", end="")
        print(f"{stats.decode_tokens_per_second:.0f} a second, ", end="")
        print(f"{stats.expert_hit_rate:.0%} of the experts were in memory]")

        print("\nOne that is stopped after ten pieces:")
        answer = Answer(generator, "Tell me a short story about a fox.")
        for number, piece in enumerate(answer, 1):
            print(piece, end="", flush=True)
            if number == 10:
                answer.stop()
        print(f" [{answer.finish_reason}]")

        info = model.info()
        held, memory = info["held_bytes"] / 1e6, info["memory"] / 1e6
        print(f"\nheld {held:.1f} MB of {memory:.0f} MB")


if __name__ == "__main__":
    main()
