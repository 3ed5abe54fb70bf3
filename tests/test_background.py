"""Background work: order, bounds, and errors that are never lost."""

from __future__ import annotations

import threading

import pytest

from util.parallel import BackgroundTasks, read_ahead


def fail(number: int) -> None:
    raise KeyError(number)


def test_all_tasks_are_done_at_the_end_of_the_block():
    done: list[int] = []
    with BackgroundTasks(2, pending=3) as tasks:
        for i in range(20):
            tasks.submit(done.append, i)
    assert sorted(done) == list(range(20))


def test_wait_raises_the_error():
    with BackgroundTasks(1) as tasks:
        tasks.submit(fail, 7)
        with pytest.raises(KeyError, match="7"):
            tasks.wait()


def test_the_end_of_the_block_raises_the_error():
    with pytest.raises(KeyError, match="7"), BackgroundTasks(1) as tasks:
        tasks.submit(fail, 7)


def test_submit_raises_an_earlier_error():
    with pytest.raises(KeyError, match="0"), BackgroundTasks(1, pending=2) as tasks:
        for i in range(3):
            tasks.submit(fail, i)
        pytest.fail("the third submit waits for the first task")


def test_the_error_of_the_block_comes_first_and_drops_what_has_not_begun():
    go, started, done = threading.Event(), threading.Event(), []

    def task(number: int) -> None:
        started.set()
        go.wait(10)
        done.append(number)

    with pytest.raises(ValueError, match="mine"), BackgroundTasks(1) as tasks:
        for i in range(3):
            tasks.submit(task, i)
        started.wait(10)
        tasks._futures[-1].add_done_callback(lambda future: go.set())  # the first one ends when the last is cancelled
        raise ValueError("mine")
    assert done == [0]


def test_submit_blocks_beyond_the_bound():
    go = threading.Event()
    with BackgroundTasks(1, pending=2) as tasks:
        tasks.submit(go.wait, 10)
        tasks.submit(int)
        threading.Timer(0.05, go.set).start()
        tasks.submit(int)
        assert go.is_set(), "the third task had to wait for the first"


def test_read_ahead_keeps_the_order_and_loads_one_ahead():
    loaded: list[int] = []

    def load(item: int) -> int:
        loaded.append(item)
        return item * item

    seen = []
    for item, square in read_ahead(range(5), load):
        seen.append((item, square))
        assert len(loaded) <= item + 2
    assert seen == [(i, i * i) for i in range(5)]
    assert list(read_ahead([], load)) == []


def test_read_ahead_raises_the_error_in_its_turn():
    items = read_ahead([1, 0, 2], lambda item: 1 / item)
    assert next(items) == (1, 1.0)
    with pytest.raises(ZeroDivisionError):
        next(items)
