"""Which blocks the keeper takes and gives back, on a pool that is a stand-in. Runs everywhere."""
import random

import pytest
from fake_vllm import FakeBlockPool, FakeController

from psi_cache.vllm.channel import Run
from psi_cache.vllm.keeper import Keeper, runs_of
from psi_cache.vllm.remote import ALL, Wish

BYTES = 1000


class Bench:
    """A keeper, its pool, and a worker that answers when told to."""

    def __init__(self, blocks=40, floor=8, policy="lru", can_send=True):
        self.pool, self.controller, self.sent = FakeBlockPool(blocks), FakeController(Wish), []
        self.keeper = Keeper(self.pool, BYTES, floor, self.controller, self.send, policy)
        self.can_send = can_send

    def send(self, runs, worth):
        if self.can_send:
            self.sent.append(runs)
        return self.can_send

    def request(self, count, cached=False):
        numbers = self.pool.allocate(count, cached)
        self.keeper.note_used([numbers])
        return numbers

    def done(self, numbers):
        self.keeper.note_released([numbers])
        self.pool.release(numbers)

    def wish(self, blocks=0, restore=0, pressed=False, idle=False):
        """One tick with this wish; the blocks that were sent to the workers."""
        self.controller.next = [Wish(blocks * BYTES, restore * BYTES if restore != ALL else ALL, pressed)]
        before = len(self.sent)
        self.keeper.tick(idle)
        return [n for runs in self.sent[before:] for run in runs for n in range(run.first, run.first + run.blocks)]

    def answer(self, gone=None):
        self.keeper.gave(len(self.keeper.going) * BYTES if gone is None else gone)

    def check(self):
        """Every block is in one place, and the numbers agree."""
        keeper, pool = self.keeper, self.pool
        out = set(keeper.withheld) | set(keeper.going)
        assert not set(keeper.withheld) & set(keeper.going) and not out & set(keeper.touched)
        assert not out & set(pool.queue) and all(pool.blocks[n].ref_cnt == 1 for n in out)
        assert len(set(pool.queue)) == len(pool.queue)
        assert keeper.usable() == len(pool.blocks) - 1 - len(out)
        free_touched = sum(n in keeper.touched for n in pool.queue)
        assert keeper.evictable() == free_touched


def test_nothing_is_taken_without_a_wish():
    bench = Bench()
    bench.done(bench.request(10, cached=True))
    assert bench.wish() == [] and bench.pool.get_num_free_blocks() == 40


def test_blocks_without_a_prefix_go_before_cached_ones():
    bench = Bench()
    cached, plain = bench.request(4, cached=True), bench.request(4)
    bench.done(cached)
    bench.done(plain)
    assert sorted(bench.wish(4)) == plain
    bench.answer()
    assert sorted(bench.wish(4)) == cached and sorted(bench.pool.log) == cached
    bench.answer()
    bench.check()


def test_the_longest_unused_goes_first_and_a_text_from_its_end():
    bench = Bench()
    first, second = bench.request(3, cached=True), bench.request(3, cached=True)
    bench.done(first)
    bench.done(second)
    bench.pool.touch([bench.pool.blocks[n] for n in first])  # another request hits the first prefix
    bench.keeper.note_used([first], [3])
    bench.done(first)
    assert bench.wish(1) == [second[-1]]
    bench.answer()
    assert sorted(bench.wish(3)) == sorted([*second[:2], first[-1]])


def test_fifo_goes_by_when_it_was_written():
    bench = Bench(policy="fifo")
    first, second = bench.request(3, cached=True), bench.request(3, cached=True)
    bench.done(first)
    bench.done(second)
    bench.keeper.note_used([first], [3])  # hit again: older all the same
    assert sorted(bench.wish(3)) == first


def test_blocks_in_use_never_go():
    bench = Bench()
    held = bench.request(20)
    assert bench.wish(30) == [] and bench.keeper.owed == 30
    bench.done(held[:5])
    assert sorted(bench.wish(30)) == held[:5]
    bench.check()


def test_the_longest_request_always_finds_room():
    bench = Bench(blocks=40, floor=8)
    bench.done(bench.request(40, cached=True))
    for _ in range(20):
        bench.wish(40, pressed=True)
        assert bench.keeper.usable() >= 8
        bench.answer()
        bench.check()
    assert len(bench.keeper.withheld) == 32
    assert not bench.keeper.touched  # all of it went: also what the floor leaves in the pool
    assert len(bench.pool.allocate(8)) == 8


def test_an_idle_engine_gives_all_at_once_and_gets_its_floor_back():
    bench = Bench(blocks=40, floor=8)
    bench.done(bench.request(40, cached=True))
    assert len(bench.wish(40, idle=True)) == 40
    bench.keeper.settle()
    assert bench.keeper.usable() == 0  # its pages are on their way
    bench.answer()
    bench.keeper.settle()
    assert bench.keeper.usable() == 8 and bench.keeper.all_free()
    bench.check()


def test_a_cache_as_small_as_one_request_still_gives_its_pages():
    bench = Bench(blocks=8, floor=100)
    bench.done(bench.request(8, cached=True))
    assert len(bench.wish(8, idle=True)) == 8
    bench.answer()
    bench.keeper.settle()
    assert not bench.keeper.withheld and bench.keeper.usable() == 8


def test_under_pressure_blocks_without_memory_are_withheld():
    bench = Bench(blocks=40, floor=8)
    held = bench.request(10)
    assert len(bench.wish(0, pressed=True)) == 30 and not set(held) & set(bench.keeper.going)
    bench.answer(0)
    assert bench.wish(0, pressed=True) == []  # there is none left
    bench.check()


def test_nothing_moves_while_pages_are_on_their_way():
    bench = Bench()
    bench.done(bench.request(20, cached=True))
    assert len(bench.wish(5)) == 5
    assert bench.wish(5) == [] and bench.wish(restore=ALL) == []
    bench.answer()
    assert len(bench.wish(5)) == 5


def test_what_is_asked_meanwhile_is_done_afterwards():
    bench = Bench()
    bench.done(bench.request(20, cached=True))
    bench.controller.next = [Wish(5 * BYTES), Wish(0, ALL)]  # the second when the first's going is told
    bench.keeper.tick()
    assert len(bench.keeper.going) == 5
    bench.keeper.tick()
    assert len(bench.controller.told) == 2  # nothing is taken that could not be done
    bench.answer()
    bench.keeper.tick()
    assert not bench.keeper.withheld and bench.keeper.all_free()


def test_what_is_withheld_comes_back_in_the_steps_asked_for():
    bench = Bench()
    bench.done(bench.request(20, cached=True))
    bench.wish(20)
    bench.answer()
    assert len(bench.keeper.withheld) == 20
    bench.wish(restore=3)
    assert len(bench.keeper.withheld) == 17
    bench.wish(restore=ALL)
    assert not bench.keeper.withheld and bench.pool.get_num_free_blocks() == 40
    bench.check()


def test_what_came_back_is_noted_where_it_is_asked_for():
    bench = Bench()
    bench.keeper.notes_returned = True
    bench.done(bench.request(20, cached=True))
    gone = bench.wish(6)
    bench.answer()
    bench.wish(restore=ALL)
    assert sorted(bench.keeper.returned) == sorted(gone)


def test_counts_are_told_with_what_happened():
    bench = Bench()
    bench.done(bench.request(20, cached=True))
    bench.wish(5)
    told = bench.controller.told[-1]  # at once: else the same is asked for again
    assert (told.resident, told.evictable, told.going_bytes) == (20, 20, 5 * BYTES)
    bench.answer(gone=4500)
    bench.wish()
    told = bench.controller.told[-1]
    assert (told.resident, told.withheld, told.given_bytes, told.going_bytes) == (15, 5, 4500, 0)
    bench.wish(restore=5)
    bench.request(30)  # the 25 empty ones, of which 5 had been given back, and 5 with a prefix
    bench.wish()
    assert bench.controller.told[-1].taken_bytes == 4500 and bench.controller.told[-1].resident == 40


def test_a_scheduler_that_preempts_is_asked_for_blocks_in_use_too():
    bench = Bench()
    bench.request(20)
    bench.keeper.preempts = True
    bench.wish(0)
    assert bench.controller.told[-1].evictable == 20
    bench.wish(6)
    assert bench.keeper.owed == 6


def test_what_is_owed_stays_owed_while_there_is_pressure():
    """Our thread took the wish while a step ran; the scheduler, which can do something about it, asks after that."""
    bench = Bench()
    bench.request(20)
    bench.keeper.preempts = True
    bench.wish(6, pressed=True)
    assert bench.keeper.owed == 6
    bench.answer()
    bench.wish(0, pressed=True)
    assert bench.keeper.owed == 6
    bench.answer()
    bench.wish(4, pressed=True)  # the same need, told again
    assert bench.keeper.owed == 6
    bench.answer()
    bench.wish(0, pressed=False)
    assert bench.keeper.owed == 0


def test_what_is_owed_goes_once_it_is_free():
    bench = Bench()
    held = bench.request(20)
    bench.keeper.preempts = True
    bench.wish(6, pressed=True)
    bench.answer()
    bench.done(held[:4])
    assert set(held[:4]) <= set(bench.wish(0, pressed=True)) and bench.keeper.owed == 2


def test_an_idle_engine_leaves_no_wish_pending():
    """The library holds what it asked for to be on its way until the next report, and lets nothing come back meanwhile."""
    bench = Bench()
    numbers = bench.request(4)
    bench.done(numbers)
    bench.pool._reuse_watchers = {number: print for number in numbers}  # another connector's: none of them may go
    assert bench.wish(4, idle=True) == []
    assert len(bench.controller.told) == 2 and bench.controller.told[-1].going_bytes == 0


def test_what_cannot_be_sent_stays():
    bench = Bench(can_send=False)
    bench.done(bench.request(10, cached=True))
    assert bench.wish(5, pressed=True) == []
    assert bench.pool.get_num_free_blocks() == 40 and not bench.keeper.going
    bench.can_send = True
    assert len(bench.wish(40)) > 0


def test_watched_blocks_of_another_connector_stay():
    bench = Bench()
    numbers = bench.request(4)
    bench.done(numbers)
    bench.pool._reuse_watchers = {numbers[0]: print}
    assert sorted(bench.wish(4)) == numbers[1:]


def test_runs_join_neighbours_and_know_who_shares_their_pages():
    out = {1, 9}.__contains__
    assert runs_of({4, 2, 3, 7, 8}, out) == [Run(2, 3, True, False), Run(7, 2, False, True)]
    assert runs_of(set(), out) == []


@pytest.mark.parametrize("seed", range(20))
def test_random_requests_and_wishes_keep_the_books(seed):
    chance = random.Random(seed)
    bench = Bench(blocks=60, floor=10, policy=chance.choice(("lru", "fifo")))
    running = []
    for _ in range(400):
        move = chance.random()
        if move < 0.35:
            count = chance.randrange(1, 11)
            if bench.pool.get_num_free_blocks() >= count:
                running.append(bench.request(count, cached=chance.random() < 0.5))
        elif move < 0.6 and running:
            bench.done(running.pop(chance.randrange(len(running))))
        elif move < 0.75:
            bench.answer() if bench.keeper.going else bench.keeper.settle()
        elif move < 0.9:
            bench.wish(chance.randrange(0, 40), pressed=chance.random() < 0.5, idle=not running)
        else:
            bench.wish(restore=chance.choice((1, 5, ALL)))
        bench.check()
        if not bench.keeper.going:
            bench.keeper.settle()  # as at the end of each schedule
            assert bench.keeper.usable() >= 10
    bench.answer()
    bench.wish(restore=ALL)
    for numbers in running:
        bench.done(numbers)
    assert bench.keeper.all_free() and bench.pool.get_num_free_blocks() == 60
