/* checksum.h - tells a record that came back changed from one that did not. Not against an attacker. */
#ifndef PSI_CHECKSUM_H
#define PSI_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* Over whole 32-byte lines; a record's size is a multiple of 4096. */
uint64_t psi_checksum(const void *bytes, size_t count);

#endif
