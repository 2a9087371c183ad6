// AMX: registers that are tiles of 16 rows of 64 bytes, for CPUs where kernels/opencl/features.py
// has found them to work. OpenCL C has no name for them, and LLVM's intrinsics want a function of
// another target, so it is assembler. The compiler knows nothing of these registers.

#define TILE_TOKENS 8  // whose codes' low and high bytes make 16 rows

#define TILE_LOAD(tile, from) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"(64L) : "memory")
#define TILE_STORE(tile, to) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"(64L) : "memory")
#define TILE_ZERO(tile) __asm__ volatile("tilezero %tmm" #tile)
// sum[r][c] += the products of 4 unsigned bytes each, a[r][4k ..] and b[k][4c ..], for all k.
#define TILE_ADD_PRODUCT(sum, a, b) \
    __asm__ volatile("tdpbuud %tmm" #b ", %tmm" #a ", %tmm" #sum)

// Before the first of these in a work-item, and after the last one.
INLINE void begin_tiles(void) {
    uchar config[64] __attribute__((aligned(64)));
    for (int i = 0; i < 64; i++) config[i] = 0;
    config[0] = 1;  // the palette
    for (int i = 0; i < 8; i++) {
        config[16 + 2 * i] = 64;  // bytes of a row, in 16 bits
        config[48 + i] = 16;      // rows
    }
    __asm__ volatile("ldtilecfg (%0)" ::"r"(config) : "memory");
}
INLINE void end_tiles(void) { __asm__ volatile("tilerelease"); }
