// out[t, r] (+)= sum_k W[r, k] x[t, k] for many tokens on a GPU with instructions for products of
// tiles (mma.cl): quantized weights, activations of 15 bits.
//
// Work-group of ITEMS: 64 rows (4 groups) x NT tokens. Two blocks of 32 columns of both are brought
// to local memory as halves; each subgroup then multiplies 2 x TT tiles of 16 rows by 16 tokens.
// Sums are floats. A half has 11 bits: the NMSE of a product is below 1e-7. So that none is
// infinite, a token's activations are multiplied by the power of two that brings them below 16,
// and its sums by its inverse. A gate's and an up's rows are in tiles of one subgroup.
// Grid: (groups of rows / 4, tiles of NT tokens). Defines as in matvec_simt.cl, and ITEMS, TT.

#include "include/lanes.cl"
#include "include/mma.cl"
#include "quantization/unpack.cl"
#include "include/activation.cl"
#include "matrix/rows.cl"

#define TR 2
#define ROW_TILES 4
#define TILE_ROWS (ROW_TILES * ROWS)
#define BLOCKS 2
#define PARTS_OF(n) (((n) + ITEMS - 1) / ITEMS)  // rounds in which all items do n things

// Four floats as halves, two words.
#define PUT(to, a, b, c, d) vstorea_half4_rte((float4)(a, b, c, d), 0, (local half*)(to))

kernel __attribute__((MMA_SUBGROUP reqd_work_group_size(ITEMS, 1, 1)))
void matmul(global const uchar* w, ulong scales_at,
            global const short* x, global const float2* xd,
            int n_blocks, int n_rows, global const int* counts, int count_at,
#ifdef EXPERTS
            global const int4* tiles, global const int* in_rows, global const int* out_rows,
#endif
#ifdef WEIGHTED
            global const float* weights_of,
#endif
#ifdef BIAS
            global const float* bias,
#endif
#ifdef SCALE
            float scale,
#endif
            global float* out, int out_stride, int out_offset) {
    local uint wt[TILE_ROWS * MMA_STRIDE] __attribute__((aligned(16)));
    local uint xt[NT * MMA_STRIDE] __attribute__((aligned(16)));
    local float most[ITEMS];
    local int exponents[NT];
    MMA_SHARED(ITEMS);
    const int item = get_local_id(0);
    BEGIN_TILE(get_group_id(1), n_rows / ROWS);
#ifdef GLU
    const int n_groups = (n_rows / 2 + ROWS - 1) / ROWS * 2;
#else
    const int n_groups = (n_rows + ROWS - 1) / ROWS;
#endif

    // The largest scale of a token's blocks says how large its activations may be: below 2^14
    // times as large.
    const int own = item % NT;
    float largest = 0;
    if (own < nt)
        for (int b = item / NT; b < n_blocks; b += ITEMS / NT)
            largest = fmax(largest, xd[(size_t)ROW_IN(own) * n_blocks + b].x);
    most[item] = largest;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (item < NT) {
        for (int i = item + NT; i < ITEMS; i += NT) largest = fmax(largest, most[i]);
        exponents[item] = largest > 0 ? clamp(ilogb(largest), -120, 120) + 11 : 0;
    }

    // This subgroup's tiles.
    const int lane = item % MMA_LANES, subgroup = item / MMA_LANES;
    const int row0 = subgroup % (ROW_TILES / TR) * TR * 16;
    const int token0 = subgroup / (ROW_TILES / TR) * TT * 16;
    mma_sums sums[TR][TT];
    #pragma unroll
    for (int i = 0; i < TR; i++)
        #pragma unroll
        for (int j = 0; j < TT; j++)
            #pragma unroll
            for (int k = 0; k < MMA_SUMS; k++) sums[i][j].v[k] = 0;

    for (int b0 = 0; b0 < n_blocks; b0 += BLOCKS) {
        barrier(CLK_LOCAL_MEM_FENCE);
        #pragma unroll
        for (int i = 0; i < PARTS_OF(BLOCKS * TILE_ROWS); i++) {
            const int part = item + i * ITEMS, row = part % TILE_ROWS, b = b0 + part / TILE_ROWS;
            const int g = get_group_id(0) * ROW_TILES + row / ROWS;
            short2 c[16];
            float d[PARTS] = {0}, m[PARTS] = {0};
            #pragma unroll
            for (int p = 0; p < 16; p++) c[p] = (short2)(0);
            if (g < n_groups && b < n_blocks) {
                const size_t at = (size_t)(first_group + g) * n_blocks;
                global const uchar* s = w + scales_at + at / SUPER * SBYTES;
                unpack_scales(s, b, d, m, row % ROWS);
                unpack_codes(w + (at + b) * QBYTES, s, b, c, row % ROWS);
            }
            local uint* to = wt + row * MMA_STRIDE + 16 * (part / TILE_ROWS);
            #pragma unroll
            for (int p = 0; p < 16; p += 2) {
                const float dp = d[p * PARTS / 16], mp = m[p * PARTS / 16];
                PUT(to + p, fma(EVEN(c[p]), dp, mp), fma(ODD(c[p]), dp, mp),
                    fma(EVEN(c[p + 1]), dp, mp), fma(ODD(c[p + 1]), dp, mp));
            }
        }
        #pragma unroll
        for (int i = 0; i < PARTS_OF(BLOCKS * NT); i++) {
            const int part = item + i * ITEMS, t = part / BLOCKS, b = b0 + part % BLOCKS;
            if (t >= NT) break;
            float d = 0;
            size_t at = 0;
            if (t < nt && b < n_blocks) {
                at = (size_t)ROW_IN(t) * n_blocks + b;
                d = ldexp(xd[at].x, -exponents[t]);
            }
            local uint* to = xt + t * MMA_STRIDE + 16 * (part % BLOCKS);
            #pragma unroll
            for (int p = 0; p < 4; p++) {
                const float8 v = convert_float8(vload8(at * 4 + p, x)) * d;
                PUT(to + 4 * p, v.s0, v.s1, v.s2, v.s3);
                PUT(to + 4 * p + 2, v.s4, v.s5, v.s6, v.s7);
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        MMA_UNROLL
        for (int k = 0; k < BLOCKS * 32 / 16; k++) {
            mma_tile a[TR];
            MMA_UNROLL
            for (int i = 0; i < TR; i++)
                a[i] = mma_load_a(wt + (row0 + 16 * i) * MMA_STRIDE + 8 * k, lane);
            MMA_UNROLL
            for (int j = 0; j < TT; j++) {
                const mma_tile tokens =
                    mma_load_b(xt + (token0 + 16 * j) * MMA_STRIDE + 8 * k, lane);
                MMA_UNROLL
                for (int i = 0; i < TR; i++) MMA(sums[i][j], a[i], tokens, lane);
            }
        }
    }

    MMA_UNROLL
    for (int j = 0; j < TT; j++)
        MMA_UNROLL
        for (int k = 0; k < MMA_SUMS; k++) {
            const int t = token0 + 16 * j + MMA_TOKEN(k, lane);
            if (t >= nt) continue;
            global float* o = out + (size_t)ROW_OUT(t) * out_stride + out_offset;
#ifdef GLU
            const int first = get_group_id(0) * ROW_TILES + row0 / 16;
            const int row = first / 2 * ROWS + MMA_ROW(k, lane);
            float gate = ldexp(sums[0][j].v[k], exponents[t]);
            float up = ldexp(sums[1][j].v[k], exponents[t]);
            if (row >= n_rows / 2) continue;
#ifdef BIAS
            gate += bias[(first_group + first) * ROWS + MMA_ROW(k, lane)];
            up += bias[(first_group + first + 1) * ROWS + MMA_ROW(k, lane)];
#endif
            o[row] = GLU(gate * WEIGHT_OF(t), up * WEIGHT_OF(t));
#else
            #pragma unroll
            for (int i = 0; i < TR; i++) {
                const int row = get_group_id(0) * TILE_ROWS + row0 + 16 * i + MMA_ROW(k, lane);
                if (row >= n_rows) continue;
                float v = ldexp(sums[i][j].v[k], exponents[t]);
#ifdef BIAS
                v += bias[first_group * ROWS + row];
#endif
#ifdef SCALE
                v *= scale;
#endif
#ifdef ADD
                v += o[row];
#endif
                o[row] = v;
            }
#endif
        }
}
