"""Stand-ins for vLLM's parts, for tests that run without it. Each does what the real one's calls promise, and no more."""
import hashlib
import types


class FakeBlock:
    def __init__(self, number):
        self.block_id, self.ref_cnt, self.block_hash, self.is_null = number, 0, None, number == 0


class FakeBlockPool:
    """A queue of free blocks in eviction order; block 0 is the null block."""

    def __init__(self, blocks):
        self.blocks = [FakeBlock(number) for number in range(blocks + 1)]
        self.queue = list(range(1, blocks + 1))
        self.log = []
        self.cached_block_hash_to_block = {}  # of each name, the numbers of the blocks that have it

    def get_num_free_blocks(self):
        return len(self.queue)

    def touch(self, blocks):
        for block in blocks:
            if block.ref_cnt == 0:
                self.queue.remove(block.block_id)  # ValueError for a block that is not free
            block.ref_cnt += 1

    def free_blocks(self, blocks):
        for block in blocks:
            assert block.ref_cnt > 0, "freed twice"
            block.ref_cnt -= 1
            if block.ref_cnt == 0:
                self.queue.insert(0 if block.block_hash is None else len(self.queue), block.block_id)

    def evict_blocks(self, numbers):
        for number in numbers:
            self.log.append(number)
            self._unname(self.blocks[number])

    def _unname(self, block):
        self.cached_block_hash_to_block.get(block.block_hash, set()).discard(block.block_id)
        block.block_hash = None

    # ---- with names, as for prefixes in the store ------------------------------------------------

    def get_new_blocks(self, count):
        numbers, self.queue = self.queue[:count], self.queue[count:]
        assert len(numbers) == count, "no room"
        for number in numbers:
            self._unname(self.blocks[number])
            self.blocks[number].ref_cnt += 1
        return [self.blocks[number] for number in numbers]

    def get_cached_block(self, block_hash, groups):
        found = [self.cached_block_hash_to_block.get(block_hash + g.to_bytes(4, "big")) for g in groups]
        return [self.blocks[min(numbers)] for numbers in found] if all(found) else None

    def cache_full_blocks(self, request, blocks, num_cached_blocks, num_full_blocks, block_size, kv_cache_group_id):
        for index in range(num_cached_blocks, num_full_blocks):
            name = request.block_hashes[index] + kv_cache_group_id.to_bytes(4, "big")
            assert blocks[index].block_hash is None and not blocks[index].is_null
            blocks[index].block_hash = name
            self.cached_block_hash_to_block.setdefault(name, set()).add(blocks[index].block_id)

    def reset_prefix_cache(self):
        if len(self.queue) != len(self.blocks) - 1:
            return False
        self.cached_block_hash_to_block = {}
        for block in self.blocks:
            block.block_hash = None
        return True

    # ---- what a scheduler does with it -----------------------------------------------------------

    def allocate(self, count, cached=False):
        """A request's blocks."""
        numbers = self.queue[:count]
        assert len(numbers) == count, "no room"
        self.evict_blocks({n for n in numbers if self.blocks[n].block_hash is not None})
        self.touch([self.blocks[n] for n in numbers])
        for number in numbers if cached else ():
            self.blocks[number].block_hash = f"hash {number}"
        return numbers

    def release(self, numbers):
        self.free_blocks([self.blocks[number] for number in reversed(numbers)])


class FakeRequest:
    """A text of `tokens` tokens; texts whose words are alike begin alike."""

    def __init__(self, name, words, block_tokens=16, tokens=None):
        self.request_id, self.skip_reading_prefix_cache = name, False
        self.num_tokens = tokens or len(words) * block_tokens + 1
        chained = [" ".join(words[: i + 1]) for i in range(len(words))]
        self.block_hashes = [hashlib.sha256(text.encode()).digest() for text in chained]


class FakeTensor:
    """Shape, strides and address of a tensor."""

    def __init__(self, shape, strides, base, item=2, device="cpu"):
        self.shape, self._strides, self._base, self._item = shape, strides, base, item
        self.device = types.SimpleNamespace(type=device.split(":")[0], __str__=lambda self: device)

    def stride(self):
        return self._strides

    def element_size(self):
        return self._item

    def data_ptr(self):
        return self._base


class FakeScheduler:
    """vLLM's scheduler, as far as ours calls it: running requests with their blocks; `seen` is called by each schedule."""

    def __init__(self, connector, pool, requests, seen):
        self.connector, self.kv_cache_manager = connector, types.SimpleNamespace(block_pool=pool)
        self.running, self.waiting, self._seen = list(requests), [], seen

    def _preempt_request(self, request, timestamp):
        self.kv_cache_manager.block_pool.release(request.blocks)
        request.blocks = []
        self.waiting.insert(0, request)

    def schedule(self):
        self._seen()


class FakeController:
    """Answers reports with the wishes that a test puts in."""

    def __init__(self, wish_type):
        self.next, self.told, self._empty = [], [], wish_type

    def __call__(self, counts):
        self.told.append(counts)
        return self.next.pop(0) if self.next else self._empty()
