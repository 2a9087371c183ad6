// Products of two groups of 16 rows with many tokens whose activations share scales (SPAN > 1), by
// AMX's tiles of bytes, for matmul_simd.cl.
//
// A tile of weights has 64 columns of 16 rows as quads (quads.cl): codes times the lowest 3 bits of
// their integer scales, or times the other bits, since a byte holds no more. A tile of tokens has
// the same columns of 8 of them, first the low bytes of their codes, then the high ones, 128 up so
// that all are unsigned. Over a whole span the products are exact:
//   code * scale * x = (low + 8 high) * (x_low + 256 (x_high + 128) - 256 * 128)
// So a span has one sum of integers and the order of operations is the same as in dot_blocks().
//
// A product adds to a tile after some 50 cycles, whatever its rows are, so it is four sums that
// take turns: both bytes of both groups. 64 columns are unpacked and multiplied at a time, so that
// memory is asked for evenly: it fetches no faster than a core has room for what is under way.

#include "quantization/quads.cl"
#include "include/tiles.cl"

#define GROUPS 2
#define STEPS (SPAN / 2)  // tiles of 64 columns in a span

typedef struct {
    vint low[STEPS][16], high[STEPS][16];
    float16 d, m[SPAN];
    vint sum;  // of all codes times their scales
} Span;

// Unpacks the columns of a tile, of the span that begins with block b; memory is asked for `ahead`
// of them.
INLINE void unpack_step(global const uchar* q, global const uchar* s, int b, int step,
                        global const uchar* ahead, Span* w) {
    vint total = step == 0 ? (vint)(0) : w->sum;
    #pragma unroll 1
    for (int i = 2 * step; i < 2 * step + 2; i++) {
        vint codes[QUADS];
        uint16 sum = 0;
        PREFETCH(s + (b / SUPER + 2) * SBYTES + i * 64);  // scales of the span after the next
        unpack_scales(s, b + i, &w->d, w->m + i);
        unpack_quads(q + (size_t)(b + i) * QBYTES, codes);
        #pragma unroll
        for (int k = 0; k < QBYTES; k += 64) PREFETCH(ahead + (size_t)i * QBYTES + k);
        const vint scale = sum_scale(s, b + i);
        const vpair scale_low = BOTH(scale & 7), scale_high = BOTH(scale >> 3);
        #pragma unroll
        for (int k = 0; k < QUADS; k++) {
            const vpair pairs = as_vpair(codes[k]);
            w->low[i / 2][i % 2 * QUADS + k] = __builtin_astype((vpair)(pairs * scale_low), vint);
            w->high[i / 2][i % 2 * QUADS + k] = __builtin_astype((vpair)(pairs * scale_high), vint);
            sum += as_uint16(codes[k]);  // a byte holds 8 codes of 5 bits
        }
        sum = (sum & 0x00FF00FF) + (sum >> 8 & 0x00FF00FF);
        total += as_int16((sum & 0xFFFF) + (sum >> 16)) * scale;
    }
    w->sum = total;
}

// The bytes of 64 columns of a token, in the order of quads: even or odd ones of 16 at a time.
#define OF_LANE(i) (i), (i) + 8, (i) + 2, (i) + 10, (i) + 4, (i) + 12, (i) + 6, (i) + 14
#define BYTES_FROM(i)                                                                        \
    __builtin_astype(__builtin_shufflevector(a, b, OF_LANE(i), OF_LANE((i) + 16),            \
                                             OF_LANE((i) + 32), OF_LANE((i) + 48),           \
                                             OF_LANE((i) + 64), OF_LANE((i) + 80),           \
                                             OF_LANE((i) + 96), OF_LANE((i) + 112)), int16)
INLINE void split_codes(global const int* x, int16* low, int16* high) {
    const char64 a = __builtin_astype(vload16(0, x), char64);
    const char64 b = __builtin_astype(vload16(1, x), char64);
    *low = BYTES_FROM(0);
    *high = BYTES_FROM(1) ^ (int16)(0x80808080);
}

typedef struct {
    int16 codes[STEPS][2][TILE_TOKENS];
} Tokens;

INLINE void split_span(X_ARGS, IN_ARG, int from, int n, int n_blocks, int b, Tokens* tokens) {
    for (int t = 0; t < n; t++) {
        global const int* row = x + ((size_t)ROW_IN(from + t) * n_blocks + b) * 16;
        #pragma unroll
        for (int i = 0; i < STEPS; i++)
            split_codes(row + 32 * i, &tokens->codes[i][0][t], &tokens->codes[i][1][t]);
    }
}

INLINE void zero_sums(void) {
    TILE_ZERO(4);
    TILE_ZERO(5);
    TILE_ZERO(6);
    TILE_ZERO(7);
}

INLINE void multiply_step(const Span* w, const Tokens* tokens, int i) {
    TILE_LOAD(0, tokens->codes[i]);
    TILE_LOAD(1, w[0].low[i]);
    TILE_ADD_PRODUCT(4, 0, 1);
    TILE_LOAD(2, w[0].high[i]);
    TILE_ADD_PRODUCT(5, 0, 2);
    TILE_LOAD(3, w[1].low[i]);
    TILE_ADD_PRODUCT(6, 0, 3);
    TILE_LOAD(1, w[1].high[i]);
    TILE_ADD_PRODUCT(7, 0, 1);
}

// Adds to acc[..][from ..] what the tiles have summed up of the span that begins with block b.
INLINE void add_sums(const Span* w, X_ARGS, IN_ARG, int from, int n, int n_blocks, int b,
                     float16 acc[GROUPS][NT]) {
    int16 sums[GROUPS][2][2][TILE_TOKENS];
    TILE_STORE(4, sums[0][0]);
    TILE_STORE(5, sums[0][1]);
    TILE_STORE(6, sums[1][0]);
    TILE_STORE(7, sums[1][1]);
    #pragma unroll 1
    for (int t = 0; t < n; t++) {
        // Floats, since of pairs the compiler makes shuffles.
        global const float* xs =
            (global const float*)(xd + (size_t)ROW_IN(from + t) * n_blocks + b);
        #pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            const int16 low = sums[g][0][0][t] + (sums[g][1][0][t] << 3);
            const int16 high = sums[g][0][1][t] + (sums[g][1][1][t] << 3) - (w[g].sum << 7);
            float16 a = acc[g][from + t];
            #pragma unroll
            for (int i = 0; i < SPAN; i++) a = fma(w[g].m[i], (float16)(xs[2 * i + 1]), a);
            acc[g][from + t] = fma(convert_float16(low + (high << 8)) * xs[0], w[g].d, a);
        }
    }
}

// Adds to acc the products of a group and of the next one, if `both`, with nt tokens.
INLINE void dot_groups(global const uchar* q, global const uchar* s, bool both, X_ARGS, IN_ARG,
                       int nt, int n_blocks, float16 acc[GROUPS][NT]) {
    if (nt <= 2) {  // which a tile's products take as long for as for 8
        #pragma unroll 1
        for (int g = 0; g < (both ? GROUPS : 1); g++)
            dot_group(q + g * GROUP_BYTES, s + g * GROUP_SCALES, X, IN, nt, n_blocks, acc[g]);
        return;
    }
    global const uchar* q2 = both ? q + GROUP_BYTES : q;
    global const uchar* s2 = both ? s + GROUP_SCALES : s;
    begin_tiles();
    for (int b = 0; b < n_blocks; b += SPAN) {
        Span w[GROUPS];
        Tokens tokens;
        const size_t at = (size_t)b * QBYTES + PREFETCH_BYTES;
        const size_t to = at < GROUP_BYTES ? at : at + GROUP_BYTES;  // of the next two groups
        split_span(X, IN, 0, min(TILE_TOKENS, nt), n_blocks, b, &tokens);
        zero_sums();
        #pragma unroll 1
        for (int i = 0; i < STEPS; i++) {
            unpack_step(q, s, b, i, q + to, &w[0]);
            unpack_step(q2, s2, b, i, q2 + to, &w[1]);
            multiply_step(w, &tokens, i);
        }
        add_sums(w, X, IN, 0, min(TILE_TOKENS, nt), n_blocks, b, acc);
        for (int t = TILE_TOKENS; t < nt; t += TILE_TOKENS) {
            const int n = min(TILE_TOKENS, nt - t);
            split_span(X, IN, t, n, n_blocks, b, &tokens);
            zero_sums();
            #pragma unroll
            for (int i = 0; i < STEPS; i++) multiply_step(w, &tokens, i);
            add_sums(w, X, IN, t, n, n_blocks, b, acc);
        }
    }
    end_tiles();
}
