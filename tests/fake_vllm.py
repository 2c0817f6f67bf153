"""Stand-ins for vLLM's parts, for tests that run without it. Each does what the real one's calls promise, and no more."""
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
            self.blocks[number].block_hash = None

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


class FakeController:
    """Answers reports with the wishes that a test puts in."""

    def __init__(self, wish_type):
        self.next, self.told, self._empty = [], [], wish_type

    def __call__(self, counts):
        self.told.append(counts)
        return self.next.pop(0) if self.next else self._empty()
