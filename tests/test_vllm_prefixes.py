"""Cached prefixes in the store: what is written, when, and that what comes back is whole or computed again. The pool is a
stand-in, the store too, but for the tests of test_vllm_parts.py with both halves. Runs everywhere."""
import errno
import random

import pytest
from fake_vllm import FakeBlockPool, FakeController, FakeRequest

from psi_cache.vllm import channel
from psi_cache.vllm.keeper import Keeper
from psi_cache.vllm.prefixes import PATIENCE_S, PAUSE_S, Group, Prefixes, key_of
from psi_cache.vllm.remote import Wish
from psi_cache.vllm.shelf import Shelf

WORDS = list("abcdefghijklmnop")


class Bench:
    """Prefixes, their pool, and a store that holds what each block held, named by whoever wrote it."""

    def __init__(self, blocks=40, records=40, groups=(Group(16, 0),), floor=4):
        self.pool, self.controller, self.now = FakeBlockPool(blocks), FakeController(Wish), 100.0
        self.gives, self.sent, self.number, self.line_is_full = [], [], 0, False
        self.keeper = Keeper(self.pool, 1000, floor, self.controller, self.give)
        self.prefixes = Prefixes(self.keeper, groups, records, self.send, lambda: self.now)
        self.content, self.disk = {}, {}  # of blocks and of records

    def give(self, runs, worth):
        if not self.controller.told[-1:] or not worth or not self.prefixes.write_then(worth, self.gave_way):
            self.gave_way()
        return True

    def gave_way(self):
        self.gives.append(set(self.keeper.going))

    def send(self, kind, pairs):
        if self.line_is_full:
            return None
        self.number += 1
        self.sent.append((kind, self.number, pairs))
        if kind == channel.FORGET and len(self.sent) == 1:
            self.answer()
        return self.number

    def answer(self, errors=None):
        """The worker does what it was asked first. Answers the kind."""
        kind, number, pairs = self.sent.pop(0)
        errors = errors or [0] * len(pairs)
        for (block, record), error in zip(pairs, errors):
            if kind == channel.FORGET:
                del self.disk[record]
            elif error == 0 and kind == channel.PUT:
                self.disk[record] = self.content.get(block)
            elif error == 0:
                assert self.pool.blocks[block].ref_cnt > 0 and self.pool.blocks[block].block_hash is None
                self.content[block] = self.disk[record]
        self.prefixes.moved(number, errors)
        return kind

    # ---- what an engine does ---------------------------------------------------------------------

    def begin(self, request):
        """Blocks of a request, by group; those that the pool has are shared, others computed. None: it was told to wait."""
        here = 0
        groups = range(len(self.prefixes.groups))
        while here < len(request.block_hashes) and self.pool.get_cached_block(request.block_hashes[here], list(groups)):
            here += 1
        found = [[self.pool.get_cached_block(request.block_hashes[i], [g])[0] for i in range(here)] for g in groups]
        if self.prefixes.must_wait(request, 16 * here):
            return None
        for row in found:
            self.pool.touch(row)
        for g, row in enumerate(found):
            row += self.pool.get_new_blocks(len(request.block_hashes) - here)
            self.pool.cache_full_blocks(request, row, here, len(row), 16, g)
            for i in range(here, len(row)):
                self.content[row[i].block_id] = key_of(request.block_hashes[i], g)
            self.keeper.note_used([[block.block_id for block in row]])
        self.prefixes.begun(request.request_id)
        self.hits = here
        return found

    def end(self, request, found):
        self.prefixes.ended(request.request_id)
        self.prefixes.may_be_unwritten = True
        for row in found:
            self.keeper.note_released([[block.block_id for block in row]])
            self.pool.free_blocks(list(reversed(row)))

    def run(self, name, words):
        request = FakeRequest(name, words)
        found = self.begin(request)
        assert found is not None
        self.end(request, found)
        return request

    def write_all(self):
        self.prefixes.write_ahead()
        while self.sent:
            assert self.answer() == channel.PUT
            self.prefixes.write_ahead()

    def store(self, name, words):
        """A text that was here, and is in the store alone."""
        request = self.run(name, words)
        self.write_all()
        self.lose_from_pool()
        return request

    def lose_from_pool(self):
        """Every cached block is made of something else."""
        taken = self.pool.get_new_blocks(self.pool.get_num_free_blocks())
        for block in taken:
            self.content[block.block_id] = "something else"
        self.pool.free_blocks(taken)

    def check(self):
        """Whatever has a name holds just that."""
        for name, numbers in self.pool.cached_block_hash_to_block.items():
            assert all(self.content[number] == name for number in numbers)


def test_a_prefix_goes_to_the_store_and_comes_back():
    bench = Bench()
    first = bench.store("first", WORDS[:6])
    again = FakeRequest("again", WORDS[:6])
    assert bench.begin(again) is None  # it waits
    assert bench.begin(again) is None and len(bench.sent) == 1  # and asks but once
    assert not bench.pool.get_cached_block(first.block_hashes[0], [0])  # nothing has a name before it is whole
    assert bench.answer() == channel.GET
    bench.prefixes.collect()
    found = bench.begin(again)
    assert bench.hits == 6 and bench.prefixes.loaded == 6 and bench.keeper.held == 0
    bench.check()
    bench.end(again, found)
    assert bench.pool.get_num_free_blocks() == 40


def test_two_texts_that_begin_alike_load_their_prefix_once():
    bench = Bench()
    bench.store("first", WORDS[:6])
    left, right = FakeRequest("left", WORDS[:6] + ["x"]), FakeRequest("right", WORDS[:6] + ["y"])
    assert bench.begin(left) is None and bench.begin(right) is None
    assert len(bench.sent) == 1
    bench.answer()
    bench.prefixes.collect()
    rows = bench.begin(left), bench.begin(right)
    assert [block.block_id for block in rows[0][0][:6]] == [block.block_id for block in rows[1][0][:6]]
    bench.check()
    bench.end(left, rows[0])
    assert all(block.ref_cnt == 1 for block in rows[1][0])  # what one lets go the other still has
    bench.write_all()
    bench.check()


def test_what_cannot_be_read_is_computed_again():
    bench = Bench()
    bench.store("first", WORDS[:4])
    again = FakeRequest("again", WORDS[:4])
    assert bench.begin(again) is None
    bench.answer([0, 0, errno.EIO, 0])
    bench.prefixes.collect()
    found = bench.begin(again)
    assert found is not None and bench.hits == 2 and bench.prefixes.errors == 1
    bench.check()
    bench.end(again, found)
    assert len(bench.prefixes.shelf) == 3  # that record is not believed again
    assert bench.pool.get_num_free_blocks() == 40


def test_a_line_that_is_full_is_no_loss():
    bench = Bench()
    bench.store("first", WORDS[:4])
    bench.line_is_full = True
    again = FakeRequest("again", WORDS[:4])
    assert bench.begin(again) is None
    bench.prefixes.collect()
    assert bench.begin(again) is not None and bench.hits == 0 and len(bench.prefixes.shelf) == 4
    assert bench.prefixes.errors == 0


def test_a_request_that_is_aborted_meanwhile_leaves_its_prefix_behind():
    bench = Bench()
    bench.store("first", WORDS[:4])
    again = FakeRequest("again", WORDS[:4])
    assert bench.begin(again) is None
    bench.prefixes.ended("again")
    bench.prefixes.collect()
    assert bench.keeper.held == 4 and bench.pool.get_num_free_blocks() == 36  # a worker writes them
    bench.answer()
    bench.prefixes.collect()
    assert bench.keeper.held == 0 and bench.pool.get_num_free_blocks() == 40
    bench.check()
    bench.run("third", WORDS[:4])
    assert bench.hits == 4


def test_a_request_that_comes_again_may_load_again():
    bench = Bench()
    bench.run("first", WORDS[:4])
    bench.write_all()
    again = FakeRequest("again", WORDS[:4])
    for _ in range(2):  # as when it is preempted, and its blocks go meanwhile
        bench.lose_from_pool()
        assert bench.begin(again) is None
        bench.answer()
        bench.prefixes.collect()
        found = bench.begin(again)
        assert bench.hits == 4
        for row in found:
            bench.pool.free_blocks(list(reversed(row)))


def test_a_store_that_does_not_answer_is_waited_for_but_so_long():
    bench = Bench()
    bench.store("first", WORDS[:4])
    again, other = FakeRequest("again", WORDS[:4]), FakeRequest("other", WORDS[:4])
    assert bench.begin(again) is None and bench.begin(other) is None
    bench.now += PATIENCE_S + 0.1
    found = bench.begin(again)
    assert found is not None and bench.hits == 0 and bench.begin(other) is not None
    bench.answer()  # late: into blocks that are still ours
    bench.prefixes.collect()
    assert bench.keeper.held == 0
    bench.check()


def test_what_the_pool_has_is_not_taken_for_what_it_has_not():
    """A pool with room for the text and no more, of which the half is there, and would be reused first."""
    bench = Bench(blocks=9)
    bench.run("first", WORDS[:8])
    bench.write_all()
    gone = [bench.pool.get_cached_block(FakeRequest("x", WORDS[:8]).block_hashes[i], [0])[0] for i in range(4, 8)]
    bench.pool.touch(gone)
    bench.pool.evict_blocks({block.block_id for block in gone})
    bench.pool.free_blocks(gone)
    bench.pool.queue = [n for n in bench.pool.queue if bench.pool.blocks[n].block_hash] + [
        n for n in bench.pool.queue if not bench.pool.blocks[n].block_hash]  # what is there is the first to be reused
    again = FakeRequest("again", WORDS[:8])
    assert bench.begin(again) is None
    bench.answer()
    bench.prefixes.collect()
    found = bench.begin(again)
    assert bench.hits == 8
    bench.check()
    bench.end(again, found)


def test_no_room_for_it_means_no_load_and_an_untouched_pool():
    bench = Bench(blocks=9)
    bench.store("first", WORDS[:6])
    bench.prefixes.margin = 4
    before = list(bench.pool.queue)
    again = FakeRequest("again", WORDS[:6])
    assert bench.begin(again) is not None and bench.hits == 0 and not bench.sent
    assert sorted(before) == sorted(bench.pool.queue + [b.block_id for b in bench.pool.blocks if b.ref_cnt])


def test_a_request_that_waits_for_room_is_not_looked_for_all_the_time():
    bench = Bench()
    bench.run("first", WORDS[:4])
    bench.write_all()
    stranger, looks = FakeRequest("stranger", list("xyz")), []
    wanted = bench.prefixes._wanted
    bench.prefixes._wanted = lambda request: (looks.append(request), wanted(request))[1]
    for _ in range(10):
        assert not bench.prefixes.must_wait(stranger, 0)
    assert len(looks) == 1
    bench.now += 1
    assert not bench.prefixes.must_wait(stranger, 0) and len(looks) == 2


def test_new_weights_make_every_copy_wrong():
    bench = Bench()
    bench.run("first", WORDS[:4])
    bench.write_all()
    assert bench.pool.reset_prefix_cache()  # nobody tells us
    again = FakeRequest("again", WORDS[:4])
    found = bench.begin(again)
    assert found is not None and bench.hits == 0 and not bench.sent and not len(bench.prefixes.shelf)
    bench.end(again, found)


def test_new_weights_while_blocks_are_written_or_read():
    bench = Bench()
    bench.run("first", WORDS[:4])
    bench.prefixes.write_ahead()
    assert bench.pool.reset_prefix_cache()
    bench.answer()
    assert not len(bench.prefixes.shelf)
    bench.store("second", WORDS[:4])
    again = FakeRequest("again", WORDS[:4])
    assert bench.begin(again) is None
    bench.prefixes.reset()  # as a connector is told to
    bench.answer()
    bench.prefixes.collect()
    assert bench.begin(again) is not None and bench.hits == 0 and bench.prefixes.loaded == 0


def test_a_block_that_is_reused_while_it_is_written_is_not_believed():
    bench = Bench()
    request = bench.run("first", WORDS[:4])
    bench.prefixes.write_ahead()
    bench.lose_from_pool()
    bench.run("again", WORDS[:4])  # the same names again, and perhaps on the same blocks
    bench.answer()
    assert not any(key_of(h, 0) in bench.prefixes.shelf for h in request.block_hashes)
    bench.write_all()
    bench.lose_from_pool()
    third = FakeRequest("third", WORDS[:4])
    assert bench.begin(third) is None
    bench.answer()
    bench.prefixes.collect()
    bench.check()


def test_blocks_in_use_are_not_written():
    bench = Bench()
    request = FakeRequest("first", WORDS[:4])
    found = bench.begin(request)
    bench.prefixes.may_be_unwritten = True
    bench.prefixes.write_ahead()  # the step that fills them may not have run
    assert not bench.sent
    bench.end(request, found)
    bench.prefixes.write_ahead()
    assert len(bench.sent) == 1 and len(bench.sent[0][2]) == 4
    bench.prefixes.write_ahead()
    assert len(bench.sent) == 1  # one at a time


def test_windows_need_their_last_blocks_only():
    groups = (Group(16, 0), Group(16, 33))  # the second sees 33 tokens: two blocks, and the one that is written
    bench = Bench(blocks=80, records=80, groups=groups)
    bench.store("first", WORDS[:6])
    again = FakeRequest("again", WORDS[:6])
    assert bench.prefixes._wanted(again) == ([(0, i) for i in range(6)] + [(1, 4), (1, 5)], 6)
    bench.prefixes.shelf._forget(key_of(again.block_hashes[4], 1))  # a hole: the text goes on before it
    assert bench.prefixes._wanted(again) == ([(0, i) for i in range(4)] + [(1, 2), (1, 3)], 4)
    bench.prefixes.shelf._forget(key_of(again.block_hashes[1], 0))
    assert bench.prefixes._wanted(again) == ([(0, 0), (1, 0)], 1)


def test_the_last_token_is_always_computed():
    bench = Bench()
    bench.store("first", WORDS[:4])
    again = FakeRequest("again", WORDS[:4], tokens=64)  # not one token more than its blocks
    assert bench.prefixes._wanted(again)[1] == 3


def going(bench, count):
    bench.controller.next = [Wish(count * 1000)]
    bench.keeper.tick()
    return set(bench.keeper.going)


def test_what_goes_while_there_is_time_is_written_first():
    bench = Bench(blocks=90, records=90)
    requests = [bench.run(f"r{i}", [f"{i} {word}" for word in WORDS]) for i in range(5)]
    assert len(going(bench, 80)) == 80 and not bench.gives
    while bench.sent:
        assert not bench.gives
        assert bench.answer() == channel.PUT
    assert len(bench.gives) == 1 and len(bench.gives[0]) == 80
    assert all(key_of(h, 0) in bench.prefixes.shelf for request in requests for h in request.block_hashes)
    bench.keeper.gave(80000)
    bench.controller.next = [Wish(0, 2**64 - 1)]
    bench.keeper.tick()
    assert not bench.keeper.withheld


def test_pages_do_not_wait_for_the_disk_under_pressure():
    bench = Bench(blocks=90, records=90)
    for i in range(5):
        bench.run(f"r{i}", [f"{i} {word}" for word in WORDS])
    going(bench, 80)
    assert bench.prefixes.is_writing_first
    bench.prefixes.hurry()
    assert len(bench.gives) == 1
    bench.answer()  # of blocks whose pages went meanwhile
    assert not len(bench.prefixes.shelf) and not bench.sent and len(bench.gives) == 1


def test_after_an_error_writes_pause():
    bench = Bench()
    bench.run("first", WORDS[:4])
    bench.prefixes.write_ahead()
    bench.answer([errno.ENOSPC] * 4)
    assert bench.prefixes.errors == 1 and not len(bench.prefixes.shelf)
    bench.prefixes.write_ahead()
    assert not bench.sent
    going(bench, 2)
    assert len(bench.gives) == 1 and not bench.sent  # nor does a trim wait
    bench.now += PAUSE_S + 0.1
    bench.write_all()
    assert len(bench.prefixes.shelf) == 2


def test_a_full_shelf_gives_the_longest_unused_away_but_not_what_is_read():
    shelf = Shelf(3)
    for key in "abc":
        shelf.put(key, shelf.take())
    record = shelf.hold("a")
    assert shelf.take() is not None and "b" not in shelf  # "a" was used last, and is read
    assert shelf.take() is not None and "c" not in shelf
    assert shelf.take() is None
    shelf.let_go("a", record, is_lost=True)
    assert "a" not in shelf and shelf.take() == record


def test_a_record_that_is_read_is_not_written_though_its_name_is_forgotten():
    shelf = Shelf(1)
    shelf.put("a", shelf.take())
    record = shelf.hold("a")
    assert shelf.hold("a") == record
    shelf.clear()
    assert len(shelf) == 0 and shelf.take() is None
    shelf.let_go("a", record)
    assert shelf.take() is None
    shelf.let_go("a", record)
    assert shelf.take() == record


@pytest.mark.parametrize("seed", range(30))
def test_random_texts_writes_and_loads_never_give_a_block_a_wrong_name(seed):
    chance = random.Random(seed)
    groups = chance.choice([(Group(16, 0),), (Group(16, 0), Group(16, 40)), (Group(16, 24),)])
    bench = Bench(blocks=40, records=chance.choice((6, 30)), groups=groups)
    running, waiting = [], []
    for number in range(500):
        move = chance.random()
        if move < 0.3:
            text = [chance.choice("ab") for _ in range(chance.randrange(1, 6))]
            waiting.append(FakeRequest(str(number), text))
        elif move < 0.4 and running:
            bench.end(*running.pop(chance.randrange(len(running))))
        elif move < 0.55 and bench.sent:
            count = len(bench.sent[0][2])
            bench.answer([chance.choice((0, 0, 0, errno.EIO)) for _ in range(count)])
        elif move < 0.7:
            bench.prefixes.write_ahead()
        elif move < 0.75 and not bench.keeper.going:
            going(bench, chance.randrange(1, 20))
        elif move < 0.8 and bench.gives and not bench.prefixes.is_writing_first and bench.keeper.going:
            for block in bench.keeper.going:
                bench.content[block] = None  # its pages are gone
            bench.keeper.gave(1000)
        elif move < 0.83:
            bench.prefixes.hurry()
        elif move < 0.85 and bench.pool.reset_prefix_cache():
            pass
        elif move < 0.87 and waiting:
            bench.prefixes.ended(waiting.pop().request_id)
        elif not bench.keeper.going:
            bench.controller.next = [Wish(0, 5000)]
            bench.keeper.tick()
        bench.now += chance.choice((0.01, 0.01, 3, 20))
        bench.prefixes.collect()
        for request in list(waiting):
            if bench.pool.get_num_free_blocks() > len(groups) * len(request.block_hashes) and len(running) < 6:
                found = bench.begin(request)
                if found is not None:
                    waiting.remove(request)
                    running.append((request, found))
        bench.check()
    while bench.sent:
        bench.answer()
    bench.prefixes.collect()
    for each in running:
        bench.end(*each)
    assert bench.keeper.held == 0 and bench.keeper.all_free()
