/* swap.c - whether there is swap. Its size and use come with meminfo; it counts as nothing for headroom, since
 * memory that goes through swap comes too late for a spike. Called on the watcher thread. */
#include "signal/sources.h"

void psi_swap_open(psi_sources *sources) { (void)sources; }

void psi_swap_sample(psi_sources *sources, uint32_t look, psi_sample *sample) {
    (void)look;
    if (!sample->known[PSI_RAW_SWAP_TOTAL_BYTES])
        psi_row_miss(sources, PSI_ROW_SWAP, "no SwapTotal and SwapFree in /proc/meminfo", "mount /proc");
    else if (sample->value[PSI_RAW_SWAP_TOTAL_BYTES] == 0)
        psi_row_miss(sources, PSI_ROW_SWAP, "no swap is on", "");
    else
        psi_row_use(sources, PSI_ROW_SWAP, sources->meminfo_path);
}
