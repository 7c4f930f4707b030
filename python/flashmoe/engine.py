"""A model that answers many requests at once, on a thread of its own."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from flashmoe.batch import Event, Growing, Request, Scheduler
from flashmoe.errors import ClosedError, FlashMoEError, ForkedProcessError, QueueFullError
from flashmoe.model import Model

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Job:
    """A request that was taken.

    Attributes:
        growing: The prompt and its answer so far.
        client: Who asks; clients take turns.
        deliver: Called on the engine's thread with every event of it.
    """

    growing: Growing
    client: str
    deliver: Callable[[Event], object]


class Place:
    """A place in an engine's queue, held while a request is made ready; left with the block."""

    def __init__(self, leave: Callable[[], None]) -> None:
        """See :meth:`Engine.reserve`.

        Args:
            leave: Gives it back.
        """
        self._leave: Callable[[], None] | None = leave

    def leave(self) -> None:
        """Give it back, or to the request that takes it. May be called twice."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


class Engine:
    """Runs requests in shared steps; each layer reads the experts that any of them needs once.

    Requests of several clients are begun in turn, those of one client in their order. An answer is
    the same, to the bit, whatever else runs beside it.
    """

    def __init__(self, model: Model, *, queue: int = 32, batch_size: int | None = None) -> None:
        """Start the thread.

        Args:
            model: Stays open as long as the engine.
            queue: Most requests that wait; one more is a :class:`QueueFullError`.
            batch_size: Most requests that run together; ``None``: by memory, see
                :meth:`Generator.generate_batch`.
        """
        self.model = model
        self._process = os.getpid()
        self._scheduler = Scheduler(model, batch_size)
        self._limit = queue
        self._queues: OrderedDict[str, deque[Job]] = OrderedDict()
        self._queued = self._held = 0
        self._jobs: dict[Growing, Job] = {}
        self._changed = threading.Condition()
        self._closing = self._closed = False
        self._thread = threading.Thread(target=self._serve, name="flashmoe-engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Requests that take part in steps."""
        return self._scheduler.running

    @property
    def waiting(self) -> int:
        """Requests that do not, and places that are held for some."""
        return self._queued + self._held + self._scheduler.waiting

    def reserve(self) -> Place:
        """Hold a place for a request, before the work of making it ready. For any thread.

        Raises:
            QueueFullError: Too many wait already.
            ClosedError: The engine was closed.
        """

        def leave() -> None:
            with self._changed:
                self._held -= 1

        with self._changed:
            if self._closing:
                raise ClosedError("the engine is closed")
            if self.waiting >= self._limit:
                raise QueueFullError(f"{self.waiting} requests wait already; try again later")
            self._held += 1
        return Place(leave)

    def submit(
        self,
        request: Request,
        deliver: Callable[[Event], object],
        client: str = "",
        place: Place | None = None,
    ) -> Job:
        """Take a request. For any thread.

        Args:
            request: What is asked for.
            deliver: Called on the engine's thread with every event: a chunk, progress of the
                prompt, or an error. The last one says so.
            client: Who asks; clients take turns.
            place: It takes this one; ``None``: one of its own.

        Raises:
            QueueFullError: Too many wait already.
            ClosedError: The engine was closed.
        """
        self._check_process()
        with place or self.reserve() as held:
            job = Job(self._scheduler.prepare(request), client, deliver)
            with self._changed:
                if self._closing:
                    raise ClosedError("the engine is closed")
                held.leave()
                self._queues.setdefault(client, deque()).append(job)
                self._queued += 1
                self._changed.notify_all()
        return job

    def cancel(self, job: Job) -> None:
        """End a request; nothing happens if it has ended. For any thread.

        Args:
            job: Its last event is an error, ``CancelledError``.
        """
        self._scheduler.cancel(job.growing)
        with self._changed:
            self._changed.notify_all()

    def drain(self, timeout: float) -> bool:
        """Take nothing more, and wait for what runs and waits.

        Args:
            timeout: Longest wait, in seconds.

        Returns:
            Whether all of it has ended.
        """
        self._check_process()
        until = time.monotonic() + timeout
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            while (self._jobs or self._queued) and time.monotonic() < until:
                self._changed.wait(until - time.monotonic())
            return not (self._jobs or self._queued)

    def close(self) -> None:
        """End everything; requests that still run get a ``CancelledError``. May be called twice."""
        if os.getpid() != self._process:
            return  # the thread and its requests are the other process's
        with self._changed:
            self._closing = self._closed = True
            jobs = [*self._jobs.values(), *(job for q in self._queues.values() for job in q)]
            self._changed.notify_all()
        for job in jobs:
            self.cancel(job)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ForkedProcessError(
                f"process {self._process} started this engine, and this process was forked from "
                "it afterwards; start one here"
            )

    # ---- on the engine's thread ----

    def _serve(self) -> None:
        while self._next_round():
            try:
                events = self._scheduler.step()
            except FlashMoEError as error:
                events = [Event(g, error=error) for g in self._scheduler.abandon()]
            except Exception:
                _log.exception("a step failed in a way that it must not")
                unforeseen = FlashMoEError("an internal error; the log has the details")
                events = [Event(g, error=unforeseen) for g in self._scheduler.abandon(waiting=True)]
            for event in events:
                self._tell(event)

    def _next_round(self) -> bool:
        """Wait for work and take what fits; False at the end."""
        with self._changed:
            while not (self._queued or self._jobs or self._closed):
                self._changed.wait()
            for job in self._cancelled_in_queues():
                self._take(job)
            while self._queued and not self._scheduler.waiting:
                self._take(self._pop())
            return bool(self._jobs)

    def _take(self, job: Job) -> None:
        self._queued -= 1
        self._jobs[job.growing] = job
        self._scheduler.add(job.growing)

    def _cancelled_in_queues(self) -> list[Job]:
        """Take them out; the next step tells them."""
        gone = []
        for client, jobs in list(self._queues.items()):
            gone += [job for job in jobs if job.growing.cancelled]
            left = deque(job for job in jobs if not job.growing.cancelled)
            if left:
                self._queues[client] = left
            else:
                del self._queues[client]
        return gone

    def _pop(self) -> Job:
        """The next job of the client whose turn it is."""
        client, jobs = next(iter(self._queues.items()))
        job = jobs.popleft()
        del self._queues[client]
        if jobs:
            self._queues[client] = jobs  # behind the others
        return job

    def _tell(self, event: Event) -> None:
        job = self._jobs[event.growing]
        if event.last:
            with self._changed:
                del self._jobs[event.growing]
                self._changed.notify_all()
        self._deliver(job, event)

    def _deliver(self, job: Job, event: Event) -> None:
        try:
            job.deliver(event)
        except RuntimeError:  # its event loop is gone, and with it whoever waited
            if not event.last:
                self.cancel(job)
