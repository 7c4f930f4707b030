"""A server among bad clients: garbage, slow heads, floods, hang-ups, no readers, bad fields, keys.

``python tests/reliability/server.py`` starts ``flashmoe serve --demo`` and prints a line for each;
``--scale 0.1`` does a tenth of it, ``--only garbage --scale 34`` a million damaged requests.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from grammar_bombs import bombs

KEY = "k" * 32
CHAT = "/v1/chat/completions"


class Server:
    """``flashmoe serve --demo`` as a process."""

    def __init__(self, *options: str) -> None:
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        program = [sys.executable, "-m", "flashmoe", "serve", "--demo", "--port", str(self.port)]
        self.process = subprocess.Popen([*program, *options], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                if self.get("/health")[0] == 200:
                    return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def close(self) -> int:
        """End it; its status."""
        self.process.terminate()
        return self.process.wait(60)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def get(self, path: str, body: object = None, key: str = "") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with closing(connection):
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            raw = None if body is None else json.dumps(body)
            connection.request("GET" if raw is None else "POST", path, raw, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def metric(self, name: str) -> float:
        lines = self.get("/metrics")[1].decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def metric_lines(self) -> int:
        return len(self.get("/metrics")[1].splitlines())

    def memory(self) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def question(text: str, **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **more}


class Health:
    """Asks for /health all the while."""

    def __init__(self, server: Server) -> None:
        self.server, self.waits, self._stop = server, [0.0], threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        while not self._stop.wait(0.02):
            start = time.monotonic()
            assert self.server.get("/health")[0] == 200
            self.waits.append(time.monotonic() - start)

    def __enter__(self) -> Health:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def __str__(self) -> str:
        waits = sorted(self.waits)
        return f"/health p99 {waits[int(0.99 * len(waits))] * 1e3:.0f} ms of {len(waits)}"


def garbage(server: Server, scale: float) -> str:
    """Requests with damage anywhere, several on a connection, and halves of them."""
    rng = random.Random(1)
    body = json.dumps(question("Hi", max_tokens=1)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    seeds = [
        head.encode() + body,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3,
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'5\r\n{"a":\r\n0\r\n\r\n',
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    words = [
        b"\r\n",
        b"\x00",
        b": ",
        b"\xff" * 40,
        b"Content-Length: -1\r\n",
        b"9" * 30,
        b"a" * 70000,
    ]
    answers: Counter[str] = Counter()
    server.get(CHAT, question("Hi", max_tokens=1))
    lines = server.metric_lines()
    before, start = server.memory(), time.monotonic()
    with Health(server) as health:
        for _ in range(int(30_000 * scale)):
            data = bytearray(rng.choice(seeds))
            if rng.random() < 0.1:  # whole, but nothing that there is
                odd = f"{rng.choice('GPX')}{rng.randrange(99)} /{rng.random()} HTTP/1.1\r\n"
                data[:] = f"{odd}Host: localhost\r\nX-{rng.random()}: a\r\n\r\n".encode()
            for _ in range(rng.randrange(0, 5)):
                at = rng.randrange(len(data) + 1)
                match rng.randrange(4):
                    case 0:
                        data[at:at] = rng.choice(words)
                    case 1:
                        del data[at : at + rng.randrange(1, 20)]
                    case 2:
                        data[at : at + 1] = bytes([rng.randrange(256)])
                    case 3:
                        data = data[: at or 1]
            with closing(server.connect()) as connection:
                try:
                    connection.sendall(data)
                    if rng.random() < 0.7:
                        connection.shutdown(socket.SHUT_WR)
                        answers[connection.recv(12)[9:12].decode("latin-1")] += 1
                    else:
                        answers["left"] += 1
                except TimeoutError:
                    raise
                except OSError:  # "not connected" is no ConnectionError
                    answers["closed"] += 1
    grown = (server.memory() - before) / 1e6
    wrong = sum(n for status, n in answers.items() if status[:1] == "5" and status != "503")
    return (
        f"{sum(answers.values())} damaged requests in {time.monotonic() - start:.0f} s: "
        f"{dict(answers.most_common())}, {wrong} of 5xx but 503, {grown:+.1f} MB, "
        f"{server.metric_lines() - lines} more lines of /metrics, {health}"
    )


def slow_heads(server: Server, scale: float) -> str:
    """Connections that send a head byte by byte, or nothing, until they are closed."""
    connections = [server.connect() for _ in range(int(200 * scale) or 1)]
    start, closed = time.monotonic(), []
    with Health(server) as health:
        while connections and time.monotonic() - start < 60:
            for i, connection in list(enumerate(connections)):
                try:
                    if i % 2:
                        connection.send(b"G")
                    connection.setblocking(False)
                    if connection.recv(1) == b"":
                        raise ConnectionResetError
                except BlockingIOError:
                    continue
                except ConnectionError:
                    closed.append(time.monotonic() - start)
                    connection.close()
                    connections.remove(connection)
            time.sleep(0.2)
    for connection in connections:
        connection.close()
    latest = max(closed, default=0)
    return (
        f"{len(closed)} slow heads closed, the latest after {latest:.1f} s; "
        f"{len(connections)} stay, {health}"
    )


async def at_once(port: int, bodies: list[bytes]) -> list[tuple[int, float, bytes]]:
    """Status, seconds to the status line, and text of requests that are sent in the same moment."""
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in bodies]
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: "
    start = time.monotonic()

    async def one(i: int) -> tuple[int, float, bytes]:
        reader, writer = connections[i]
        writer.write(f"{head}{len(bodies[i])}\r\n\r\n".encode() + bodies[i])
        status = int((await reader.readline()).split()[1])
        took = time.monotonic() - start
        text = (await reader.read()).partition(b"\r\n\r\n")[2]
        writer.close()
        return status, took, text

    return await asyncio.gather(*map(one, range(len(bodies))))


def flood(server: Server, scale: float) -> str:
    """200 requests at once to a queue of 32."""
    many = int(200 * scale) or 1
    ask = [json.dumps(question(f"Number {i}", max_tokens=60)).encode() for i in range(4)]

    def words(text: bytes) -> str:
        return str(json.loads(text)["choices"][0]["message"])

    want = [words(asyncio.run(at_once(server.port, [body]))[0][2]) for body in ask]
    with Health(server) as health:
        got = asyncio.run(at_once(server.port, [ask[i % 4] for i in range(many)]))
    counts = Counter(status for status, _, _ in got)
    wrong = sum(
        words(text) != want[i % 4] for i, (status, _, text) in enumerate(got) if status == 200
    )
    refused = sorted(wait for status, wait, _ in got if status == 503) or [0.0]
    return (
        f"{many} at once: {dict(counts)}, {wrong} wrong, refused "
        f"{statistics.median(refused) * 1e3:.0f} ms after all were sent (median), "
        f"{refused[-1] * 1e3:.0f} ms (the last), {health}"
    )


def hang_ups(server: Server, scale: float) -> str:
    """Clients that go at random moments; what is computed for nobody."""
    rng, many = random.Random(2), int(500 * scale) or 1
    body = json.dumps(
        question("Tell me a long story. " * 40, max_tokens=2000, stream=True)
    ).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )

    def one(wait: float) -> None:
        with closing(server.connect()) as connection:
            connection.sendall(head + body)
            time.sleep(wait)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, [rng.uniform(0, 0.3) for _ in range(many)]))
    start = time.monotonic()
    while server.metric("flashmoe_requests_running") + server.metric("flashmoe_requests_waiting"):
        assert time.monotonic() - start < 30, "requests of those who left still run"
        time.sleep(0.005)
    return f"{many} hung up: none runs {1e3 * (time.monotonic() - start):.0f} ms after the last"


def no_readers(server: Server, scale: float) -> str:
    """Clients that ask much and read nothing."""
    many = int(40 * scale) or 1
    time.sleep(12)  # connections of before are gone
    before, held = server.memory(), server.descriptors()
    connections = []
    path = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for _ in range(many):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.settimeout(0.2)
        connections.append(connection)
        try:
            connection.sendall(path * 4000)
        except (TimeoutError, ConnectionError):
            continue
    most, start = server.memory(), time.monotonic()
    while server.descriptors() > held and time.monotonic() - start < 60:
        most = max(most, server.memory())
        time.sleep(0.1)
    took, left = time.monotonic() - start, server.descriptors() - held
    for connection in connections:
        connection.close()
    return (
        f"{many} that do not read: cut off after {took:.1f} s, {left} left, "
        f"at most {(most - before) / 1e6:+.1f} MB"
    )


def wrong_keys(server: Server, scale: float) -> str:
    """Keys wrong in their first or last byte take the same time."""
    keys = {"first": "x" + KEY[1:], "last": KEY[:-1] + "x"}
    times: dict[str, list[float]] = {name: [] for name in keys}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    rng = random.Random(3)
    with closing(connection):
        for _ in range(int(20_000 * scale)):
            name = rng.choice(list(keys))
            start = time.perf_counter()
            connection.request(
                "GET", "/v1/models", headers={"Authorization": f"Bearer {keys[name]}"}
            )
            answer = connection.getresponse()
            answer.read()
            times[name].append(time.perf_counter() - start)
            assert answer.status == 401
    # Mann-Whitney by its normal approximation: p for the two being alike
    ranks = sorted((wait, name) for name, waits in times.items() for wait in waits)
    total = sum(rank for rank, (_, name) in enumerate(ranks, 1) if name == "first")
    a, b = len(times["first"]), len(times["last"])
    z = (total - a * (a + b + 1) / 2) / (a * b * (a + b + 1) / 12) ** 0.5
    p = 2 * (1 - statistics.NormalDist().cdf(abs(z)))
    medians = {name: f"{statistics.median(waits) * 1e6:.1f} us" for name, waits in times.items()}
    return f"{a + b} wrong keys: medians {medians}, p = {p:.2f}"


def grammars(server: Server, scale: float) -> str:
    """Small ones that are large to compile, and thousands that nobody asks for again."""
    longest, slowest, most = 0.0, "", server.memory()
    with Health(server) as health:
        for name, wanted in bombs():
            start = time.monotonic()
            status, _ = server.get(CHAT, question("Hi", max_tokens=3, response_format=wanted))
            took = time.monotonic() - start
            assert status in (200, 400), (name, status)
            if took > longest:
                longest, slowest = took, name
            most = max(most, server.memory())
    many, memory = int(10_000 * scale) or 1, []
    start = time.monotonic()
    for i in range(many):
        properties = {f"p{i}": {"type": "string", "maxLength": 3}}
        schema = {"type": "object", "properties": properties, "additionalProperties": False}
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        status, _ = server.get(CHAT, question("Hi", max_tokens=1, response_format=wanted))
        assert status == 200, status
        if i % max(1, many // 10) == 0:
            memory.append(server.memory())
    return (
        f"the longest took {longest:.2f} s ({slowest}), at most {most / 1e6:.0f} MB, {health}; "
        f"{many} schemas: {1e3 * (time.monotonic() - start) / many:.1f} ms each, memory "
        f"{[round(m / 1e6, 1) for m in [*memory, server.memory()]]} MB"
    )


def fields(server: Server, scale: float) -> str:
    """Every field of every interface at values that it cannot have, four times."""
    from test_server_limits import BODIES, cases

    took, memory = [], []
    for _ in range(4):
        for path, field, value in cases():
            start = time.monotonic()
            status, _ = server.get(path, {**BODIES[path], field: value})
            took.append((time.monotonic() - start, f"{field}: {value!r}"[:40]))
            assert status in (400, 404), (path, field, status)
        memory.append(round(server.memory() / 1e6, 1))
    took.sort()
    slow = sorted({what for wait, what in took if wait > 0.02})
    return (
        f"{len(took)} refused, {took[len(took) // 2][0] * 1e3:.1f} ms in the median, p99 "
        f"{took[len(took) * 99 // 100][0] * 1e3:.1f} ms, {took[-1][0] * 1e3:.0f} ms at most; "
        f"over 20 ms {slow}; memory after each round {memory} MB"
    )


CAMPAIGNS: dict[str, Callable[[Server, float], str]] = {
    "garbage": garbage,
    "slow heads": slow_heads,
    "flood": flood,
    "hang-ups": hang_ups,
    "no readers": no_readers,
    "grammars": grammars,
    "fields": fields,
}


def main() -> None:
    """Run them one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", nargs="*", choices=[*CAMPAIGNS, "wrong keys"], default=[])
    options = parser.parse_args()
    server = Server("--memory", "200MB", "--batch-size", "1", "--prefix-memory", "0")
    for name, campaign in CAMPAIGNS.items():
        if options.only and name not in options.only:
            continue
        print(f"{name}: {campaign(server, options.scale)}", flush=True)
    print(f"ends with status {server.close()}", flush=True)
    if options.only and "wrong keys" not in options.only:
        return
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        keys.write(KEY + "\n")
        keys.flush()
        server = Server("--api-key-file", keys.name)
        print(f"wrong keys: {wrong_keys(server, options.scale)}", flush=True)
        server.close()


if __name__ == "__main__":
    main()
