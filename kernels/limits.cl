// What the device can do at most: reading memory and multiplying (profile.py).

// Each work-item reads `n` vectors from its own first one on, `stride` apart: on a CPU a range
// of its own, on a GPU interleaved with its neighbours'. n is a multiple of 4.
#ifdef WIDE
typedef uint16 word;
#else
typedef uint4 word;
#endif

kernel void read_memory(global const word* x, ulong n, ulong first, ulong stride,
                        global word* out) {
    global const word* p = x + get_global_id(0) * first;
    word a = 0, b = 0, c = 0, d = 0;
    for (ulong i = 0; i < n; i += 4, p += 4 * stride) {
        a ^= p[0];
        b ^= p[stride];
        c ^= p[2 * stride];
        d ^= p[3 * stride];
    }
    out[get_global_id(0)] = a ^ b ^ c ^ d;
}

// CHAINS independent sums in registers, enough to hide an instruction's latency.
#include "include/lanes.cl"

#ifdef SIMT

kernel void multiply_add(int n, float x, float y, global float* out) {
    float acc[CHAINS];
    #pragma unroll
    for (int c = 0; c < CHAINS; c++) acc[c] = x + c;
    for (int i = 0; i < n; i++) {
        #pragma unroll
        for (int c = 0; c < CHAINS; c++) acc[c] = fma(acc[c], x, y);
    }
    float sum = 0;
    for (int c = 0; c < CHAINS; c++) sum += acc[c];
    out[get_global_id(0)] = sum;
}

#else

kernel void multiply_add(int n, float x, float y, global float* out) {
    vpair a[CHAINS], b = (vpair)((short)y);
    int16 acc[CHAINS];
    #pragma unroll
    for (int c = 0; c < CHAINS; c++) {
        a[c] = as_vpair((int16)((int)x + c));
        acc[c] = 0;
    }
    for (int i = 0; i < n; i++, b += (vpair)((short)1)) {  // else one product would do for all
        #pragma unroll
        for (int c = 0; c < CHAINS; c++) acc[c] = madd(a[c], b, acc[c]);
    }
    int16 sum = 0;
    for (int c = 0; c < CHAINS; c++) sum += acc[c];
    vstore16(convert_float16(sum), get_global_id(0), out);
}

#endif
