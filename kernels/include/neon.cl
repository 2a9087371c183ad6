// Products of pairs on ARM, for lanes.cl: an instruction multiplies four shorts and adds the
// products to four sums, so that even and odd columns have sums of their own until they are joined.
// LLVM finds it only while it does not know that codes are positive.

int4 smull(short4, short4) __asm__("llvm.aarch64.neon.smull.v4i32");
int4 addp(int4, int4) __asm__("llvm.aarch64.neon.addp.v4i32");  // sums of neighbours

typedef struct {
    int4 of[8];
} pair_sums;
#define PAIRS_APART
#define NO_SUMS (pair_sums){{0}}

#define FOUR(v, i) __builtin_shufflevector(v, v, 4 * (i), 4 * (i) + 1, 4 * (i) + 2, 4 * (i) + 3)
#define ADD_FOUR(i) c.of[i] += smull(FOUR(a, i), FOUR(b, i))
INLINE pair_sums madd_apart(vpair a, vpair b, pair_sums c) {
    ADD_FOUR(0), ADD_FOUR(1), ADD_FOUR(2), ADD_FOUR(3);
    ADD_FOUR(4), ADD_FOUR(5), ADD_FOUR(6), ADD_FOUR(7);
    return c;
}

INLINE int16 joined(pair_sums sums) {
    return (int16)(addp(sums.of[0], sums.of[1]), addp(sums.of[2], sums.of[3]),
                   addp(sums.of[4], sums.of[5]), addp(sums.of[6], sums.of[7]));
}
