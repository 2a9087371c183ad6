// Mixture of experts: which experts a token goes to, tiles of tokens per expert, the sum.
//
// N_EXPERTS experts of which USED are chosen; a token t and its k-th expert are slot t * USED + k.
//
// route: work-item (token).
//   GATE_SOFTMAX, GATE_SIGMOID, GATE_SQRT_SOFTPLUS   what the router's logits become
//   BIASED         bias[e] is added for the choice only
//   N_GROUPS       the experts are in groups, and only USED_GROUPS of those with the largest
//                  sums of their two best take part
//   NORMALIZE      the weights of a token's experts are divided by their sum
//   SOFTMAX_CHOSEN the weights are the softmax of the chosen experts' logits
//   TABLE          the experts of token id are table[id * USED ...], whatever the logits
//   DIVIDE         so many neighbours are one expert, though they are chosen one by one
//   SINGLE         one token: its slots are the tiles
// sort: one work-group of WG items makes tiles of up to TILE slots of one expert each.
// combine: work-item (16 columns, token) adds up what the experts of a token yield.

#include "lanes.cl"
#include "activation.cl"

#ifndef DIVIDE
#define DIVIDE 1
#endif
#define NOT_CHOSEN -INFINITY

#ifdef N_EXPERTS
#ifdef N_GROUPS
#define GROUP_SIZE (N_EXPERTS / N_GROUPS)

// Takes the experts of all groups but the best out of the choice.
INLINE void limit_groups(float* choice) {
    float sums[N_GROUPS];
    for (int g = 0; g < N_GROUPS; g++) {
        float first = NOT_CHOSEN, second = NOT_CHOSEN;
        for (int i = 0; i < GROUP_SIZE; i++) {
            const float v = choice[g * GROUP_SIZE + i];
            second = fmax(second, fmin(first, v));
            first = fmax(first, v);
        }
        sums[g] = first + second;
    }
    for (int k = USED_GROUPS; k < N_GROUPS; k++) {
        int worst = -1;
        for (int g = 0; g < N_GROUPS; g++)
            if (sums[g] < INFINITY && (worst < 0 || sums[g] <= sums[worst])) worst = g;
        sums[worst] = INFINITY;
        for (int i = 0; i < GROUP_SIZE; i++) choice[worst * GROUP_SIZE + i] = NOT_CHOSEN;
    }
}
#endif

// Logits of a choice between two experts: the first for tokens, the second for what an encoder
// gives, which has negative ids. The header of embed.cl says more of those.
kernel void kinds(global const int* ids, global float* logits) {
    const int t = get_global_id(0);
    logits[2 * t] = ids[t] >= 0;
    logits[2 * t + 1] = ids[t] < 0;
}

kernel void route(global const float* logits,
#ifdef BIASED
                  global const float* bias,
#endif
#ifdef TABLE
                  global const int* table, global const int* ids,
#endif
                  float scale, global int* experts, global float* weights
#ifdef SINGLE
                  , global int4* tiles, global int* rows, global int* slots
#endif
) {
    const int t = get_global_id(0);
    float p[N_EXPERTS], choice[N_EXPERTS];
    float top = -INFINITY, sum = 0;
    for (int e = 0; e < N_EXPERTS; e++) {
        p[e] = logits[(size_t)t * N_EXPERTS + e];
        top = fmax(top, p[e]);
    }
#ifdef GATE_SOFTMAX
    for (int e = 0; e < N_EXPERTS; e++) sum += p[e] = exp(p[e] - top);
    for (int e = 0; e < N_EXPERTS; e++) p[e] /= sum;
#elif defined(GATE_SIGMOID)
    for (int e = 0; e < N_EXPERTS; e++) p[e] = SIGMOID(p[e]);
#elif defined(GATE_SQRT_SOFTPLUS)
    for (int e = 0; e < N_EXPERTS; e++) p[e] = sqrt(SOFTPLUS(p[e]));
#endif
    for (int e = 0; e < N_EXPERTS; e++) {
#ifdef BIASED
        choice[e] = p[e] + bias[e];
#else
        choice[e] = p[e];
#endif
    }
#ifdef N_GROUPS
    limit_groups(choice);
#endif
    float chosen[USED];
    sum = 0;
    for (int k = 0; k < USED; k++) {
#ifdef TABLE
        const int best = table[max(ids[t], 0) * USED + k];
#else
        int best = 0;
        for (int e = 1; e < N_EXPERTS; e++)
            if (choice[e] > choice[best]) best = e;
        choice[best] = NOT_CHOSEN;
#endif
        experts[t * USED + k] = best / DIVIDE;
#ifdef SOFTMAX_CHOSEN
        chosen[k] = exp(p[best] - top);
#else
        chosen[k] = p[best];
#endif
        sum += chosen[k];
#ifdef SINGLE
        tiles[k] = (int4)(best / DIVIDE, k, 1, 0);
        rows[k] = t;
        slots[k] = k;
#endif
    }
#if defined(SOFTMAX_CHOSEN)
    scale /= sum;
#elif defined(NORMALIZE)
    scale /= fmax(sum, 6.103515625e-5f);  // the least half, as llama.cpp bounds it
#endif
    for (int k = 0; k < USED; k++) weights[t * USED + k] = chosen[k] * scale;
}

#ifdef WG
kernel void sort(global const int* counts, int count_at, global const int* experts,
                 global int4* tiles, int max_tiles, global int* rows, global int* slots) {
    local int count[N_EXPERTS], next[N_EXPERTS], first_tile[N_EXPERTS + 1];
    const int lid = get_local_id(0), n = counts[count_at] * USED;
    for (int e = lid; e < N_EXPERTS; e += WG) count[e] = 0;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int i = lid; i < n; i += WG) atomic_inc(count + experts[i]);
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lid == 0) {
        int at = 0, tile = 0;
        for (int e = 0; e < N_EXPERTS; e++) {
            next[e] = at;
            first_tile[e] = tile;
            at += count[e];
            tile += (count[e] + TILE - 1) / TILE;
        }
        first_tile[N_EXPERTS] = tile;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int e = lid; e < N_EXPERTS; e += WG)
        for (int i = 0; i * TILE < count[e]; i++)
            tiles[first_tile[e] + i] =
                (int4)(e, next[e] + i * TILE, min(TILE, count[e] - i * TILE), 0);
    for (int i = first_tile[N_EXPERTS] + lid; i < max_tiles; i += WG) tiles[i] = (int4)(0);
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int i = lid; i < n; i += WG) {
        const int at = atomic_inc(next + experts[i]);
        rows[at] = i / USED;
        slots[at] = i;
    }
}
#endif
#endif

// out[t] (+)= scale * (sum_k weights[slot] y[slot] (+ extra[t] (* sigmoid(gate[t])))).
// y is [slots][n_cols]; without WEIGHTS every slot counts as it is. EXTRA, GATED, ADD as above.
kernel void combine(global const float* y,
#ifdef WEIGHTS
                    global const float* weights,
#endif
#ifdef EXTRA
                    global const float* extra,
#endif
#ifdef GATED
                    global const float* gate,
#endif
                    int used, int n_cols, float scale, global float* out) {
    const int i = get_global_id(0) * 16, t = get_global_id(1);
    const int n = min(16, n_cols - i);
    for (int j = 0; j < n; j++) {
        float sum = 0;
        for (int k = 0; k < used; k++) {
            const size_t slot = (size_t)t * used + k;
#ifdef WEIGHTS
            sum = fma(weights[slot], y[slot * n_cols + i + j], sum);
#else
            sum += y[slot * n_cols + i + j];
#endif
        }
#ifdef GATED
        sum = fma(extra[(size_t)t * n_cols + i + j], SIGMOID(gate[t]), sum);
#elif defined(EXTRA)
        sum += extra[(size_t)t * n_cols + i + j];
#endif
        sum *= scale;
#ifdef ADD
        sum += out[(size_t)t * n_cols + i + j];
#endif
        out[(size_t)t * n_cols + i + j] = sum;
    }
}
