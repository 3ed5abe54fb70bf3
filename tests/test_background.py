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


def test_actions_follow_their_tasks_in_order_and_in_the_main_thread():
    go, done = threading.Event(), []
    with BackgroundTasks(2, pending=100) as tasks:
        tasks.then(lambda: done.append("before all tasks"))
        assert done == ["before all tasks"]
        tasks.submit(go.wait, 10)
        tasks.then(lambda: done.append(threading.current_thread().name))
        tasks.submit(int)
        tasks.then(lambda: done.append("last"))
        assert done == ["before all tasks"], "the first task is not done"
        go.set()
        while len(done) == 1:  # the next call that finds it done
            tasks.submit(int)
    assert done == ["before all tasks", threading.main_thread().name, "last"]


@pytest.mark.parametrize("where", ["submit", "wait", "end"])
def test_no_action_follows_a_task_that_fails(where: str):
    done: list[int] = []
    with pytest.raises(KeyError, match="7"), BackgroundTasks(1, pending=4) as tasks:
        tasks.submit(int)
        tasks.then(lambda: done.append(0))
        tasks.submit(fail, 7)
        tasks.then(lambda: done.append(1))
        tasks.submit(int)
        tasks.then(lambda: done.append(2))
        while where == "submit":
            tasks.submit(int)
        if where == "wait":
            tasks.wait()
    assert done == [0]


def test_an_error_of_the_block_leaves_no_action_undone():
    """But it drops what no action depends on."""
    go, cancelled, done = threading.Event(), threading.Event(), []
    with pytest.raises(ValueError, match="mine"), BackgroundTasks(1) as tasks:
        tasks.submit(go.wait, 10)
        tasks.then(lambda: done.append("action"))
        tasks.submit(cancelled.wait, 10)
        tasks.submit(done.append, "dropped")
        tasks._futures[-1].add_done_callback(lambda future: cancelled.set())
        threading.Timer(0.05, go.set).start()
        raise ValueError("mine")
    assert done == ["action"]


def test_read_ahead_keeps_the_order_and_its_bound():
    loaded: list[int] = []

    def load(item: int) -> int:
        loaded.append(item)
        return item * item

    seen = []
    for square in read_ahead(range(20), load, workers=3, ahead=4):
        seen.append(square)
        assert len(loaded) <= len(seen) + 4
    assert seen == [i * i for i in range(20)]
    assert list(read_ahead([], load, 1, 4)) == []


def test_read_ahead_loads_while_the_caller_works():
    together = threading.Barrier(3, timeout=10)  # the first item's turn comes when two others are being loaded
    assert list(read_ahead(range(3), lambda item: together.wait() >= 0, workers=3, ahead=2)) == [True] * 3


def test_read_ahead_raises_the_error_in_its_turn():
    items = read_ahead([1, 0, 2], lambda item: 1 / item, 2, 2)
    assert next(items) == 1.0
    with pytest.raises(ZeroDivisionError):
        next(items)
