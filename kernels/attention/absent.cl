// Inside a kernel that calls what rotate.cl has: what stands for parameters that it does not have.

#ifndef CLAMP
const float clamp_to = 0;
#endif
#ifndef QK_NORM
const float eps = 0;
#endif
#ifndef Q_WEIGHT
global const float* q_weight = 0;
#endif
#ifndef K_WEIGHT
global const float* k_weight = 0;
#endif
#ifndef BIASED
global const float *q_bias = 0, *k_bias = 0;
#endif
#ifdef NO_ROPE
global const float* table = 0;
#endif
