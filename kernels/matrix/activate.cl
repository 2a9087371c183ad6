// Activations outside of matmul: of ungated FFNs, of gates on what attention yields.
//
// out[t, c] = ACT(x[t, x_at + c / REPEAT]) (* y[t, y_at + c]) (/ divisors[c]), or with GLU_x
// GLU(x, y). Work-item (32 columns, token).
// ACT_x     a function of activation.cl, or xIELU           TIMES   with y
// QUANTIZE  out is integer activations (n_cols a multiple of 32), else float

#include "include/lanes.cl"
#include "include/activation.cl"

#if defined(ACT_SILU)
#define ACT SILU
#elif defined(ACT_ELU)
#define ACT ELU
#elif defined(ACT_GELU)
#define ACT GELU
#elif defined(ACT_GELU_ERF)
#define ACT GELU_ERF
#elif defined(ACT_GELU_QUICK)
#define ACT GELU_QUICK
#elif defined(ACT_HARDSIGMOID)
#define ACT HARDSIGMOID
#elif defined(ACT_HARDSWISH)
#define ACT HARDSWISH
#elif defined(ACT_INVERSE)
#define ACT(x) (1.0f / (x))
#elif defined(ACT_NONE)
#define ACT(x) (x)
#elif defined(ACT_RELU)
#define ACT RELU
#elif defined(ACT_RELU2)
#define ACT RELU2
#elif defined(ACT_SIGMOID)
#define ACT SIGMOID
#elif defined(ACT_SOFTPLUS)
#define ACT SOFTPLUS
#elif defined(ACT_SQRT)
#define ACT sqrt
#elif defined(ACT_TANH)
#define ACT TANH
#elif defined(ACT_XIELU)
#define ACT(x) \
    (beta * (x) + ((x) > 0 ? alpha_p * (x) * (x) : alpha_n * (expm1(fmin(x, eps)) - (x))))
#endif

// Whole blocks in vectors: Intel's compiler calls exp and its like value by value in a loop.
#if !defined(SIMT) && REPEAT == 1 && !defined(ACT_XIELU)
#define VECTORS
#endif

VECTOR_ITEMS
kernel void activate(global const float* x, int x_stride, int x_at,
#ifdef TIMES
                     global const float* y, int y_stride, int y_at,
#endif
#ifdef DIVIDE
                     global const float* divisors,
#endif
#ifdef ACT_XIELU
                     float alpha_n, float alpha_p, float beta, float eps,
#endif
                     int n_cols,
#ifdef QUANTIZE
                     global code_t* out_q, global scale_t* out_d
#else
                     global float* out
#endif
) {
    const int b = get_global_id(0), n = min(32, n_cols - 32 * b);
    const size_t t = get_global_id(1);
    x += t * x_stride + x_at;
#ifdef TIMES
    y += t * y_stride + y_at + 32 * b;
#endif
#ifdef QUANTIZE  // whole blocks
#define EACH(i) UNROLLED(i, 32, 32)
    float v[32];
#else
#define EACH(i) for (int i = 0; i < n; i++)
    out += t * n_cols + 32 * b;
#ifdef SIMT  // the array would not be in registers
    global float* v = out;
#else
    float v[32];
#endif
#endif
#ifdef VECTORS
    if (n == 32)
        for (int i = 0; i < 32; i += 16) {
            const float16 a = vload16(0, x + 32 * b + i);
#ifdef ACT
            float16 value = ACT(a);
#ifdef TIMES
            value *= vload16(0, y + i);
#endif
#else
            float16 value = GLU(a, vload16(0, y + i));
#endif
#ifdef DIVIDE
            value /= vload16(0, divisors + 32 * b + i);
#endif
            vstore16(value, 0, v + i);
        }
    else
#endif
    EACH(i) {
        const float a = x[(32 * b + i) / REPEAT];
#ifdef ACT
        float value = ACT(a);
#ifdef TIMES
        value *= y[i];
#endif
#else
        float value = GLU(a, y[i]);
#endif
#ifdef DIVIDE
        value /= divisors[32 * b + i];
#endif
        v[i] = value;
    }
#ifdef QUANTIZE
    const size_t at = t * (n_cols / 32) + b;
    out_d[at] = quantize32(vload16(0, v), vload16(1, v), out_q + at * 32);
#elif !defined(SIMT)
    for (int i = 0; i < n; i++) out[i] = v[i];
#endif
}
