// out[t, r] (+)= sum_k W[r, k] x[t, k] for many tokens on a GPU: tiles in local memory.
//
// Work-group of 64 items: 64 rows (4 groups) x 32 tokens. A block of 32 columns of both is
// brought to local memory as floats; item (lane, quarter) then keeps 4 x 8 sums: row `lane` of
// each group by 8 tokens, so that gate and up of a column meet in one item.
// Grid: (groups of rows / 4, tiles of 32 tokens). Defines as in matvec_simt.cl.

#include "include/lanes.cl"
#include "quantization/unpack.cl"
#include "include/activation.cl"
#define NT 32
#include "matrix/rows.cl"

#define TILE_TOKENS NT
#define PER_ITEM 8

kernel __attribute__((reqd_work_group_size(64, 1, 1)))
void matmul(global const uchar* w, ulong scales_at,
#ifdef ACT_INT
            global const short* x, global const float2* xd,
#else
            global const float* x,
#endif
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
    local float wt[32][64];
    local float xt[32][TILE_TOKENS + 1];
    const int lane = get_local_id(0) % ROWS, quarter = get_local_id(0) / ROWS;
    BEGIN_TILE(get_group_id(1), n_rows / ROWS);
#ifdef GLU
    const int n_groups = (n_rows / 2 + ROWS - 1) / ROWS * 2;
#else
    const int n_groups = (n_rows + ROWS - 1) / ROWS;
#endif
    const int mine = get_group_id(0) * 4 + quarter;  // the group that this item unpacks
#ifdef LOW_BITS
    const int n_cols = n_blocks * 32;
    const int n_steps = n_blocks;
    global const uchar* s = w + scales_at + (first_group + mine) * (n_blocks / SUPER) * SBYTES;
    global const uchar* q = w + (first_group + mine) * n_blocks * QBYTES;
#else
    const int n_cols = n_blocks;
    const int n_steps = (n_cols + 31) / 32;
    global const uchar* q = w + (first_group + mine) * n_cols * (QBYTES / 32);
#endif
    float acc[4][PER_ITEM];  // in registers, so all loops over it have constant bounds
    #pragma unroll
    for (int i = 0; i < 4; i++)
        #pragma unroll
        for (int t = 0; t < PER_ITEM; t++) acc[i][t] = 0;

    for (int b = 0; b < n_steps; b++) {
        const int column = quarter * ROWS + lane;
#ifdef LOW_BITS
        short2 c[16];
        float d[PARTS] = {0}, m[PARTS] = {0};
        #pragma unroll
        for (int p = 0; p < 16; p++) c[p] = (short2)(0);
        if (mine < n_groups) {
            unpack_scales(s, b, d, m, lane);
            unpack_codes(q + (ulong)b * QBYTES, s, b, c, lane);
        }
        #pragma unroll
        for (int p = 0; p < 16; p++) {
            const int i = p * PARTS / 16;
            wt[2 * p][column] = fma(EVEN(c[p]), d[i], m[i]);
            wt[2 * p + 1][column] = fma(ODD(c[p]), d[i], m[i]);
        }
#else
        for (int k = 0; k < 32; k++)
            wt[k][column] =
                mine < n_groups && 32 * b + k < n_cols ? LOAD_WEIGHT(q, 32 * b + k) : 0.0f;
#endif
        for (int i = get_local_id(0); i < 32 * TILE_TOKENS; i += 64) {
            const int t = i / 32, k = i % 32;
            float v = 0;
            if (t < nt && 32 * b + k < n_cols) {
                v = x[(size_t)ROW_IN(t) * n_cols + 32 * b + k];
#ifdef ACT_INT
                v *= xd[(size_t)ROW_IN(t) * n_blocks + b].x;
#endif
            }
            xt[k][t] = v;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int k = 0; k < 32; k++) {
            float xv[PER_ITEM];
            #pragma unroll
            for (int t = 0; t < PER_ITEM; t++) xv[t] = xt[k][quarter * PER_ITEM + t];
            #pragma unroll
            for (int i = 0; i < 4; i++) {
                const float wv = wt[k][i * ROWS + lane];
                #pragma unroll
                for (int t = 0; t < PER_ITEM; t++) acc[i][t] = fma(wv, xv[t], acc[i][t]);
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }

    #pragma unroll
    for (int j = 0; j < PER_ITEM; j++) {
        const int t = quarter * PER_ITEM + j;
        if (t >= nt) break;
        global float* o = out + (size_t)ROW_OUT(t) * out_stride + out_offset;
#ifdef GLU
        #pragma unroll
        for (int i = 0; i < 4; i += 2) {
            const int row = (get_group_id(0) * 2 + i / 2) * ROWS + lane;
            float gate = acc[i][j], up = acc[i + 1][j];
            if (row >= n_rows / 2) continue;
#ifdef BIAS
            gate += bias[(first_group + get_group_id(0) * 4 + i) * ROWS + lane];
            up += bias[(first_group + get_group_id(0) * 4 + i + 1) * ROWS + lane];
#endif
            o[row] = GLU(gate * WEIGHT_OF(t), up * WEIGHT_OF(t));
        }
#else
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = (get_group_id(0) * 4 + i) * ROWS + lane;
            if (row >= n_rows) continue;
            float v = acc[i][j];
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
