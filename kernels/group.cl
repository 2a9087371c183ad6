// A row's work-group of WG items, 1 on CPUs: its item's number, LID, and sums over all of them.

#if WG > 1
// The sum of v over the work-group, for every item.
INLINE float sum_group(float v, local float* partial) {
    const int lid = get_local_id(0);
    partial[lid] = v;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int step = WG / 2; step > 0; step /= 2) {
        if (lid < step) partial[lid] += partial[lid + step];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    const float total = partial[0];
    barrier(CLK_LOCAL_MEM_FENCE);
    return total;
}
#define LID get_local_id(0)
#else
#define sum_group(v, partial) (v)
#define LID 0
#endif
