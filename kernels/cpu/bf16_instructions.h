/* kernels/cpu/bf16_instructions.h - the few instructions on bfloat16 and on tiles that the matrix
 * products use; with EMULATE_TILES plain C, so that the code around them is tested on machines that
 * lack them.
 */
#ifndef KERNELS_CPU_BF16_INSTRUCTIONS_H
#define KERNELS_CPU_BF16_INSTRUCTIONS_H

#include "vector.h"

enum { TILE_ROWS = 16, TILE_ROW_BYTES = 64, TILE_COUNT = 8 };

/* As the processor wants it for palette 1: the shape of each tile. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config_t;

#ifndef EMULATE_TILES

#define tile_zero(tile)                     _tile_zero(tile)
#define tile_load(tile, from, stride_bytes) _tile_loadd(tile, from, stride_bytes)
#define tile_load_once(tile, from, bytes)   _tile_stream_loadd(tile, from, bytes)
#define tile_store(tile, to, stride_bytes)  _tile_stored(tile, to, stride_bytes)
#define tile_multiply(sums, rows, columns)  _tile_dpbf16ps(sums, rows, columns)
#define tile_configure(config)              _tile_loadconfig(config)
#define tile_release()                      _tile_release()
#define dot_pairs(sums, a, b)               _mm512_dpbf16_ps(sums, (__m512bh)(a), (__m512bh)(b))
#define round_to_bf16(low, high)            ((__m512i)_mm512_cvtne2ps_pbh(high, low))

#else

static _Thread_local float emulated_tiles[TILE_COUNT][TILE_ROWS][LANES];
static _Thread_local uint8_t emulated_rows[TILE_COUNT];

static inline void tile_zero(int tile)
{
    memset(emulated_tiles[tile], 0, sizeof emulated_tiles[tile]);
}

static inline void tile_load(int tile, const void *from, size_t stride_bytes)
{
    for (size_t r = 0; r < emulated_rows[tile]; r++)
        memcpy(emulated_tiles[tile][r], (const char *)from + r * stride_bytes, TILE_ROW_BYTES);
}

static inline void tile_load_once(int tile, const void *from, size_t stride_bytes)
{
    tile_load(tile, from, stride_bytes);
}

static inline void tile_store(int tile, void *to, size_t stride_bytes)
{
    for (size_t r = 0; r < emulated_rows[tile]; r++)
        memcpy((char *)to + r * stride_bytes, emulated_tiles[tile][r], TILE_ROW_BYTES);
}

static inline __m512 dot_pairs(__m512 sums, __m512i a, __m512i b)
{
    __m512i high = _mm512_set1_epi32((int)0xffff0000U);
    __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)) *
                   _mm512_castsi512_ps(_mm512_slli_epi32(b, 16));
    return sums + first + _mm512_castsi512_ps(a & high) * _mm512_castsi512_ps(b & high);
}

static inline void tile_multiply(int sums, int rows, int columns)
{
    for (uint32_t r = 0; r < emulated_rows[sums]; r++) {
        __m512 sum = vector_load(emulated_tiles[sums][r]);
        for (uint32_t pair = 0; pair < LANES; pair++) {
            int32_t factor;
            memcpy(&factor, &emulated_tiles[rows][r][pair], sizeof factor);
            sum = dot_pairs(sum, _mm512_set1_epi32(factor),
                            _mm512_loadu_si512(emulated_tiles[columns][pair]));
        }
        vector_store(emulated_tiles[sums][r], sum);
    }
}

static inline void tile_configure(const tile_config_t *config)
{
    memset(emulated_tiles, 0xff, sizeof emulated_tiles);
    memcpy(emulated_rows, config->rows, sizeof emulated_rows);
}

static inline void tile_release(void)
{
}

static inline __m512i round_to_bf16(__m512 low, __m512 high)
{
    float values[2 * LANES];
    uint16_t rounded[2 * LANES];
    vector_store(values, low);
    vector_store(values + LANES, high);
    for (uint32_t i = 0; i < 2 * LANES; i++) rounded[i] = bf16_from_f32(values[i]);
    return _mm512_loadu_si512(rounded);
}

#endif
#endif
