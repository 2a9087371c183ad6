// The gated delta rule: a matrix of state per head, over the tokens of a sequence.
//
// On a GPU: work-item (value column, head, sequence of the step) goes through its tokens with the
// column s of N_KEY values:
//   s = s * exp(g),  s += k * beta * (v - s k),  out = s q
// g is one number per head, with GATE_PER_KEY one per key. Q and K come with norm 1 times
// sqrt(N_KEY) (as an RMS norm leaves them). V heads h use the Q and K of head h / REPEAT, with
// TILED of h % (heads / REPEAT). sequences as in conv.cl; state is [slot][head][column][N_KEY].
// SIGMOID_GATE  g = lower * sigmoid(a * (g + bias)), else g = a * softplus(g + bias)

#include "include/lanes.cl"
#include "include/activation.cl"

#define VECTORS (N_KEY / 16)

VECTOR_ITEMS
kernel void delta_rule(global const float* q, int q_stride, int q_at, global const float* k,
                       int k_stride, int k_at, global const float* v, int v_stride, int v_at,
                       global const float* beta, int beta_stride, int beta_at,
                       global const float* gate, int gate_stride, int gate_at,
                       global const float* gate_bias, global const float* a, float lower,
                       int n_value, global const int4* sequences, global float* state,
                       global float* out) {
    const int column = get_global_id(0), head = get_global_id(1), n_heads = get_global_size(1);
    const int4 sequence = sequences[get_global_id(2)];
#ifdef TILED
    const int key_head = head % (n_heads / REPEAT);
#else
    const int key_head = head / REPEAT;
#endif
    state += (((size_t)sequence.z * n_heads + head) * n_value + column) * N_KEY;
    float16 s[VECTORS];
    for (int i = 0; i < VECTORS; i++) s[i] = sequence.w == 0 ? (float16)(0) : vload16(i, state);
    for (int i = 0; i < sequence.y; i++) {
        const size_t t = sequence.x + i;
        global const float* qt = q + t * q_stride + q_at + key_head * N_KEY;
        global const float* kt = k + t * k_stride + k_at + key_head * N_KEY;
        const float b = SIGMOID(beta[t * beta_stride + beta_at + head]);
#ifdef GATE_PER_KEY
        global const float* gt = gate + t * gate_stride + gate_at + head * N_KEY;
#else
        const float raw = gate[t * gate_stride + gate_at + head] + gate_bias[head];
        const float16 decay = exp(a[head] * SOFTPLUS(raw));
#endif
        float16 dot = 0;
        for (int j = 0; j < VECTORS; j++) {
#ifdef GATE_PER_KEY
            const float16 raw = vload16(j, gt) + vload16(j, gate_bias + head * N_KEY);
#ifdef SIGMOID_GATE
            const float16 decay = exp(lower * SIGMOID(a[head] * raw));
#else
            const float16 decay = exp(a[head] * SOFTPLUS(raw));
#endif
#endif
            s[j] *= decay;
            dot = fma(s[j], vload16(j, kt), dot);
        }
        const float root = rsqrt((float)N_KEY);
        const float d = (v[t * v_stride + v_at + head * n_value + column] - sum16(dot) * root) * b;
        float16 y = 0;
        for (int j = 0; j < VECTORS; j++) {
            s[j] = fma(vload16(j, kt), (float16)(d * root), s[j]);
            y = fma(s[j], vload16(j, qt), y);
        }
        out[(t * n_heads + head) * n_value + column] = sum16(y) / N_KEY;
    }
    for (int j = 0; j < VECTORS; j++) vstore16(s[j], j, state);
}
