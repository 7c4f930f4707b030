/* XXH3-64, from the vendored xxHash header. */
#include "base/hash.h"

#define XXH_INLINE_ALL
#define XXH_NO_STREAM
#include "xxhash.h"

uint64_t fm_xxh3(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}
