// Products of tiles by the matrix instructions of a GPU: c += a b', where a has 16 rows, b 16
// tokens, both 16 columns of halves, and sums are floats.
//
// A subgroup of MMA_LANES items computes a product together. Each item has MMA_WORDS pairs of
// columns of a and of b, and MMA_SUMS values of c: value i is that of row MMA_ROW(i, lane) and
// token MMA_TOKEN(i, lane). a and b come from local memory, where a row or token is MMA_STRIDE
// words after the one before: 64 columns and a gap, so that what an instruction's items read lies
// in different banks.
//
// Which instruction, by a define that features.py has tried on the device:
//   MMA_PTX_16, MMA_PTX_8  NVIDIA's mma.m16n8k16 (from sm_80), mma.m16n8k8 (from sm_75); the items
//                          of both have the same values ("Matrix fragments", PTX ISA)
//   MMA_WMMA               AMD's v_wmma of RDNA 3, subgroups of 32; halves of it have the same a, b
//   MMA_MFMA               AMD's v_mfma of CDNA, subgroups of 64
//   MMA_DPAS               Intel's cl_intel_subgroup_matrix_multiply_accumulate, subgroups of 16
//   MMA_BY_HAND            none: what MMA_PTX_16 does, for tests on devices without any

#define MMA_STRIDE 36

// Loops around products: sums are in registers only where those are unrolled. By hand they are not,
// since what meets in the middle of an unrolled loop takes compilers for CPUs long.
#ifdef MMA_BY_HAND
#define MMA_UNROLL
#else
#define MMA_UNROLL _Pragma("unroll")
#endif

#if defined(MMA_PTX_16) || defined(MMA_PTX_8) || defined(MMA_BY_HAND)
#define MMA_LANES 32
#define MMA_WORDS 4
#define MMA_SUMS 8
#define MMA_ROW(i, lane) ((lane) / 4 + 8 * ((i) / 2 % 2))
#define MMA_TOKEN(i, lane) (2 * ((lane) % 4) + (i) % 2 + 8 * ((i) / 4))
#elif defined(MMA_WMMA)
#define MMA_LANES 32
#define MMA_WORDS 8
#define MMA_SUMS 8
#define MMA_ROW(i, lane) (2 * (i) + (lane) / 16)
#define MMA_TOKEN(i, lane) ((lane) % 16)
#elif defined(MMA_MFMA)
#define MMA_LANES 64
#define MMA_WORDS 2
#define MMA_SUMS 4
#define MMA_ROW(i, lane) (4 * ((lane) / 16) + (i))
#define MMA_TOKEN(i, lane) ((lane) % 16)
#elif defined(MMA_DPAS)
#define MMA_LANES 16
#define MMA_WORDS 8
#define MMA_SUMS 16
#define MMA_ROW(i, lane) (i)
#define MMA_TOKEN(i, lane) (lane)
#endif

// Among a kernel's attributes.
#ifdef MMA_DPAS
#define MMA_SUBGROUP intel_reqd_sub_group_size(MMA_LANES),
#else
#define MMA_SUBGROUP
#endif

typedef struct { uint v[MMA_WORDS]; } mma_tile;
typedef struct { float v[MMA_SUMS]; } mma_sums;

// An item's part of 16 rows of a, or tokens of b, from the column on at which `from` begins.
#if MMA_WORDS == 4
INLINE mma_tile mma_load_b(local const uint* from, int lane) {
    mma_tile tile;
    local const uint* first = from + lane / 4 * MMA_STRIDE + lane % 4;
    tile.v[0] = first[0];
    tile.v[1] = first[4];
    tile.v[2] = first[8 * MMA_STRIDE];
    tile.v[3] = first[8 * MMA_STRIDE + 4];
    return tile;
}
INLINE mma_tile mma_load_a(local const uint* from, int lane) {
    mma_tile tile = mma_load_b(from, lane);
    const uint below = tile.v[2];
    tile.v[2] = tile.v[1];
    tile.v[1] = below;
    return tile;
}
#else
INLINE mma_tile mma_load_b(local const uint* from, int lane) {
    mma_tile tile;
    local const uint* first = from + lane % 16 * MMA_STRIDE;
#ifdef MMA_MFMA
    first += lane / 16 * MMA_WORDS;
#endif
    #pragma unroll
    for (int i = 0; i < MMA_WORDS; i++) tile.v[i] = first[i];
    return tile;
}
#ifdef MMA_DPAS  // of a each item has a column
INLINE mma_tile mma_load_a(local const uint* from, int lane) {
    mma_tile tile;
    local const ushort* column = (local const ushort*)from + lane;
    #pragma unroll
    for (int i = 0; i < 8; i++, column += 4 * MMA_STRIDE)
        tile.v[i] = as_uint((ushort2)(column[0], column[2 * MMA_STRIDE]));
    return tile;
}
#else
#define mma_load_a mma_load_b
#endif
#endif

// c += a b'. All items of the work-group come here together.
#if defined(MMA_PTX_16)
INLINE void mma_half(float* c, const uint* a, uint b0, uint b1) {
    __asm__ volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#elif defined(MMA_PTX_8)
INLINE void mma_quarter(float* c, uint a0, uint a1, uint b) {
    __asm__ volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
}
INLINE void mma_half(float* c, const uint* a, uint b0, uint b1) {
    mma_quarter(c, a[0], a[1], b0);
    mma_quarter(c, a[2], a[3], b1);
}
#elif defined(MMA_DPAS)  // not all drivers' headers have it
float8 __attribute__((overloadable))
intel_sub_group_f16_f16_matrix_mad_k16(short8 rows, int8 tokens, float8 sums);
#elif defined(MMA_WMMA) || defined(MMA_MFMA)
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#elif defined(MMA_BY_HAND)
// `shared`: 256 words of a subgroup's own.
INLINE void mma_by_hand(mma_sums* c, mma_tile a, mma_tile b, local uint* shared, int lane) {
    const int row = lane / 4, word = lane % 4;
    for (int i = 0; i < 4; i++) {  // word i of a is 8 rows or 8 columns, or both, after word 0
        shared[(row + 8 * (i % 2)) * 8 + word + 4 * (i / 2)] = a.v[i];
        shared[128 + (row + 8 * (i / 2)) * 8 + word + 4 * (i % 2)] = b.v[i];
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    local const half* rows = (local const half*)shared;
    for (int i = 0; i < MMA_SUMS; i++)
        for (int k = 0; k < 16; k++)
            c->v[i] += vload_half(MMA_ROW(i, lane) * 16 + k, rows) *
                       vload_half(256 + MMA_TOKEN(i, lane) * 16 + k, rows);
    barrier(CLK_LOCAL_MEM_FENCE);
}
#endif

#ifdef MMA_BY_HAND
#define MMA_SHARED(items) local uint mma_shared_[(items) / MMA_LANES * 256]
#define MMA(c, a, b, lane) \
    mma_by_hand(&(c), a, b, mma_shared_ + get_local_id(0) / MMA_LANES * 256, lane)
#else
#define MMA_SHARED(items)
#define MMA(c, a, b, lane) mma(&(c), &(a), &(b))
INLINE void mma(mma_sums* c, const mma_tile* a, const mma_tile* b) {
#if defined(MMA_WMMA)
    const float8 sums = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(
        as_half16(vload8(0, a->v)), as_half16(vload8(0, b->v)), vload8(0, c->v));
    vstore8(sums, 0, c->v);
#elif defined(MMA_MFMA)
    const float4 sums = __builtin_amdgcn_mfma_f32_16x16x16f16(
        as_half4(vload2(0, a->v)), as_half4(vload2(0, b->v)), vload4(0, c->v), 0, 0, 0);
    vstore4(sums, 0, c->v);
#elif defined(MMA_DPAS)  // 8 rows at once
    #pragma unroll
    for (int i = 0; i < 2; i++) {
        const short8 rows = as_short8(vload4(i, a->v));
        const int8 tokens = as_int8(vload8(0, b->v));
        vstore8(intel_sub_group_f16_f16_matrix_mad_k16(rows, tokens, vload8(i, c->v)), i, c->v);
    }
#else  // 8 tokens at once
    mma_half(c->v, a->v, b->v[0], b->v[1]);
    mma_half(c->v + 4, a->v, b->v[2], b->v[3]);
#endif
}
#endif
