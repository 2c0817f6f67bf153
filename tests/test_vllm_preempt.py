"""The scheduler class: whom it preempts for memory, and that a step waits for pages that are on their way, but not for ever.
vLLM's scheduler is a stand-in, both halves, their memory and the library are real. Runs everywhere."""

import sys
import threading
import types

import pytest
from fake_vllm import FakeController, FakeScheduler
from test_vllm_parts import BLOCK, Pair, schedule, wait

from psi_cache.vllm.remote import Wish

BLOCK_BYTES = 2 * BLOCK  # in two planes
FOR_EVER_S = 3600.0


@pytest.fixture
def preempt(monkeypatch):
    """The module, on a stand-in for vLLM's."""
    names = ["vllm", "vllm.v1", "vllm.v1.core", "vllm.v1.core.sched", "vllm.v1.core.sched.scheduler"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[names[-1]].Scheduler = FakeScheduler
    monkeypatch.delitem(sys.modules, "psi_cache.vllm.preempt", raising=False)
    import psi_cache.vllm.preempt as module

    yield module
    sys.modules.pop("psi_cache.vllm.preempt", None)


class Busy:
    """A pair with three running requests of four blocks, the first the oldest, and nothing else in its pool that has memory.
    `seen`: of each schedule, how many blocks were on their way when it was made."""

    def __init__(self, preempt, monkeypatch, tmp_path):
        self.pair = Pair(monkeypatch, tmp_path).start()
        self.half, self.keeper = self.pair.scheduler, self.pair.scheduler.keeper
        self.controller, self.seen = FakeController(Wish), []
        self.keeper._report = self.controller
        self.requests = []
        for name in ("old", "newer", "newest"):
            self.half.new_request(name)
            numbers = self.pair.pool.allocate(4)
            self.requests.append(types.SimpleNamespace(request_id=name, blocks=numbers))
            self.half.scheduled(schedule(1, [(numbers, [])]))
            self.pair.write(numbers)
        connector = types.SimpleNamespace(scheduler_half=self.half)
        self.scheduler = preempt.PreemptingScheduler(
            connector, self.pair.pool, self.requests, lambda: self.seen.append(len(self.keeper.going)))

    def wish(self, blocks, pressed=True):
        """What the controller wants from now on; it says the number once."""
        self.controller.next = [Wish(blocks * BLOCK_BYTES, 0, pressed)]
        self.controller._empty = lambda: Wish(pressed=pressed)

    def running(self):
        return [request.request_id for request in self.scheduler.running]


@pytest.fixture
def busy(preempt, monkeypatch, tmp_path):
    made = Busy(preempt, monkeypatch, tmp_path)
    yield made
    made.pair.stop()


def hold_pages(busy, monkeypatch):
    """No page goes until the event is set."""
    may_go, give = threading.Event(), busy.pair.worker.pages.give
    monkeypatch.setattr(busy.pair.worker.pages, "give", lambda runs: (may_go.wait(60), give(runs))[1])
    return may_go


def schedule_aside(busy):
    """A schedule on a thread of its own, as it may wait."""
    thread = threading.Thread(target=busy.scheduler.schedule, daemon=True)
    thread.start()
    return thread


def test_nobody_is_preempted_without_a_wish(busy):
    busy.wish(0, pressed=False)
    busy.scheduler.schedule()
    assert busy.running() == ["old", "newer", "newest"] and busy.keeper.given_bytes == 0


def test_a_step_begins_when_the_pages_of_the_preempted_are_gone(busy, preempt, monkeypatch):
    monkeypatch.setattr(preempt, "LONGEST_WAIT_S", FOR_EVER_S)
    busy.scheduler.schedule()  # tells that the blocks in use may go, too
    may_go = hold_pages(busy, monkeypatch)
    busy.wish(6)
    thread = schedule_aside(busy)
    assert wait(lambda: busy.keeper.going) and len(busy.seen) == 1
    may_go.set()
    thread.join(60)
    assert busy.seen == [0, 0] and busy.running() == ["old"]
    assert busy.keeper.given_bytes >= 6 * BLOCK_BYTES


def test_what_our_thread_was_asked_for_while_a_step_ran_is_preempted_for_at_the_next_schedule(busy):
    busy.scheduler.schedule()
    busy.wish(3)
    with busy.half.lock:
        busy.half._act(busy.keeper, idle=False)  # as our thread does when the controller calls
    assert wait(lambda: not busy.keeper.going) and busy.keeper.given_bytes == 0
    busy.scheduler.schedule()
    assert busy.running() == ["old", "newer"] and busy.keeper.given_bytes >= 3 * BLOCK_BYTES


def test_one_request_keeps_running(busy):
    busy.scheduler.schedule()
    busy.wish(1000)
    busy.scheduler.schedule()
    assert busy.running() == ["old"]


def test_what_a_person_asks_for_is_preempted_for_once(busy):
    busy.scheduler.schedule()
    busy.wish(1000, pressed=False)
    busy.scheduler.schedule()
    assert wait(lambda: not busy.keeper.going) and busy.running() == ["old"]
    busy.scheduler.schedule()
    busy.scheduler.running.append(busy.requests[1])  # it runs again
    busy.scheduler.schedule()
    assert busy.running() == ["old", "newer"]


def test_a_step_does_not_wait_for_a_slow_worker_for_long(busy, monkeypatch):
    busy.scheduler.schedule()
    may_go = hold_pages(busy, monkeypatch)
    busy.wish(6)
    thread = schedule_aside(busy)
    thread.join(60)
    assert not thread.is_alive() and busy.seen[1] > 0
    may_go.set()
    assert wait(lambda: not busy.keeper.going)


def test_a_step_does_not_wait_for_a_worker_that_died(busy, preempt, monkeypatch):
    monkeypatch.setattr(preempt, "LONGEST_WAIT_S", FOR_EVER_S)
    busy.scheduler.schedule()
    may_go = hold_pages(busy, monkeypatch)
    busy.wish(6)
    thread = schedule_aside(busy)
    assert wait(lambda: busy.keeper.going)
    with busy.half.lock:  # it has sent them, and waits
        busy.half._pages.peers[0].shutdown(2)  # as when the worker's end is gone
    thread.join(60)
    assert not thread.is_alive() and len(busy.seen) == 2
    may_go.set()


def test_without_pressure_no_step_waits(busy, preempt, monkeypatch):
    monkeypatch.setattr(preempt, "LONGEST_WAIT_S", FOR_EVER_S)
    busy.scheduler.schedule()
    may_go = hold_pages(busy, monkeypatch)
    busy.wish(6, pressed=False)
    thread = schedule_aside(busy)
    thread.join(60)
    assert not thread.is_alive() and busy.seen[1] > 0
    may_go.set()
    assert wait(lambda: not busy.keeper.going)
