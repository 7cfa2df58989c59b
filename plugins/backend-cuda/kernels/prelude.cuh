// Comes before every translated kernel: WGSL's vectors, arrays and functions in the words that the writer uses.
typedef unsigned int u32;
typedef int i32;

// Aligned as in WGSL, so that a vector is loaded at once.
template <class T> struct alignas(8) v2 {
    T x, y;
    __device__ T& operator[](u32 i) { return (&x)[i]; }
    __device__ T operator[](u32 i) const { return (&x)[i]; }
};
template <class T> struct alignas(16) v3 {
    T x, y, z;
    __device__ T& operator[](u32 i) { return (&x)[i]; }
    __device__ T operator[](u32 i) const { return (&x)[i]; }
};
template <class T> struct alignas(16) v4 {
    T x, y, z, w;
    __device__ T& operator[](u32 i) { return (&x)[i]; }
    __device__ T operator[](u32 i) const { return (&x)[i]; }
};

#define OPERATOR(o) \
    template <class T> __device__ inline v2<T> operator o(v2<T> a, v2<T> b) { return {T(a.x o b.x), T(a.y o b.y)}; } \
    template <class T> __device__ inline v3<T> operator o(v3<T> a, v3<T> b) { \
        return {T(a.x o b.x), T(a.y o b.y), T(a.z o b.z)}; \
    } \
    template <class T> __device__ inline v4<T> operator o(v4<T> a, v4<T> b) { \
        return {T(a.x o b.x), T(a.y o b.y), T(a.z o b.z), T(a.w o b.w)}; \
    } \
    template <class T> __device__ inline v2<T> operator o(v2<T> a, T b) { return {T(a.x o b), T(a.y o b)}; } \
    template <class T> __device__ inline v4<T> operator o(v4<T> a, T b) { \
        return {T(a.x o b), T(a.y o b), T(a.z o b), T(a.w o b)}; \
    } \
    template <class T> __device__ inline v2<T> operator o(T a, v2<T> b) { return {T(a o b.x), T(a o b.y)}; } \
    template <class T> __device__ inline v4<T> operator o(T a, v4<T> b) { \
        return {T(a o b.x), T(a o b.y), T(a o b.z), T(a o b.w)}; \
    }
OPERATOR(+)
OPERATOR(-)
OPERATOR(*)
OPERATOR(/)
OPERATOR(^)
OPERATOR(|)
OPERATOR(&)

template <class T, u32 N> struct arr {
    T a[N];
    __device__ T& operator[](u32 i) { return a[i]; }
    __device__ const T& operator[](u32 i) const { return a[i]; }
};

#define FUNCTION_1(name, call) \
    __device__ inline float name(float a) { return call(a); } \
    __device__ inline v2<float> name(v2<float> a) { return {call(a.x), call(a.y)}; } \
    __device__ inline v4<float> name(v4<float> a) { return {call(a.x), call(a.y), call(a.z), call(a.w)}; }
FUNCTION_1(exp_, expf)
FUNCTION_1(log_, logf)
FUNCTION_1(sqrt_, sqrtf)
FUNCTION_1(inverse_sqrt_, 1.0f / sqrtf)
FUNCTION_1(tanh_, tanhf)
FUNCTION_1(abs_, fabsf)
FUNCTION_1(round_, rintf)

__device__ inline u32 min_(u32 a, u32 b) { return a < b ? a : b; }
__device__ inline u32 max_(u32 a, u32 b) { return a > b ? a : b; }
__device__ inline i32 min_(i32 a, i32 b) { return a < b ? a : b; }
__device__ inline i32 max_(i32 a, i32 b) { return a > b ? a : b; }
__device__ inline float min_(float a, float b) { return fminf(a, b); }
__device__ inline float max_(float a, float b) { return fmaxf(a, b); }
__device__ inline v4<float> min_(v4<float> a, v4<float> b) {
    return {fminf(a.x, b.x), fminf(a.y, b.y), fminf(a.z, b.z), fminf(a.w, b.w)};
}
__device__ inline v4<float> max_(v4<float> a, v4<float> b) {
    return {fmaxf(a.x, b.x), fmaxf(a.y, b.y), fmaxf(a.z, b.z), fmaxf(a.w, b.w)};
}
template <class T> __device__ inline T clamp_(T x, T low, T high) { return min_(max_(x, low), high); }

__device__ inline float fma_(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline v4<float> fma_(v4<float> a, v4<float> b, v4<float> c) {
    return {fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y), fmaf(a.z, b.z, c.z), fmaf(a.w, b.w, c.w)};
}

// WGSL's bitcast: the target first.
template <class To> __device__ inline To bits_(u32 x);
template <> __device__ inline u32 bits_<u32>(u32 x) { return x; }
template <> __device__ inline i32 bits_<i32>(u32 x) { return i32(x); }
template <> __device__ inline float bits_<float>(u32 x) { return __uint_as_float(x); }
template <class To> __device__ inline To bits_(i32 x) { return bits_<To>(u32(x)); }
template <class To> __device__ inline To bits_(float x) { return bits_<To>(u32(__float_as_uint(x))); }
template <class To, class T> __device__ inline v2<To> bits_(v2<T> a) { return {bits_<To>(a.x), bits_<To>(a.y)}; }
template <class To, class T> __device__ inline v4<To> bits_(v4<T> a) {
    return {bits_<To>(a.x), bits_<To>(a.y), bits_<To>(a.z), bits_<To>(a.w)};
}
