/* XXH3-64: the checksum of an expert record. */
#ifndef FM_HASH_H
#define FM_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t fm_xxh3(const void *data, size_t bytes);

#endif
