/* layout.c - where a block's bytes lie in the planes, and which pages may go when blocks leave. Called under the
 * pool's lock. A page goes back once every block on it is out of memory: so blocks need not be whole pages,
 * and a transposed tensor, where a page holds many blocks' columns, follows the same rule. */
#include <string.h>

#include "os/os.h"
#include "pool/pool.h"

static uint32_t lane_of(const psi_pool *pool, uint32_t block) { return block / pool->lane_blocks; }

static const psi_plane *lane_planes(const psi_pool *pool, uint32_t lane) {
    return &pool->planes[(size_t)lane * pool->planes_per_lane];
}

/* Bytes of the lane's block number `index` in one column: the last one may be short. */
static size_t piece_bytes(const psi_plane *plane, uint32_t index) {
    size_t start = index * plane->block_bytes;
    size_t left = plane->column_bytes > start ? plane->column_bytes - start : 0;
    return left < plane->block_bytes ? left : plane->block_bytes;
}

static unsigned char *column_at(const psi_plane *plane, size_t column) {
    return (unsigned char *)plane->base + column * plane->column_stride_bytes;
}

size_t psi_layout_block_bytes(const psi_pool *pool, uint32_t block) {
    const psi_plane *planes = lane_planes(pool, lane_of(pool, block));
    size_t bytes = 0;
    for (uint32_t p = 0; p < pool->planes_per_lane; p++) {
        bytes += piece_bytes(&planes[p], block % pool->lane_blocks) * planes[p].columns;
    }
    return bytes;
}

void psi_layout_gather(const psi_pool *pool, uint32_t block, unsigned char *record) {
    const psi_plane *planes = lane_planes(pool, lane_of(pool, block));
    uint32_t index = block % pool->lane_blocks;
    unsigned char *to = record;
    for (uint32_t p = 0; p < pool->planes_per_lane; p++) {
        size_t bytes = piece_bytes(&planes[p], index);
        for (size_t c = 0; c < planes[p].columns; c++) {
            memcpy(to, column_at(&planes[p], c) + index * planes[p].block_bytes, bytes);
            to += bytes;
        }
    }
    memset(to, 0, pool->record_bytes - (size_t)(to - record));
}

void psi_layout_scatter(psi_pool *pool, uint32_t block, const unsigned char *record) {
    const psi_plane *planes = lane_planes(pool, lane_of(pool, block));
    uint32_t index = block % pool->lane_blocks;
    const unsigned char *from = record;
    for (uint32_t p = 0; p < pool->planes_per_lane; p++) {
        size_t bytes = piece_bytes(&planes[p], index);
        for (size_t c = 0; c < planes[p].columns; c++) {
            unsigned char *to = column_at(&planes[p], c) + index * planes[p].block_bytes;
            psi_os_populate(to, bytes);
            memcpy(to, from, bytes);
            from += bytes;
        }
    }
}

static uintptr_t page_down(const psi_pool *pool, uintptr_t address) {
    return address & ~(uintptr_t)(pool->page_bytes - 1);
}

static uintptr_t page_up(const psi_pool *pool, uintptr_t address) {
    return page_down(pool, address + pool->page_bytes - 1);
}

/* A maximal row of blocks out of memory, [first, last], and the releasing ones' extent in it. */
typedef struct psi_gap {
    uint32_t first, last, releasing_first, releasing_last;
} psi_gap;

/* Pages of one column that touch the releasing ones and hold nothing but the gap's: [*from, *to), or none. */
static bool pages_of(const psi_pool *pool, const psi_plane *plane, size_t c, const psi_gap *gap, uintptr_t *from,
                     uintptr_t *to) {
    uintptr_t column = (uintptr_t)column_at(plane, c);
    uintptr_t gap_from = page_up(pool, column + gap->first * plane->block_bytes);
    uintptr_t gap_to = page_down(pool, column + gap->last * plane->block_bytes + piece_bytes(plane, gap->last));
    *from = page_down(pool, column + gap->releasing_first * plane->block_bytes);
    *to = page_up(pool, column + gap->releasing_last * plane->block_bytes + piece_bytes(plane, gap->releasing_last));
    *from = *from > gap_from ? *from : gap_from;
    *to = *to < gap_to ? *to : gap_to;
    return *from < *to;
}

/* Ranges on their way to the system: handed over many at once, since a call costs as much as some pages. */
typedef struct psi_ranges {
    psi_os_range range[512];
    size_t count;
    uint64_t given_bytes;
} psi_ranges;

static void flush(psi_ranges *ranges) {
    ranges->given_bytes += psi_os_give_back_ranges(ranges->range, ranges->count);
    ranges->count = 0;
}

static void add(psi_ranges *ranges, uintptr_t from, uintptr_t to) {
    psi_os_range *last = ranges->count > 0 ? &ranges->range[ranges->count - 1] : NULL;
    if (last != NULL && (uintptr_t)last->base + last->bytes == from) {
        last->bytes += to - from;
        return;
    }
    if (ranges->count == sizeof(ranges->range) / sizeof(*ranges->range)) {
        flush(ranges);
    }
    ranges->range[ranges->count++] = (psi_os_range){.base = (void *)from, .bytes = to - from};
}

static void add_gap(const psi_pool *pool, const psi_plane *plane, const psi_gap *gap, psi_ranges *ranges) {
    uintptr_t from = 0, to = 0;
    for (size_t c = 0; c < plane->columns; c++) {
        if (pages_of(pool, plane, c, gap, &from, &to)) {
            add(ranges, from, to);
        }
    }
}

uint64_t psi_layout_own_bytes(const psi_pool *pool, uint32_t block) {
    uint32_t at = block % pool->lane_blocks;
    const psi_block *lane = &pool->block[block - at];
    const psi_plane *planes = lane_planes(pool, lane_of(pool, block));
    psi_gap gap = {.first = at, .last = at, .releasing_first = at, .releasing_last = at};
    uint64_t bytes = 0;
    uintptr_t from = 0, to = 0;
    while (gap.first > 0 && lane[gap.first - 1].state != PSI_BLOCK_RESIDENT) {
        gap.first--;
    }
    while (gap.last + 1 < pool->lane_blocks && lane[gap.last + 1].state != PSI_BLOCK_RESIDENT) {
        gap.last++;
    }
    for (uint32_t p = 0; p < pool->planes_per_lane; p++) {
        for (size_t c = 0; c < planes[p].columns; c++) {
            bytes += pages_of(pool, &planes[p], c, &gap, &from, &to) ? to - from : 0;
        }
    }
    return bytes;
}

/* The next gap with something to release at or after *at; false when there is none. */
static bool next_gap(const psi_pool *pool, const psi_block *lane, uint32_t *at, psi_gap *gap) {
    uint32_t i = *at;
    while (i < pool->lane_blocks) {
        if (lane[i].state == PSI_BLOCK_RESIDENT) {
            i++;
            continue;
        }
        bool any = false;
        gap->first = i;
        for (; i < pool->lane_blocks && lane[i].state != PSI_BLOCK_RESIDENT; i++) {
            if (lane[i].releasing) {
                gap->releasing_first = any ? gap->releasing_first : i;
                gap->releasing_last = i;
                any = true;
            }
        }
        gap->last = i - 1;
        if (any) {
            *at = i;
            return true;
        }
    }
    return false;
}

/* Run by run: what lies between two of them went before, and is not returned again. */
static void add_runs(const psi_pool *pool, const psi_plane *plane, const psi_block *lane, const psi_gap *gap,
                     psi_ranges *ranges) {
    psi_gap run = *gap;
    for (uint32_t i = gap->releasing_first; i <= gap->releasing_last; i++) {
        bool begins = lane[i].releasing && (i == gap->releasing_first || !lane[i - 1].releasing);
        bool ends = lane[i].releasing && (i == gap->releasing_last || !lane[i + 1].releasing);
        run.releasing_first = begins ? i : run.releasing_first;
        run.releasing_last = i;
        if (ends) {
            add_gap(pool, plane, &run, ranges);
        }
    }
}

static bool is_read(const psi_pool *pool, uint32_t plane) {
    return plane >= pool->read_first && plane < pool->read_end;
}

/* Plane by plane, in the order of addresses: neighbours share the kernel's tables. Of the planes that the step reads
 * just now (lingering), or of the others. */
static void add_lane(const psi_pool *pool, uint32_t number, const psi_block *lane, bool lingering, psi_ranges *ranges) {
    const psi_plane *planes = lane_planes(pool, number);
    for (uint32_t p = 0; p < pool->planes_per_lane; p++) {
        psi_gap gap;
        for (uint32_t at = 0; is_read(pool, p) == lingering && next_gap(pool, lane, &at, &gap);) {
            add_runs(pool, &planes[p], lane, &gap, ranges);
        }
    }
}

static bool any_marks(const psi_pool *pool, const psi_block *lane) {
    for (uint32_t i = 0; i < pool->lane_blocks; i++) {
        if (lane[i].releasing) {
            return true;
        }
    }
    return false;
}

/* What the step reads just now of these blocks goes later. */
static void take_marks_off(const psi_pool *pool, psi_block *lane, bool lingering) {
    bool later = !lingering && pool->read_first < pool->read_end;
    for (uint32_t i = 0; i < pool->lane_blocks; i++) {
        lane[i].lingers = lane[i].lingers || (lane[i].releasing && later);
        lane[i].releasing = false;
    }
}

static uint64_t give_back(psi_pool *pool, bool lingering) {
    psi_ranges ranges; /* 8 KiB, not to be zeroed each time */
    ranges.count = 0;
    ranges.given_bytes = 0;
    for (uint32_t number = 0; number < pool->lanes; number++) {
        psi_block *lane = &pool->block[(size_t)number * pool->lane_blocks];
        if (any_marks(pool, lane)) {
            add_lane(pool, number, lane, lingering, &ranges);
            take_marks_off(pool, lane, lingering);
        }
    }
    flush(&ranges);
    return ranges.given_bytes;
}

uint64_t psi_layout_give_back(psi_pool *pool) { return give_back(pool, false); }

uint64_t psi_layout_give_back_lingering(psi_pool *pool) {
    bool any = false;
    for (uint32_t i = 0; i < pool->blocks; i++) {
        psi_block *b = &pool->block[i];
        b->releasing = b->lingers && b->state != PSI_BLOCK_RESIDENT;
        b->lingers = false;
        any = any || b->releasing;
    }
    return any ? give_back(pool, true) : 0;
}
