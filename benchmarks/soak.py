"""A server under load, half of whose clients hang up, stall or send rubbish.

    python benchmarks/soak.py [--seconds 300] [--clients 64]

Starts ``flashmoe serve --demo``, asks the same four questions all the time and compares every
answer with what the question got before anything else ran. Tells answers, refusals, wrong and lost
ones, and the server's memory, threads and descriptors from time to time. Ends with 1 if an answer
was wrong or lost, or if memory grew by more than 2 % after the first fifth of the time.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

QUESTIONS = ("What is a mixture of experts?", "Tell me a short story.", "Hello!", "Who are you?")


def body(question: str, **more: object) -> bytes:
    messages = [{"role": "user", "content": question}]
    return json.dumps({"messages": messages, "max_tokens": 24, "temperature": 0, **more}).encode()


def ask(port: int, question: str) -> tuple[int, str]:
    """Status and answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/v1/chat/completions", body(question))
        response = connection.getresponse()
        got = json.loads(response.read())
    finally:
        connection.close()
    if response.status != 200:
        return response.status, ""
    return 200, got["choices"][0]["message"]["content"]


def behave(port: int, until: float, right: dict[str, str], count: Counter[str], seed: int) -> None:
    """A client that waits for its answers."""
    draw = random.Random(seed)
    while time.monotonic() < until:
        question = draw.choice(QUESTIONS)
        try:
            status, text = ask(port, question)
        except (OSError, http.client.HTTPException, ValueError):
            count["lost"] += 1
            continue
        if status == 503:
            count["refused"] += 1
            time.sleep(0.05)
        elif status != 200:
            count["lost"] += 1
        else:
            count["right" if text == right[question] else "wrong"] += 1


def misbehave(port: int, until: float, count: Counter[str], seed: int) -> None:
    """A client that does not."""
    draw = random.Random(seed)
    while time.monotonic() < until:
        sent = body(draw.choice(QUESTIONS), stream=draw.random() < 0.5, max_tokens=400)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(sent)}"
        )
        whole = head.encode() + b"\r\n\r\n" + sent
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
                match draw.randrange(5):
                    case 0:  # hangs up at once
                        connection.sendall(whole)
                    case 1:  # hangs up in the middle of an answer
                        connection.sendall(whole)
                        connection.recv(200)
                    case 2:  # stalls before it has said everything
                        connection.sendall(whole[: draw.randrange(1, len(whole))])
                        time.sleep(draw.random() * 3)
                    case 3:  # does not read
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                        connection.sendall(whole)
                        time.sleep(draw.random() * 3)
                    case _:
                        connection.sendall(draw.randbytes(draw.randrange(1, 2000)))
                        connection.recv(200)
        except OSError:
            count["cut off"] += 1
        count["bad"] += 1


def look(pid: int) -> tuple[int, int, int]:
    """Resident bytes, threads and descriptors."""
    text = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines())
    resident, threads = int(fields["VmRSS"].split()[0]), int(fields["Threads"])
    return resident * 1024, threads, len(os.listdir(f"/proc/{pid}/fd"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=64)
    a = parser.parse_args()
    command = [sys.executable, "-m", "flashmoe", "serve", "--demo", "--port", "0"]
    log = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115 - lives as long as the server
    server = subprocess.Popen([*command, "--memory", "200MB", "--queue", "40"], stderr=log)
    while not (started := re.search(r"http://[^ ]*:(\d+) ", Path(log.name).read_text())):
        time.sleep(0.05)
    port = int(started[1])
    while True:
        try:
            right = {question: ask(port, question)[1] for question in QUESTIONS}
            break
        except ConnectionError:
            time.sleep(0.1)
    count: Counter[str] = Counter()
    start = time.monotonic()
    until = start + a.seconds
    clients = [
        threading.Thread(target=misbehave, args=(port, until, count, i))
        if i % 2
        else threading.Thread(target=behave, args=(port, until, right, count, i))
        for i in range(a.clients)
    ]
    for client in clients:
        client.start()
    first = 0
    while time.monotonic() < until:
        time.sleep(min(a.seconds / 10, max(0.0, until - time.monotonic())))
        resident, threads, descriptors = look(server.pid)
        passed = time.monotonic() - start
        if not first and passed >= a.seconds / 5:
            first = resident
        print(
            f"{passed:5.0f} s  {resident / 1e6:.1f} MB, {threads} threads,"
            f" {descriptors} descriptors, {dict(count)}",
            flush=True,
        )
    for client in clients:
        client.join()
    time.sleep(2)
    resident, threads, descriptors = look(server.pid)
    grown = resident / first - 1
    held = f"{resident / 1e6:.1f} MB ({grown:+.1%})"
    print(f"after {held}, {threads} threads, {descriptors} descriptors")
    print(f"the rest served: {all(ask(port, q)[1] == t for q, t in right.items())}")
    server.terminate()
    server.wait(60)
    print("the server's log:", Path(log.name).read_text()[-2000:])
    sys.exit(bool(count["wrong"] or count["lost"] or grown > 0.02))


if __name__ == "__main__":
    main()
