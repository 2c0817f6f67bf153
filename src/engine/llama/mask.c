/* mask.c - see mask.h. Values are 0, -infinity, or a bias; 16 or 32 bits. */
#include "engine/llama/mask.h"

#include <math.h>
#include <string.h>

static unsigned char *cell(const tensor *mask, int64_t stream, int64_t row, uint32_t column) {
    return (unsigned char *)mask->data + (size_t)stream * mask->nb[3] + (size_t)row * mask->nb[1] +
           column * mask->nb[0];
}

psi_mask_value psi_mask_get(const tensor *mask, int64_t stream, int64_t row, uint32_t column) {
    const unsigned char *at = cell(mask, stream, row, column);
    if (mask->type == TYPE_F16) {
        uint16_t bits;
        memcpy(&bits, at, sizeof(bits));
        return bits == 0xfc00 ? MASK_HIDDEN : (bits & 0x7fff) == 0 ? MASK_SEEN : MASK_WEIGHED;
    }
    uint32_t bits;
    memcpy(&bits, at, sizeof(bits));
    return bits == UINT32_C(0xff800000) ? MASK_HIDDEN : (bits & 0x7fffffff) == 0 ? MASK_SEEN : MASK_WEIGHED;
}

static void hide(int32_t type, unsigned char *at) {
    const uint16_t half = 0xfc00;
    const uint32_t single = UINT32_C(0xff800000);
    if (type == TYPE_F16) {
        memcpy(at, &half, sizeof(half));
    } else {
        memcpy(at, &single, sizeof(single));
    }
}

void psi_mask_set(tensor *mask, int64_t stream, int64_t row, uint32_t column, bool seen) {
    const uint16_t half = seen ? 0 : 0xfc00;
    const float single = seen ? 0 : -HUGE_VALF;
    unsigned char *at = cell(mask, stream, row, column);
    if (mask->type == TYPE_F16) {
        memcpy(at, &half, sizeof(half));
    } else {
        memcpy(at, &single, sizeof(single));
    }
}

bool psi_mask_any_seen(const tensor *mask, int64_t stream, uint32_t first, uint32_t last) {
    for (int64_t row = 0; row < mask->ne[1]; row++) {
        for (uint32_t column = first; column < last; column++) {
            if (psi_mask_get(mask, stream, row, column) != MASK_HIDDEN) {
                return true;
            }
        }
    }
    return false;
}

void psi_mask_hide(tensor *mask, int64_t stream, uint32_t first, uint32_t last) {
    for (int64_t row = 0; row < mask->ne[1]; row++) {
        unsigned char *at = cell(mask, stream, row, first);
        for (uint32_t column = first; column < last; column++, at += mask->nb[0]) {
            hide(mask->type, at);
        }
    }
}
