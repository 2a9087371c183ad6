// The KV cache's layout: pages of PAGE tokens, for each page each KV head.
//
// K: [page][kv head][HD][PAGE], tokens side by side, so that scores of PAGE keys are sums of
//    vectors. V: [page][kv head][PAGE][HDV padded to 16], values side by side.
// K_F16, V_F16: stored as half, else float.

#define HDV_PADDED ((HDV + 15) / 16 * 16)
#ifdef K_F16
typedef half k_t;
#define LOAD_K16(p) vload_half16(0, p)
#define LOAD_K(p) vload_half(0, p)
#define STORE_K(v, p) vstore_half(v, 0, p)
#else
typedef float k_t;
#define LOAD_K16(p) vload16(0, p)
#define LOAD_K(p) (*(p))
#define STORE_K(v, p) (*(p) = (v))
#endif
#ifdef V_F16
typedef half v_t;
#define LOAD_V16(p) vload_half16(0, p)
#define LOAD_V(p) vload_half(0, p)
#define STORE_V(v, p) vstore_half(v, 0, p)
#else
typedef float v_t;
#define LOAD_V16(p) vload16(0, p)
#define LOAD_V(p) (*(p))
#define STORE_V(v, p) (*(p) = (v))
#endif

#define K_PAGE(k, page, n_kv, h) ((k) + ((size_t)(page) * (n_kv) + (h)) * HD * PAGE)
#define V_PAGE(v, page, n_kv, h) ((v) + ((size_t)(page) * (n_kv) + (h)) * PAGE * HDV_PADDED)
