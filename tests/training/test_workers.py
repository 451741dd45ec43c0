"""Laws of tasks done at once: they are finished, or all of them are ended, and nobody is left behind."""

import os
import signal
import threading
import time

import pytest

from veneer.training.workers import Workers

pytestmark = pytest.mark.usefixtures("interruptible")


def test_each_task_has_its_outcome_and_no_more_are_done_at_once_than_there_are_workers():
    def do(task, stopped):
        running.append(task)
        most.append(len(running))
        barrier.wait(60)  # two at once, or nobody gets on
        running.remove(task)
        if task == 3:
            raise ValueError(task)
        return 10 * task

    barrier, running, most, outcomes = threading.Barrier(2), [], [], []
    with Workers[int, int](2, do) as pool:
        for task in (1, 2, 3, 4):
            assert pool.are_busy == (task > 2)
            pool.begin(task)
        while pool.num_running:
            outcomes.append(pool.wait())
    assert sorted(map(repr, outcomes)) == ["10", "20", "40", "ValueError(3)"]
    assert max(most) == 2


def leave(do, error, *, num_tasks=1):
    """Leave a block by this error while one task is under way and others wait; None waits for its outcome."""

    def noted(task, stopped):
        began.set()
        return do(task, stopped)

    began = threading.Event()
    with Workers[int, None](1, noted) as pool:
        for task in range(num_tasks):
            pool.begin(task)
        assert began.wait(60)
        if error:
            raise error
        pool.wait()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, ValueError])
def test_what_leaves_the_block_ends_its_tasks_but_an_error_lets_them_finish(error):
    def do(task, stopped):
        outcomes.append((task, stopped.wait(60 if ends else 0.5)))

    outcomes, ends = [], error is not ValueError
    with pytest.raises(error):
        leave(do, error, num_tasks=2)
    assert outcomes == ([(0, True)] if ends else [(0, False), (1, False)])


@pytest.mark.parametrize("to_process", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, None])
def test_interrupts_end_what_is_under_way_whenever_and_however_often_they_come(error, to_process):
    """Also such as do not wake the main thread where it waits: one that comes just before does not."""

    def do(task, stopped):
        for _ in range(3):
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT) if to_process else interrupt_here()
        ended.append(stopped.wait(20))

    ended = []
    with pytest.raises(KeyboardInterrupt):
        leave(do, error)
    assert ended == [True]


def interrupt_here():
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
