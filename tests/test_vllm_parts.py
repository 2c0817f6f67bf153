"""The vLLM adapter's parts that need no vLLM: pages, channel, halves. Runs everywhere."""
import ctypes
import errno
import mmap
import os
import pathlib
import random
import re
import resource
import threading
import time
import types
import uuid

import pytest
from fake_vllm import FakeBlockPool, FakeRequest, FakeTensor

from psi_cache import _native
from psi_cache.vllm import channel, remote
from psi_cache.vllm import pages as pages_module
from psi_cache.vllm import records as records_module
from psi_cache.vllm.channel import Run
from psi_cache.vllm.pages import PAGE_BYTES, NotUnderstood, Pages, Plane, planes_of, resident_bytes, span
from psi_cache.vllm.scheduler import SchedulerHalf, floor_of
from psi_cache.vllm.worker import WorkerHalf

BLOCK = 4 * PAGE_BYTES


class Memory:
    """Anonymous memory, all of it written; `skew` bytes behind a page, as torch's buffers are."""

    def __init__(self, blocks, skew=0, planes=2):
        self._map = mmap.mmap(-1, planes * blocks * BLOCK + PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._bytes = (ctypes.c_ubyte * len(self._map)).from_buffer(self._map)
        self.begin = ctypes.addressof(self._bytes)
        ctypes.memset(self.begin, 7, len(self._map))
        self.blocks, self.base = blocks, self.begin + skew
        self.planes = [Plane(self.base + i * blocks * BLOCK, BLOCK) for i in range(planes)]

    def at(self, plane, block, offset=0):
        return ctypes.c_ubyte.from_address(self.planes[plane].base + block * BLOCK + offset).value

    def resident(self):
        return resident_bytes(self.begin, self.begin + len(self._map))


# ---- pages ---------------------------------------------------------------------------------------


def test_a_run_goes_from_every_plane_and_nothing_else_does():
    memory = Memory(8)
    pages, before = Pages(memory.planes, 8), memory.resident()
    assert pages.block_bytes == 2 * BLOCK
    assert pages.give([Run(2, 3)]) == 6 * BLOCK == pages.gone_bytes
    assert before - memory.resident() == 6 * BLOCK
    assert pages.give([Run(2, 3)]) == 0  # what is gone goes but once
    for plane in (0, 1):
        assert [memory.at(plane, block) for block in range(8)] == [7, 7, 0, 0, 0, 7, 7, 7]


def test_what_was_only_read_is_no_memory():
    memory = Memory(8)
    pages = Pages(memory.planes, 8)
    pages.give([Run(0, 8)])
    assert [memory.at(0, block) for block in range(8)] == [0] * 8  # eight pages are there now: all the same one
    assert pages.give([Run(0, 8)]) == 0


def test_a_shared_page_stays_unless_both_its_blocks_are_out():
    memory = Memory(8, skew=64)
    pages = Pages(memory.planes, 8)
    assert pages.give([Run(2, 1)]) == 2 * (BLOCK - PAGE_BYTES)
    assert memory.at(0, 1, BLOCK - 1) == memory.at(0, 3) == 7
    assert memory.at(0, 2) == 7  # the beginning of it lies on the page of block 1
    assert pages.give([Run(3, 1, with_left=True)]) == 2 * BLOCK
    assert memory.at(0, 4) == memory.at(1, 1) == 7


def test_the_whole_pages_of_a_run():
    plane = Plane(10 * PAGE_BYTES + 64, BLOCK)
    assert span(plane, Run(0, 2)) == (11 * PAGE_BYTES, 18 * PAGE_BYTES)
    assert span(plane, Run(0, 2, True, True)) == (10 * PAGE_BYTES, 19 * PAGE_BYTES)
    begin, end = span(Plane(64, 100), Run(1, 1))
    assert end <= begin  # blocks smaller than a page: none


def test_runs_out_of_bounds_are_refused_and_nothing_goes():
    memory = Memory(8)
    pages, before = Pages(memory.planes, 8), memory.resident()
    for run in (Run(7, 2), Run(0, 0), Run(9, 1)):
        with pytest.raises(ValueError, match="of 8"):
            pages.give([run])
    assert memory.resident() == before


def test_a_new_cache_is_committed_by_touch():
    memory = Memory(8, skew=64)
    assert Pages(memory.planes, 8).commit_by_touch() > 2 * 8 * BLOCK - 3 * PAGE_BYTES
    ctypes.memset(memory.planes[0].base + 3 * BLOCK, 9, 1)
    assert memory.at(0, 3) == 9 and memory.resident() < 6 * PAGE_BYTES


def test_poison_is_no_number_in_any_type():
    memory = Memory(8)
    assert Pages(memory.planes, 8, "keep").give([Run(1, 1)]) == 2 * BLOCK and memory.at(1, 1) == 7
    assert Pages(memory.planes, 8, "poison").give([Run(1, 1)]) == 2 * BLOCK
    value = ctypes.c_float.from_address(memory.planes[1].base + BLOCK).value
    assert value != value and memory.at(0, 2) == 7
    Pages(memory.planes, 8, "poison").clean(1)
    assert memory.at(1, 1) == memory.at(0, 1, BLOCK - 1) == 0 and memory.at(0, 2) == memory.at(1, 0) == 7


def test_the_structures_are_those_of_the_header():
    """Field by field: a field that is added in one place only would shift the others."""
    header = (pathlib.Path(__file__).resolve().parent.parent / "include" / "psicache.h").read_text()
    for name, structure in (("psi_pool_options", _native.PoolOptions), ("psi_pool_counts", remote.PoolCounts),
                            ("psi_pool_wish", remote.PoolWish), ("psi_part", records_module.Part)):
        body = re.search(r"typedef struct %s \{(.*?)\} %s;" % (name, name), header, re.S).group(1)
        body = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
        fields = re.findall(r"([a-z_]+);", body)
        assert fields == [field for field, _ in structure._fields_]


# ---- layouts -------------------------------------------------------------------------------------


def test_rows_that_layers_share_count_once():
    blocks, elements = 16, BLOCK // 2
    tensors = {f"layer {i}": FakeTensor((blocks, 1, 128, elements // 128), (elements, elements, elements // 128, 1),
                                        (1 << 20) * (1 + i % 3)) for i in range(9)}
    assert planes_of(tensors, blocks) == [Plane((1 << 20) * (1 + i), BLOCK) for i in range(3)]


def test_a_block_that_kernels_see_as_several_is_one():
    tensor = FakeTensor((32, 64), (64, 1), 1 << 20)
    assert planes_of({"a": tensor}, 16) == [Plane(1 << 20, 2 * 64 * 2)]


@pytest.mark.parametrize("tensors, word", [
    ({"a": FakeTensor((16, 8), (8, 1), 4096, device="cuda:0")}, "device"),
    ({"a": FakeTensor((2, 16, 8), (128, 8, 1), 4096)}, "first dimension"),
    ({"a": FakeTensor((16, 8), (4, 1), 4096)}, "within each other"),
    ({"a": FakeTensor((16, 8), (8, 1), 4096), "b": FakeTensor((16, 8), (8, 1), 4096 + 8)}, "not contiguous"),
    ({}, "no KV cache"),
])
def test_what_is_not_understood_is_said(tensors, word):
    with pytest.raises(NotUnderstood, match=word):
        planes_of(tensors, 16)


# ---- channel -------------------------------------------------------------------------------------


def test_packets_come_through_and_others_do_not():
    runs = [Run(1, 2, True, False), Run(9, 1, False, True)]
    assert channel.unpack_give(channel.pack_give(5, runs)) == (5, runs)
    assert channel.unpack_answer(channel.pack_gave(5, 1 << 40)) == (5, (channel.GAVE, 1 << 40))
    assert channel.unpack_answer(channel.pack_held(6, True)) == (6, (channel.HELD, 1))
    pairs = [(1, 2), (3, 4)]
    assert channel.unpack_move(channel.pack_move(channel.PUT, 7, pairs)) == (channel.PUT, 7, pairs)
    assert channel.unpack_moved(channel.pack_moved(8, [0, 28, 1000])) == (8, [0, 28, 255])
    for packet in (b"", b"x", channel.pack_gave(1, 2), channel.pack_give(1, runs)[:-1]):
        for unpack in (channel.unpack_give, channel.unpack_move, channel.unpack_moved):
            with pytest.raises(ValueError):
                unpack(packet)
    for packet in (b"", channel.pack_give(1, runs[:1]), channel.pack_move(channel.GET, 1, [(1, 2)])):
        with pytest.raises(ValueError):
            channel.unpack_answer(packet)


# ---- the two halves, over their socket -------------------------------------------------------------


def fake_spec(blocks_needed):
    return types.SimpleNamespace(block_size=16, page_size_bytes=10, max_memory_usage_bytes=lambda config: blocks_needed * 10)


def fake_configs(blocks=32):
    """vllm_config and kv_cache_config, as far as we look at them."""
    vllm_config = types.SimpleNamespace(
        model_config=types.SimpleNamespace(max_model_len=64),
        scheduler_config=types.SimpleNamespace(watermark=0.0),
        parallel_config=types.SimpleNamespace(world_size=1, rank=0))
    groups = [types.SimpleNamespace(kv_cache_spec=fake_spec(4)), types.SimpleNamespace(kv_cache_spec=fake_spec(2))]
    return vllm_config, types.SimpleNamespace(num_blocks=blocks, kv_cache_groups=groups)


def schedule(tokens, new=(), computed=0):
    """A SchedulerOutput, as far as we look at it."""
    return types.SimpleNamespace(
        total_num_scheduled_tokens=tokens,
        scheduled_new_reqs=[types.SimpleNamespace(block_ids=groups, num_computed_tokens=computed) for groups in new],
        scheduled_cached_reqs=types.SimpleNamespace(new_block_ids=[]),
        num_scheduled_tokens={"r": tokens} if tokens else {})


class Pair:
    """Both halves on real memory and the real library, trimmed by hand."""

    def __init__(self, monkeypatch, tmp_path, blocks=32):
        monkeypatch.setenv("PSI_CACHE_CONTROLLER", "off")
        monkeypatch.setenv("PSI_CACHE_RUN_DIR", str(tmp_path))
        self.engine_id = str(uuid.uuid4())
        self.vllm_config, self.kv_config = fake_configs(blocks)
        self.memory = Memory(blocks)
        self.worker = WorkerHalf(self.vllm_config, self.kv_config, self.engine_id)
        self.scheduler = SchedulerHalf(self.vllm_config, self.kv_config, self.engine_id, {})
        self.pool = FakeBlockPool(blocks - 1)

    def start(self, **changes):
        elements = BLOCK // 2
        tensors = {f"layer {i}": FakeTensor((self.memory.blocks, elements), (elements, 1), plane.base, **changes)
                   for i, plane in enumerate(self.memory.planes)}
        self.worker.register(tensors)
        self.scheduler.bind(self.pool)
        return self

    def use(self, count):
        """A request that writes its blocks, and ends; the engine is idle after it."""
        self.scheduler.new_request("r")
        numbers = self.pool.allocate(count, cached=True)
        self.scheduler.scheduled(schedule(1, [(numbers, [])]))
        self.write(numbers)
        self.scheduler.finished("r", (numbers, []))
        self.pool.release(numbers)
        self.scheduler.scheduled(schedule(0))
        return numbers

    def write(self, numbers):
        for number in numbers:
            for plane in self.memory.planes:
                ctypes.memset(plane.base + number * BLOCK, 5, BLOCK)

    def stop(self):
        self.scheduler.shut_down()
        self.worker.shut_down()


@pytest.fixture
def pair(monkeypatch, tmp_path):
    made = Pair(monkeypatch, tmp_path)
    yield made
    made.stop()


def wait(true):
    until = time.monotonic() + 60
    while not true() and time.monotonic() < until:
        time.sleep(0.005)
    return true()


def test_an_idle_engine_gives_its_pages_without_a_step(pair):
    import psi_cache

    pair.start()
    keeper = pair.scheduler.keeper
    pair.use(12)
    before = pair.memory.resident()
    psi_cache.trim(1.0)
    assert wait(lambda: keeper.given_bytes > 0 and not keeper.going)
    # All but the library's own floor, 1/32 of 31 blocks.
    assert keeper.given_bytes == before - pair.memory.resident() == 12 * 2 * BLOCK
    assert psi_cache.stats()["withheld_bytes"] == len(keeper.withheld) * 2 * BLOCK > 0
    psi_cache.restore()
    assert wait(lambda: not keeper.withheld) and keeper.all_free()


def test_a_busy_engine_is_left_to_its_own_thread(pair):
    import psi_cache

    pair.start()
    keeper = pair.scheduler.keeper
    pair.use(12)
    pair.scheduler.new_request("busy")
    psi_cache.trim(1.0)
    time.sleep(0.3)
    assert not keeper.going and not keeper.withheld and pair.pool.get_num_free_blocks() == 31
    pair.scheduler.scheduled(schedule(1, [(pair.pool.allocate(2), [])]))
    assert keeper.going or keeper.withheld
    assert wait(lambda: not keeper.going) and keeper.usable() >= keeper.floor_blocks


def test_a_busy_engine_gives_within_a_step_that_is_held_open(pair):
    import psi_cache

    pair.start()
    keeper, step = pair.scheduler.keeper, pair.worker.step
    pair.use(12)
    pair.scheduler.new_request("busy")
    psi_cache.trim(1.0)
    time.sleep(0.1)
    assert not keeper.going and not keeper.withheld  # no step runs: who knows where the engine's thread is
    step.begin()
    assert wait(lambda: keeper.given_bytes > 0 and not keeper.going)
    step.end()  # and was let go
    assert keeper.usable() >= keeper.floor_blocks and keeper.withheld


def test_a_step_does_not_end_while_the_pool_is_changed(pair, monkeypatch):
    import psi_cache

    pair.start()
    keeper, step, events = pair.scheduler.keeper, pair.worker.step, []
    pair.use(12)
    pair.scheduler.new_request("busy")
    act = pair.scheduler._act

    def slow(*arguments, **named):
        events.append("begin")
        act(*arguments, **named)
        time.sleep(0.2)  # it sent what goes, and is still at the pool
        events.append("end")

    monkeypatch.setattr(pair.scheduler, "_act", slow)
    step.begin()
    psi_cache.trim(1.0)
    assert wait(lambda: events)
    step.end()
    assert events[:2] == ["begin", "end"]


def test_a_step_that_was_held_for_nothing_ends(pair):
    import psi_cache

    pair.start()
    pair.scheduler.new_request("busy")
    pair.scheduler.scheduled(schedule(1, [(pair.pool.allocate(31), [])]))
    told = pair.scheduler._remote.report
    reports = []
    pair.scheduler.keeper._report = lambda counts: (reports.append(counts), told(counts))[1]
    pair.worker.step.begin()
    psi_cache.trim(1.0)
    assert wait(lambda: reports) and not pair.scheduler.keeper.going
    pair.worker.step.end()


def test_a_step_does_not_wait_for_its_pages_going(pair):
    import psi_cache

    pair.start()
    pair.use(12)
    pair.scheduler.new_request("busy")
    ended, give = threading.Event(), pair.worker.pages.give
    pair.worker.pages.give = lambda runs: (ended.wait(60), give(runs))[1]
    pair.worker.step.begin()
    psi_cache.trim(1.0)
    assert wait(lambda: pair.scheduler.keeper.going)
    pair.worker.step.end()
    ended.set()
    assert wait(lambda: not pair.scheduler.keeper.going)


def test_a_step_ends_though_the_scheduler_is_gone_that_held_it(pair):
    pair.start()
    pair.worker.step.begin()
    pair.scheduler._hold = pair.scheduler._pages.send(lambda number: channel.pack_bare(channel.HOLD, number))
    pair.scheduler._within_step = lambda is_held: 1 // 0
    assert wait(lambda: pair.scheduler._failed)
    pair.worker.step.end()


def test_where_steps_overlap_none_is_held(monkeypatch, tmp_path):
    import psi_cache

    pair = Pair(monkeypatch, tmp_path)
    pair.vllm_config.scheduler_config.async_scheduling = True
    pair.scheduler = SchedulerHalf(pair.vllm_config, pair.kv_config, pair.engine_id, {})
    pair.start()
    pair.use(12)
    pair.scheduler.new_request("busy")
    pair.worker.step.begin()
    psi_cache.trim(1.0)
    time.sleep(0.2)
    assert pair.scheduler.keeper.given_bytes == 0
    pair.stop()


def test_a_busy_engine_whose_pool_is_guarded_gives_within_its_step(pair):
    import psi_cache

    pair.start()
    keeper = pair.scheduler.keeper
    pair.use(12)
    pair.scheduler.pool_is_guarded = True
    pair.scheduler.new_request("busy")
    with pair.scheduler.lock:  # as in a schedule
        psi_cache.trim(1.0)
        time.sleep(0.2)
        assert not keeper.going and not keeper.withheld
    assert wait(lambda: keeper.given_bytes > 0 and not keeper.going)
    assert keeper.usable() >= keeper.floor_blocks


def test_no_request_waits_for_an_engine_that_was_never_used(pair):
    import psi_cache

    pair.start()
    psi_cache.trim(1.0)
    time.sleep(0.1)
    assert pair.scheduler.keeper.all_free()


def test_a_cache_on_a_device_is_refused_in_one_line(pair, capsys):
    pair.start(device="cuda:0")
    assert pair.scheduler.keeper is None
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "runs untouched" in lines[0] and "device" in lines[0]
    pair.scheduler.new_request("r")  # and every call is harmless
    pair.scheduler.scheduled(schedule(1))
    assert pair.scheduler.make_way(0.0) == 0


def test_no_worker_on_this_machine_is_one_line(pair, capsys):
    pair.scheduler.bind(pair.pool)
    assert pair.scheduler.keeper is None and "worker 0 is not reached" in capsys.readouterr().err


def test_an_unknown_pool_is_one_line(pair, capsys):
    pair.pool.evict_blocks = None
    pair.start()
    assert pair.scheduler.keeper is None and "no evict_blocks" in capsys.readouterr().err


def test_a_worker_that_dies_leaves_the_engine_its_pool(pair):
    import psi_cache

    pair.start()
    pair.use(12)
    psi_cache.trim(0.5)
    assert wait(lambda: pair.scheduler.keeper.withheld)
    pair.worker.shut_down()
    assert wait(lambda: pair.scheduler._failed)
    pair.scheduler.scheduled(schedule(0))
    assert pair.scheduler.keeper is None and pair.pool.get_num_free_blocks() == 31


def test_a_second_engine_of_the_same_name_is_told(pair, capsys):
    pair.start()
    other = WorkerHalf(pair.vllm_config, pair.kv_config, pair.engine_id)
    other.register({})
    assert "engine_id used twice" in capsys.readouterr().err or other._listener is not None
    other.shut_down()


def test_the_floor_is_one_longest_request_in_all_groups():
    vllm_config, kv_config = fake_configs()
    assert floor_of(vllm_config, kv_config) == (4 + 1) + (2 + 1) + 1
    kv_config.kv_cache_groups[0].kv_cache_spec.max_memory_usage_bytes = None  # another version's
    assert floor_of(vllm_config, kv_config) == (64 // 16 + 1) + (2 + 1) + 1


def test_threads_and_descriptors_end_with_the_halves(monkeypatch, tmp_path):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    made = Pair(monkeypatch, tmp_path).start()
    made.stop()
    before, threads = descriptors(), threading.active_count()
    for _ in range(5):
        made = Pair(monkeypatch, tmp_path).start()
        made.use(4)
        made.stop()
    assert wait(lambda: threading.active_count() <= threads) and descriptors() <= before + 1


def test_what_the_kernel_refuses_is_an_error(monkeypatch):
    memory = Memory(4)
    monkeypatch.setattr(pages_module, "_MADV_DONTNEED", 12345)
    with pytest.raises(OSError, match="madvise") as error:
        Pages(memory.planes, 4).give([Run(1, 1)])
    assert error.value.errno == errno.EINVAL


# ---- the two halves, the store, and prefixes --------------------------------------------------------


class AttentionSpec:
    """A stand-in for vLLM's, by the name that is looked for."""

    block_size, page_size_bytes = 16, 10

    def max_memory_usage_bytes(self, config):
        return 40


class Texts(Pair):
    """Both halves with a store in tmp_path, and an engine that computes what a text's hashes say."""

    def __init__(self, monkeypatch, tmp_path, blocks=32, **environment):
        monkeypatch.setenv("PSI_CACHE_STORE_DIR", str(tmp_path))
        for name, value in environment.items():
            monkeypatch.setenv(f"PSI_CACHE_{name}", str(value))
        super().__init__(monkeypatch, tmp_path, blocks)
        self.kv_config.kv_cache_groups = [types.SimpleNamespace(kv_cache_spec=AttentionSpec())]
        self.pool.enable_caching = True

    def block_bytes(self, block_hash):
        return [bytes(block_hash[(i + plane) % 32] for i in range(BLOCK)) for plane in range(2)]

    def bytes_of(self, block):
        return [ctypes.string_at(plane.base + block.block_id * BLOCK, BLOCK) for plane in self.memory.planes]

    def row_of(self, request):
        found = [self.pool.get_cached_block(each, [0]) for each in request.block_hashes]
        return [block[0] for block in found[: found.index(None) if None in found else None]]

    def step(self, tokens=0):
        self.scheduler.scheduled(schedule(tokens))

    def begin(self, request):
        """Its row of blocks, once it need not wait; `hits` are those that were there."""
        self.scheduler.new_request(request.request_id)
        until = time.monotonic() + 60
        row = self.row_of(request)
        while self.scheduler.must_wait(request, 16 * len(row)):
            assert time.monotonic() < until
            self.step()
            time.sleep(0.001)
            row = self.row_of(request)
        while self.pool.get_num_free_blocks() < len(request.block_hashes):
            assert time.monotonic() < until
            self.step()
            time.sleep(0.001)
            row = self.row_of(request)
        self.hits = len(row)
        for block, block_hash in zip(row, request.block_hashes):
            assert self.bytes_of(block) == self.block_bytes(block_hash)
        self.pool.touch(row)
        row += self.pool.get_new_blocks(len(request.block_hashes) - self.hits)
        self.pool.cache_full_blocks(request, row, self.hits, len(row), 16, 0)
        self.scheduler.begun(request.request_id)
        self.scheduler.scheduled(schedule(1, [([block.block_id for block in row],)]))
        for block, block_hash in list(zip(row, request.block_hashes))[self.hits :]:
            for plane, content in zip(self.memory.planes, self.block_bytes(block_hash)):
                ctypes.memmove(plane.base + block.block_id * BLOCK, content, BLOCK)
        return row

    def end(self, request, row):
        self.scheduler.finished(request.request_id, [[block.block_id for block in row]])
        self.pool.free_blocks(list(reversed(row)))
        self.step()

    def ask(self, name, words):
        request = FakeRequest(name, words)
        self.end(request, self.begin(request))
        return self.hits

    def give_all(self):
        import psi_cache

        keeper, before = self.scheduler.keeper, self.scheduler.keeper.given_bytes
        psi_cache.trim(1.0)
        assert wait(lambda: keeper.given_bytes > before and not keeper.going)
        psi_cache.restore()
        assert wait(lambda: not keeper.withheld)

    def store_file(self):
        names = [name for name in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{name}")]
        found = [name for name in names if os.readlink(f"/proc/self/fd/{name}").startswith(os.environ["PSI_CACHE_STORE_DIR"])]
        assert len(found) == 1
        return f"/proc/self/fd/{found[0]}"


@pytest.fixture
def texts(monkeypatch, tmp_path):
    made = Texts(monkeypatch, tmp_path)
    made.start()
    yield made
    made.stop()


WORDS = list("abcdefgh")


def test_prefixes_come_back_bit_by_bit(texts):
    assert texts.scheduler.prefixes is not None and texts.ask("first", WORDS) == 0
    before = texts.memory.resident()
    texts.give_all()
    assert before - texts.memory.resident() == 8 * 2 * BLOCK  # their pages went
    assert texts.ask("again", WORDS[:6] + ["x"]) == 6  # begin() compares the bits
    assert texts.ask("third", WORDS) == 8
    import psi_cache

    assert psi_cache.stats()["stored_bytes"] >= 8 * 2 * BLOCK and psi_cache.stats()["store_errors"] == 0


def test_the_stores_file_is_nobody_elses(texts):
    texts.ask("first", WORDS)
    texts.give_all()
    status = os.stat(texts.store_file())
    assert status.st_nlink == 0 and status.st_mode & 0o777 == 0o600 and status.st_blocks * 512 >= 8 * 2 * BLOCK


def test_after_a_reset_the_stores_room_on_the_disk_is_free(texts):
    texts.ask("first", WORDS)
    texts.give_all()
    assert texts.pool.reset_prefix_cache()
    texts.step()
    assert wait(lambda: os.stat(texts.store_file()).st_blocks == 0)
    assert texts.ask("again", WORDS) == 0
    texts.give_all()
    assert texts.ask("third", WORDS) == 8


@pytest.mark.parametrize("fault", ["changed", "short"])
def test_a_store_that_lies_is_found_out(texts, fault):
    texts.ask("first", WORDS)
    texts.give_all()
    with open(texts.store_file(), "r+b", buffering=0) as file:
        if fault == "short":
            os.ftruncate(file.fileno(), 3 * 2 * BLOCK + 100)
        else:
            os.pwrite(file.fileno(), b"\0" * 512, 3 * 2 * BLOCK)  # one record, and which prefix that is nobody knows
    assert texts.ask("again", WORDS) < 8
    assert texts.ask("third", WORDS) == 8
    import psi_cache

    assert psi_cache.stats()["store_errors"] > 0


def test_a_full_disk_is_no_more_than_a_prefix_to_be_computed(texts):
    texts.ask("first", WORDS)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 2 * BLOCK, limits[1]))
    try:
        texts.give_all()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert texts.ask("again", WORDS) < 8 and texts.scheduler.keeper is not None


@pytest.mark.parametrize("environment", [{"STORE_MAX_BYTES": 3 * 2 * BLOCK}, {"STORE_HOUR_MAX_BYTES": 3 * 2 * BLOCK}])
def test_the_store_keeps_to_its_bounds(monkeypatch, tmp_path, environment):
    texts = Texts(monkeypatch, tmp_path, **environment).start()
    try:
        texts.ask("first", WORDS)
        texts.give_all()
        assert os.stat(texts.store_file()).st_blocks * 512 <= 3 * 2 * BLOCK
        assert len(texts.scheduler.prefixes.shelf) <= 3
        assert texts.ask("again", WORDS) <= 3
    finally:
        texts.stop()


def test_no_store_where_none_is_wanted_or_possible(monkeypatch, tmp_path):
    texts = Texts(monkeypatch, tmp_path, STORE_DIR="/nonexistent").start()
    assert texts.scheduler.prefixes is None and texts.scheduler.keeper is not None
    texts.ask("first", WORDS)
    texts.give_all()
    assert texts.ask("again", WORDS) == 0
    texts.stop()
    for change in ({"async_scheduling": True}, {}):
        other = Texts(monkeypatch, tmp_path)
        vars(other.vllm_config.scheduler_config).update(change)
        other.pool.cached_block_hash_to_block = other.pool.cached_block_hash_to_block if change else None
        other.pool.get_cached_block = None if not change else other.pool.get_cached_block
        other.start()
        assert other.scheduler.prefixes is None and other.scheduler.keeper is not None
        other.stop()


class Stuck:
    """A disk that takes no block until it is let go."""

    def __init__(self, worker):
        self.event, self.records, self.put, self.writes = threading.Event(), worker.records, worker.records.put, 0
        self.records.put = self._put

    def _put(self, number, parts):
        self.event.wait(60)
        error = self.put(number, parts)
        self.writes += 1
        return error


def test_what_goes_is_written_first_but_not_when_memory_is_wanted_now(texts):
    import psi_cache

    keeper, prefixes = texts.scheduler.keeper, texts.scheduler.prefixes
    texts.ask("first", WORDS)
    disk = Stuck(texts.worker)
    psi_cache.trim(1.0)
    assert wait(lambda: prefixes.is_writing_first) and keeper.given_bytes == 0
    psi_cache.trim(1.0)  # rings, as the controller does
    assert wait(lambda: keeper.given_bytes > 0)
    disk.event.set()
    assert wait(lambda: not prefixes._puts) and len(prefixes.shelf) == 0


def test_a_request_does_not_wait_for_what_an_idle_engine_writes(monkeypatch, tmp_path):
    import psi_cache

    texts = Texts(monkeypatch, tmp_path, blocks=10).start()
    texts.ask("first", WORDS)
    disk = Stuck(texts.worker)
    psi_cache.trim(1.0)
    assert wait(lambda: texts.scheduler.prefixes.is_writing_first)
    assert texts.scheduler.keeper.floor_blocks == 6 and texts.ask("second", list("uvwxy")) == 0  # one block is free
    disk.event.set()
    texts.stop()


def test_no_thread_is_at_the_cache_once_a_worker_is_shut_down(texts):
    import psi_cache

    texts.ask("first", WORDS)
    disk = Stuck(texts.worker)
    psi_cache.trim(1.0)
    assert wait(lambda: texts.scheduler.prefixes.is_writing_first)
    threading.Timer(0.3, disk.event.set).start()
    texts.worker.shut_down()
    assert disk.writes == 8 and texts.worker.records is None


def test_an_idle_engine_whose_request_was_aborted_while_it_loaded_still_reacts(texts):
    texts.ask("first", WORDS)
    texts.give_all()
    get, keeper = texts.worker.records.get, texts.scheduler.keeper
    texts.worker.records.get = lambda number, parts: (time.sleep(0.05), get(number, parts))[1]
    doomed = FakeRequest("doomed", WORDS)
    texts.scheduler.new_request("doomed")
    assert texts.scheduler.must_wait(doomed, 0)
    texts.scheduler.finished("doomed", [[]])
    texts.step()  # and no further one
    assert keeper.held == 8
    assert wait(lambda: keeper.held == 0) and keeper.all_free()
    texts.worker.records.get = get
    assert texts.ask("again", WORDS) == 8
    texts.give_all()


def test_a_worker_that_dies_while_it_loads_keeps_no_request_waiting(texts):
    texts.ask("first", WORDS)
    texts.give_all()
    texts.worker.records.get = lambda number, parts: 1 // 0
    again = FakeRequest("again", WORDS)
    texts.scheduler.new_request("again")
    assert texts.scheduler.must_wait(again, 0)
    assert wait(lambda: texts.scheduler._failed)
    assert not texts.scheduler.must_wait(again, 0)
    texts.step()
    assert texts.scheduler.keeper is None and texts.pool.get_num_free_blocks() >= 31 - 8  # what it may still write is out


@pytest.mark.parametrize("call", ["get_cached_block", "get_new_blocks", "cache_full_blocks"])
def test_an_engine_that_does_otherwise_loses_its_store_and_nothing_else(texts, call, capsys):
    texts.ask("first", WORDS)
    texts.give_all()

    def other(*arguments, **named):
        raise TypeError("another version's")

    real, scheduler = getattr(texts.pool, call), texts.scheduler
    setattr(texts.pool, call, other)
    again = FakeRequest("again", WORDS)
    scheduler.new_request("again")
    until = time.monotonic() + 60
    while scheduler.must_wait(again, 0):
        assert time.monotonic() < until
        texts.step()
        time.sleep(0.001)
    setattr(texts.pool, call, real)
    scheduler.finished("again", [[]])
    assert scheduler.prefixes is None and capsys.readouterr().err.count("not stored any more") == 1
    assert texts.ask("third", WORDS) == 0 and scheduler.keeper is not None and not scheduler._failed
    texts.give_all()


@pytest.mark.parametrize("seed", range(4))
def test_random_texts_under_random_trims_are_always_whole(monkeypatch, tmp_path, seed):
    """begin() compares the bits of every block that the pool says it has."""
    import psi_cache

    texts, chance, hits = Texts(monkeypatch, tmp_path, blocks=24).start(), random.Random(seed), 0
    try:
        for number in range(60):
            words = [chance.choice("ab") for _ in range(chance.randrange(1, 7))]
            texts.ask(str(number), words)
            hits += texts.hits
            if chance.random() < 0.4:
                psi_cache.trim(chance.choice((0.3, 1.0)))
            if chance.random() < 0.4:
                psi_cache.restore()
            time.sleep(chance.choice((0, 0.002, 0.01)))
        assert texts.scheduler.keeper is not None and texts.scheduler.prefixes.loaded > 0 and hits > 0
    finally:
        texts.stop()
