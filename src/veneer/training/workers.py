"""Threads that each do one task after another, as the runs of a grid, and that an interrupt ends."""

import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread
from types import TracebackType
from typing import Generic, TypeVar

LOOK_SECONDS = 0.2
"""How often whoever waits looks up: an interrupt that comes just before a wait does not end it."""
Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers(Generic[Task, Result]):
    """Do tasks at once, in a `with` block, which waits for those that were begun.

    Where the block is interrupted or left early, and where an interrupt comes while it waits, `stopped` is set and each
    task is to end soon; more interrupts change nothing. All threads are there before the first task, so that none can
    be just beginning then, unknown to who stops it.
    """

    def __init__(self, number: int, do: Callable[[Task, Event], Result]) -> None:
        """Start the threads.

        Args:
            number: how many tasks may be done at once.
            do: does one, and ends soon after the event is set; what it returns or raises is the task's outcome.
        """
        self.num_running = 0
        self._do = do
        self._stopped = Event()
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._outcomes: SimpleQueue[Result | BaseException] = SimpleQueue()
        self._ended = [Event() for _ in range(number)]
        for ended in self._ended:
            Thread(target=self._work, args=(ended,), daemon=True).start()

    @property
    def are_busy(self) -> bool:
        """Whether a task that is begun now would have to wait."""
        return self.num_running >= len(self._ended)

    def begin(self, task: Task) -> None:
        """Have a task done."""
        self.num_running += 1
        self._tasks.put(task)

    def wait(self) -> Result | BaseException:
        """Return the outcome of the next task that ends, of those that are running."""
        while True:
            with suppress(Empty):
                outcome = self._outcomes.get(timeout=LOOK_SECONDS)
                self.num_running -= 1
                return outcome

    def __enter__(self) -> "Workers[Task, Result]":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None and not issubclass(kind, Exception):
            self._stopped.set()
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                self._join()
                break
            except KeyboardInterrupt as one:
                self._stopped.set()
                interrupt = one
        if interrupt:
            raise interrupt

    def _join(self) -> None:
        """Wait for the threads to end; an interrupt in `Thread.join` would have it forget that its thread goes on."""
        while not all(ended.is_set() for ended in self._ended):
            if self._tasks.empty():
                self._tasks.put(None)  # for one that has nothing to do
            time.sleep(LOOK_SECONDS / 20)  # soon over, as a rule

    def _work(self, ended: Event) -> None:
        while (task := self._tasks.get()) is not None and not self._stopped.is_set():
            try:
                self._outcomes.put(self._do(task, self._stopped))
            except BaseException as error:  # whoever waits decides on it
                self._outcomes.put(error)
        ended.set()
