/* The text of all shaders, put together when the library is built (embed.cmake). */
#ifndef FM_METAL_SOURCE_H
#define FM_METAL_SOURCE_H

extern const char fm_metal_source[];

#endif
