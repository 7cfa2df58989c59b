/* The part of `libraries.c` that stands in for libcublasLt. Matrices lie column by column, as its manual says; what the
 * manual asks of types, strides, addresses and attributes is checked, and a violation is reported on stderr. 16-bit
 * factors, and f32 ones as TF32, are summed as tensor cores sum them, and a 16-bit result is rounded before a bias is added
 * to it, as the library seems to do for some shapes.
 *
 * -DNO_ALGORITHM   it has nothing for any product
 * -DREFUSED=2      the first two algorithms for a product are refused when it is to run
 */
#include <math.h>

#ifndef REFUSED
#define REFUSED 0
#endif

enum { R_32F = 0, R_16F = 2, R_16BF = 14, COMPUTE_32F = 68, COMPUTE_TF32 = 77, EPILOGUE_BIAS = 4 };
enum { INVALID = 7, NOT_SUPPORTED = 15 };
#define WORKSPACE ((size_t)32 << 20)
#define ALGORITHMS 3
#define ALGORITHM 4711
#define WANTED(condition)                                                                                             \
    if (!(condition)) {                                                                                                \
        fprintf(stderr, "cuBLASLt stand-in, %s: not %s\n", __func__, #condition);                                     \
        return INVALID;                                                                                                \
    }

typedef struct {
    int compute, scale, transposed[2], epilogue;
    const void *bias;
} Operation;
typedef struct {
    int type;
    uint64_t rows, columns;
    int64_t stride;
} Layout;
typedef struct {
    uint64_t workspace;
    uint32_t reduction, alignment[4];
} Preference;
typedef struct {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
} Heuristic;

size_t cublasLtGetVersion(void) { return 130002; }
const char *cublasLtGetStatusString(int code) { return code == NOT_SUPPORTED ? "not supported" : "some status"; }
int cublasLtCreate(void **handle) {
    CALL(cublasLtCreate);
    *handle = malloc(1);
    return 0;
}
int cublasLtDestroy(void *handle) {
    free(handle);
    return 0;
}
int cublasLtMatmulDescCreate(void **operation, int compute, int scale) {
    CALL(cublasLtMatmulDescCreate);
    WANTED((compute == COMPUTE_32F || compute == COMPUTE_TF32) && scale == R_32F);
    Operation *made = calloc(1, sizeof(Operation));
    made->compute = compute, made->scale = scale, made->epilogue = 1;
    *operation = made;
    return 0;
}
int cublasLtMatmulDescDestroy(void *operation) {
    free(operation);
    return 0;
}
int cublasLtMatmulDescSetAttribute(void *operation, int attribute, const void *value, size_t bytes) {
    CALL(cublasLtMatmulDescSetAttribute);
    Operation *made = operation;
    if (attribute == 8) {
        WANTED(bytes == 8);
        memcpy(&made->bias, value, 8);
        return 0;
    }
    WANTED(bytes == 4 && (attribute == 3 || attribute == 4 || attribute == 7));
    int *field = attribute == 3 ? &made->transposed[0] : attribute == 4 ? &made->transposed[1] : &made->epilogue;
    memcpy(field, value, 4);
    return 0;
}
int cublasLtMatrixLayoutCreate(void **layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    CALL(cublasLtMatrixLayoutCreate);
    WANTED(type == R_32F || type == R_16F || type == R_16BF);
    WANTED(rows > 0 && columns > 0 && stride >= (int64_t)rows);
    Layout *made = malloc(sizeof(Layout));
    *made = (Layout){type, rows, columns, stride};
    *layout = made;
    return 0;
}
int cublasLtMatrixLayoutDestroy(void *layout) {
    free(layout);
    return 0;
}
int cublasLtMatmulPreferenceCreate(void **preference) {
    CALL(cublasLtMatmulPreferenceCreate);
    Preference *made = calloc(1, sizeof(Preference));
    made->reduction = 7; /* The manual's defaults. */
    for (int i = 0; i < 4; i++) made->alignment[i] = 256;
    *preference = made;
    return 0;
}
int cublasLtMatmulPreferenceDestroy(void *preference) {
    free(preference);
    return 0;
}
int cublasLtMatmulPreferenceSetAttribute(void *preference, int attribute, const void *value, size_t bytes) {
    CALL(cublasLtMatmulPreferenceSetAttribute);
    Preference *made = preference;
    void *field = attribute == 1   ? (void *)&made->workspace
                  : attribute == 3 ? (void *)&made->reduction
                  : attribute >= 5 && attribute <= 8 ? (void *)&made->alignment[attribute - 5]
                                                     : NULL;
    WANTED(field && bytes == (attribute == 1 ? 8 : 4));
    memcpy(field, value, bytes);
    return 0;
}

/* The table of types: both factors alike; the result and C of their type, or f32; TF32 for f32 alone. */
static int fits(const Operation *operation, const Layout *a, const Layout *b, const Layout *d) {
    uint64_t m = operation->transposed[0] ? a->columns : a->rows, k = operation->transposed[0] ? a->rows : a->columns;
    uint64_t k2 = operation->transposed[1] ? b->columns : b->rows, n = operation->transposed[1] ? b->rows : b->columns;
    WANTED(m == d->rows && n == d->columns && k == k2);
    WANTED(a->type == b->type && (d->type == R_32F || d->type == a->type));
    WANTED(operation->compute == COMPUTE_32F || a->type == R_32F);
    WANTED(operation->epilogue == 1 || operation->epilogue == EPILOGUE_BIAS);
    return 0;
}
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference,
                                   int most, Heuristic *found, int *count) {
    CALL(cublasLtMatmulAlgoGetHeuristic);
    Preference *wanted = preference;
    WANTED(handle && c == d && most > 0);
    if (fits(operation, a, b, d)) return INVALID;
    WANTED(wanted->workspace == WORKSPACE && wanted->reduction == 2);
    for (int i = 0; i < 4; i++) WANTED(wanted->alignment[i] == 16);
#ifdef NO_ALGORITHM
    *count = 0;
    return NOT_SUPPORTED;
#else
    *count = most < ALGORITHMS ? most : ALGORITHMS;
    for (int i = 0; i < *count; i++) {
        memset(&found[i], 0, sizeof *found);
        found[i].algorithm[7] = ALGORITHM + (uint64_t)i;
    }
    return 0;
#endif
}

static float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
static size_t size_of(const Layout *layout) { return layout->type == R_32F ? 4 : 2; }
static double element(const Layout *layout, const void *data, uint64_t row, uint64_t column) {
    uint64_t i = column * (uint64_t)layout->stride + row;
    if (layout->type == R_32F) return ((const float *)data)[i];
    uint16_t bits = ((const uint16_t *)data)[i];
    if (layout->type == R_16BF) return as_float((uint32_t)bits << 16);
    double sign = bits >> 15 ? -1 : 1, mantissa = bits & 1023;
    int exponent = bits >> 10 & 31;
    if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
    return sign * (exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24));
}
static void put(const Layout *layout, void *data, uint64_t row, uint64_t column, float value) {
    uint64_t i = column * (uint64_t)layout->stride + row;
    if (layout->type == R_32F) {
        ((float *)data)[i] = value;
    } else if (layout->type == R_16BF) {
        uint32_t bits = as_bits(value);
        ((uint16_t *)data)[i] = value != value ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    } else {
        double size = fabs((double)value), unit = ldexp(1, size < ldexp(1, -14) ? -24 : ilogb(size) - 10);
        double rounded = nearbyint(size / unit) * unit;
        int exponent = rounded < ldexp(1, -14) ? 0 : ilogb(rounded) + 15;
        uint16_t half = value != value           ? 0x7e00
                        : rounded >= 65536       ? 0x7c00
                        : exponent == 0          ? (uint16_t)(rounded * ldexp(1, 24))
                                                 : (uint16_t)(exponent << 10 | ((int)ldexp(rounded, 25 - exponent) & 1023));
        ((uint16_t *)data)[i] = (uint16_t)(half | (as_bits(value) >> 31) << 15);
    }
}

/* 16 addends and the sum so far are cut off two bits below f32's last, as seen from the largest of them, and their sum is
 * cut off to f32, as was found on an H100. */
static double tensor_core_sum(double sum, const double *addends, int count) {
    double largest = fabs(sum), exact = 0, plain = sum;
    for (int i = 0; i < count; i++) largest = fmax(largest, fabs(addends[i])), plain += addends[i];
    if (largest == 0 || !isfinite(plain)) return plain;
    double unit = ldexp(1, ilogb(largest) - 25);
    for (int i = 0; i < count; i++) exact += trunc(addends[i] / unit) * unit;
    exact += trunc(sum / unit) * unit;
    float near = (float)exact;
    return fabs((double)near) > fabs(exact) ? as_float(as_bits(near) - 1) : near;
}
static double dot(const Work *work, uint64_t i, uint64_t j) {
    const Operation *operation = work->object[0];
    const Layout *a = work->object[1], *b = work->object[2];
    uint64_t k = operation->transposed[0] ? a->rows : a->columns;
    int tf32 = operation->compute == COMPUTE_TF32;
    double sum = 0, addends[16];
    for (uint64_t l = 0; l < k; l++) {
        double x = operation->transposed[0] ? element(a, work->from, l, i) : element(a, work->from, i, l);
        double y = operation->transposed[1] ? element(b, work->object[4], j, l) : element(b, work->object[4], l, j);
        if (tf32) x = as_float(as_bits((float)x) & ~8191u), y = as_float(as_bits((float)y) & ~8191u);
        if (a->type == R_32F && !tf32) {
            sum += x * y;
            continue;
        }
        addends[l % 16] = x * y;
        if (l % 16 == 15 || l + 1 == k) sum = tensor_core_sum(sum, addends, (int)(l % 16) + 1);
    }
    return sum;
}
static void multiply(Work *work) {
    const Operation *operation = work->object[0];
    const Layout *d = work->object[3];
    for (uint64_t j = 0; j < d->columns; j++)
        for (uint64_t i = 0; i < d->rows; i++) {
            double sum = work->scale[0] * dot(work, i, j);
            if (work->scale[1] != 0) sum += work->scale[1] * element(d, work->object[5], i, j);
            Layout bias = {d->type, d->rows, 1, (int64_t)d->rows};
            put(d, work->to, i, j, (float)sum);
            if (operation->epilogue != EPILOGUE_BIAS) continue;
            if (d->type != R_32F) sum = element(d, work->to, i, j);
            put(d, work->to, i, j, (float)(sum + element(&bias, (void *)work->number[0], i, 0)));
        }
}
/* Whether a matrix lies within one allocation, at an address that algorithms may rely on. */
static int lies(const Layout *layout, const void *data) {
    size_t elements = (layout->columns - 1) * (uint64_t)layout->stride + layout->rows;
    return (uint64_t)data % 16 == 0 && is_allocated(data, elements * size_of(layout));
}
int cublasLtMatmul(void *handle, void *operation, const float *alpha, const void *a, void *a_layout, const void *b,
                   void *b_layout, const float *beta, const void *c, void *c_layout, void *d, void *d_layout,
                   const uint64_t *algorithm, void *workspace, size_t bytes, void *stream) {
    CALL(cublasLtMatmul);
    const Operation *made = operation;
    WANTED(handle && stream == &queue && c_layout == d_layout);
    WANTED(algorithm[7] >= ALGORITHM && algorithm[7] < ALGORITHM + ALGORITHMS);
    WANTED(bytes == WORKSPACE && (uint64_t)workspace % 256 == 0 && is_allocated(workspace, bytes));
    if (fits(made, a_layout, b_layout, d_layout)) return INVALID;
    if (algorithm[7] < ALGORITHM + REFUSED) return NOT_SUPPORTED;
    WANTED(lies(a_layout, a) && lies(b_layout, b) && lies(d_layout, d));
    WANTED(*beta == 0 || lies(c_layout, c));
    WANTED(a != d && b != d);
    const Layout *result = d_layout;
    Layout bias = {result->type, result->rows, 1, (int64_t)result->rows};
    WANTED(made->epilogue != EPILOGUE_BIAS || lies(&bias, made->bias));
    Work *work = append(multiply);
    work->to = d, work->from = a;
    work->object[0] = operation, work->object[1] = a_layout, work->object[2] = b_layout, work->object[3] = d_layout;
    work->object[4] = (void *)b, work->object[5] = (void *)c;
    work->scale[0] = *alpha, work->scale[1] = *beta;
    work->number[0] = (uint64_t)made->bias;
    return 0;
}
