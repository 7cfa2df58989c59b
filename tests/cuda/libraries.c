/* Stand-ins for libcuda, libnvrtc and libcublasLt on a machine without a card, all in one library: the device's memory is
 * the host's, and what is put into the queue is done when somebody waits, so that what reads or writes too early shows.
 *
 * -DFAIL="name" -DCODE=700 -DAFTER=2   this call fails with this code from its third time on; as stand_in_fails says later
 * -DCARDS=2 -DVERSION=12080            cards and the driver's version
 * -DNO_ALGORITHM                       cuBLASLt has nothing for any product
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef FAIL
#define FAIL ""
#endif
#ifndef CODE
#define CODE 1
#endif
#ifndef AFTER
#define AFTER 0
#endif
#ifndef CARDS
#define CARDS 1
#endif
#ifndef VERSION
#define VERSION 13000
#endif

/* What fails, which a test may change, and how often each function was called since then. */
static const char *failing = FAIL;
static int failure = CODE, after = AFTER;
static struct {
    const char *name;
    int calls;
} called[64];

/* The i-th function that was called, or NULL. */
const char *stand_in_called(int i, int *calls) {
    *calls = called[i].calls;
    return called[i].name;
}

static int fails(const char *name) {
    int i = 0;
    while (called[i].name && strcmp(called[i].name, name)) i++;
    called[i].name = name;
    return called[i].calls++ >= after && strcmp(name, failing) == 0;
}
#define CALL(name)                                                                                                    \
    if (fails(#name)) return failure

/* The queue. */
typedef struct Work {
    void (*run)(struct Work *);
    void *to;
    const void *from;
    size_t bytes;
    uint64_t number[4];
    void *object[6];
    float scale[2];
} Work;

static Work queue[1 << 16];
static size_t queued, finished;

/* The device's memory that is not freed yet. */
static void *memories[256];

static void *keep(void *memory) {
    int i = 0;
    while (memories[i]) i++;
    return memories[i] = memory;
}
static void release(void *memory) {
    int i = 0;
    while (memories[i] != memory) i++;
    free(memory);
    memories[i] = NULL;
}

/* A function fails with a code from a call on. Ends what an earlier use has left: work in the queue, and memory. */
void stand_in_fails(const char *name, int with, int from) {
    failing = name, failure = with, after = from;
    memset(called, 0, sizeof called);
    queued = finished = 0;
    for (int i = 0; i < 256; i++) free(memories[i]), memories[i] = NULL;
}

static Work *append(void (*run)(Work *)) {
    if (queued == sizeof queue / sizeof *queue) abort();
    Work *work = &queue[queued++];
    memset(work, 0, sizeof *work);
    work->run = run;
    return work;
}

static void finish(size_t end) {
    while (finished < end) {
        Work *work = &queue[finished++];
        work->run(work);
    }
    if (finished == queued && end == queued) {
        finished = 0, queued = 0;
    }
}

static void copy(Work *work) { memcpy(work->to, work->from, work->bytes); }
static void clear(Work *work) { memset(work->to, (int)work->number[0], work->bytes); }

/* libcuda */
int cuInit(unsigned flags) {
    CALL(cuInit);
    return flags == 0 ? 0 : 1;
}
int cuDriverGetVersion(int *version) {
    CALL(cuDriverGetVersion);
    *version = VERSION;
    return 0;
}
int cuGetErrorName(int code, const char **text) {
    if (code == 998) return 1; /* A code that the driver does not know. */
    *text = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_OTHER";
    return 0;
}
int cuGetErrorString(int code, const char **text) {
    if (code == 998) return 1;
    *text = code == 2 ? "out of memory" : code == 700 ? "an illegal memory access was encountered" : "something else";
    return 0;
}
int cuDeviceGetCount(int *count) {
    CALL(cuDeviceGetCount);
    *count = CARDS;
    return 0;
}
int cuDeviceGet(int *device, int ordinal) {
    CALL(cuDeviceGet);
    *device = ordinal + 10; /* Not the ordinal, so that one is not taken for the other. */
    return 0;
}
int cuDeviceGetName(char *name, int length, int device) {
    CALL(cuDeviceGetName);
    snprintf(name, (size_t)length, "Stand-in %c", 'A' + device - 10);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    CALL(cuDeviceTotalMem_v2);
    *bytes = (size_t)(device - 9) << 30;
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    CALL(cuDeviceGetAttribute);
    *value = attribute == 75 ? 9 : attribute == 76 || attribute == 18 ? 0 : -1;
    return device >= 10 ? 0 : 1;
}
int cuDeviceGetPCIBusId(char *place, int length, int device) {
    CALL(cuDeviceGetPCIBusId);
    snprintf(place, (size_t)length, "0000:0%c:00.0", 'A' + device - 10);
    return 0;
}
static int context, current;
int cuCtxCreate_v2(void **made, unsigned flags, int device) {
    CALL(cuCtxCreate_v2);
    if (flags || device < 10) return 1;
    *made = &context;
    current = 1;
    return 0;
}
int cuCtxDestroy_v2(void *destroyed) { return destroyed == &context ? 0 : 1; }
int cuCtxSetCurrent(void *wanted) {
    CALL(cuCtxSetCurrent);
    return wanted == &context ? 0 : 1;
}
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    CALL(cuMemAlloc_v2);
    void *memory = NULL;
    if (bytes == 0 || posix_memalign(&memory, 256, bytes)) return bytes ? 2 : 1;
    memset(memory, 0xa5, bytes); /* A device does not clear it. */
    *address = (uint64_t)keep(memory);
    return 0;
}
int cuMemFree_v2(uint64_t address) {
    CALL(cuMemFree_v2);
    release((void *)address);
    return 0;
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
    CALL(cuMemsetD8Async);
    Work *work = append(clear);
    work->to = (void *)to, work->bytes = bytes, work->number[0] = value;
    return stream ? 0 : 1;
}
int cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) {
    CALL(cuMemHostAlloc);
    *memory = keep(malloc(bytes));
    return flags == 0 && *memory ? 0 : 1;
}
static int put_copy(void *to, const void *from, size_t bytes, void *stream) {
    if (!stream || !to || !from || bytes == 0) return 1;
    Work *work = append(copy);
    work->to = to, work->from = from, work->bytes = bytes;
    return 0;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    CALL(cuMemcpyHtoDAsync_v2);
    return put_copy((void *)to, from, bytes, stream);
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    CALL(cuMemcpyDtoHAsync_v2);
    return put_copy(to, (void *)from, bytes, stream);
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    CALL(cuMemcpyDtoDAsync_v2);
    return put_copy((void *)to, (void *)from, bytes, stream);
}
int cuStreamCreate(void **stream, unsigned flags) {
    CALL(cuStreamCreate);
    *stream = &queue;
    return flags == 1 ? 0 : 1;
}
int cuStreamSynchronize(void *stream) {
    CALL(cuStreamSynchronize);
    finish(queued);
    return stream == &queue ? 0 : 1;
}
/* An event knows how much of the queue was there; the time is the number of launches before it. */
typedef struct {
    size_t place, launches, rounds;
    unsigned flags;
} Event;
static size_t launches;
int cuEventCreate(void **event, unsigned flags) {
    CALL(cuEventCreate);
    Event *made = calloc(1, sizeof(Event));
    made->flags = flags;
    *event = made;
    return 0;
}
int cuEventRecord(void *event, void *stream) {
    CALL(cuEventRecord);
    ((Event *)event)->place = queued;
    ((Event *)event)->launches = launches;
    return stream == &queue ? 0 : 1;
}
int cuEventSynchronize(void *event) {
    CALL(cuEventSynchronize);
    size_t place = ((Event *)event)->place;
    if (place > queued) return 0; /* The queue was emptied since. */
    finish(place > finished ? place : finished);
    return 0;
}
int cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    CALL(cuEventElapsedTime);
    if (((Event *)start)->flags || ((Event *)end)->flags) return 400;
    *milliseconds = (float)(((Event *)end)->launches - ((Event *)start)->launches);
    return 0;
}

/* The one kernel: `add` adds a number to so many floats. Its code is `CODE <entry> <architecture>`. */
typedef struct {
    char entry[64];
    int shared;
} Kernel;
int cuModuleLoadData(void **module, const void *code) {
    CALL(cuModuleLoadData);
    Kernel *kernel = calloc(1, sizeof(Kernel));
    *module = kernel;
    return sscanf(code, "CODE %63s sm_90", kernel->entry) == 1 ? 0 : 200;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
    CALL(cuModuleGetFunction);
    *function = module;
    return strcmp(((Kernel *)module)->entry, name) == 0 ? 0 : 500;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
    CALL(cuFuncSetAttribute);
    ((Kernel *)function)->shared = value;
    return attribute == 8 && value <= 232448 ? 0 : 1;
}
static void add(Work *work) {
    for (uint64_t i = 0; i < work->number[0]; i++) ((float *)work->to)[i] += work->scale[0];
}
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    CALL(cuLaunchKernel);
    Kernel *kernel = function;
    if (!x || !y || !z || !bx || by != 1 || bz != 1 || extra || stream != &queue) return 1;
    if (shared > 49152 && (int)shared > kernel->shared) return 1;
    launches++;
    Work *work = append(add);
    work->to = *(void **)arguments[0];
    uint32_t *words = arguments[1];
    work->number[0] = words[0];
    memcpy(&work->scale[0], &words[1], 4);
    return 0;
}

/* libnvrtc: texts with `wrong` in them do not compile. */
typedef struct {
    char code[128], log[256];
} Program;
int nvrtcVersion(int *major, int *minor) {
    CALL(nvrtcVersion);
    *major = VERSION / 1000, *minor = 0;
    return 0;
}
const char *nvrtcGetErrorString(int code) { return code == 6 ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR_OTHER"; }
int nvrtcGetNumSupportedArchs(int *count) {
    CALL(nvrtcGetNumSupportedArchs);
    *count = 3;
    return 0;
}
int nvrtcGetSupportedArchs(int *all) {
    CALL(nvrtcGetSupportedArchs);
    all[0] = 75, all[1] = 80, all[2] = 90;
    return 0;
}
int nvrtcCreateProgram(void **program, const char *text, const char *name, int headers, const char *const *h,
                       const char *const *n) {
    CALL(nvrtcCreateProgram);
    if (headers || h || n) return 3;
    Program *made = calloc(1, sizeof(Program));
    snprintf(made->code, sizeof made->code, "CODE %s", name);
    if (strstr(text, "wrong")) snprintf(made->log, sizeof made->log, "%s(2): error: it is wrong\n", name);
    *program = made;
    return 0;
}
int nvrtcCompileProgram(void *program, int count, const char *const *options) {
    CALL(nvrtcCompileProgram);
    Program *made = program;
    const char *architecture = strchr(options[0], '=');
    if (count < 1 || !architecture) return 5;
    snprintf(made->code + strlen(made->code), 32, " %s", architecture + 1);
    return made->log[0] ? 6 : 0;
}
int nvrtcDestroyProgram(void **program) {
    free(*program);
    *program = NULL;
    return 0;
}
int nvrtcGetProgramLogSize(void *program, size_t *bytes) {
    CALL(nvrtcGetProgramLogSize);
    *bytes = strlen(((Program *)program)->log) + 1;
    return 0;
}
int nvrtcGetProgramLog(void *program, char *log) {
    CALL(nvrtcGetProgramLog);
    strcpy(log, ((Program *)program)->log);
    return 0;
}
int nvrtcGetCUBINSize(void *program, size_t *bytes) {
    CALL(nvrtcGetCUBINSize);
    *bytes = strlen(((Program *)program)->code) + 1;
    return 0;
}
int nvrtcGetCUBIN(void *program, char *code) {
    CALL(nvrtcGetCUBIN);
    strcpy(code, ((Program *)program)->code);
    return 0;
}

/* libcublasLt: matrices column by column, as its manual says. */
typedef struct {
    int compute, scale, transposed[2], epilogue;
    const void *bias;
} Operation;
typedef struct {
    int type;
    uint64_t rows, columns;
    int64_t stride;
} Layout;
size_t cublasLtGetVersion(void) { return 130002; }
const char *cublasLtGetStatusString(int code) { return code == 15 ? "not supported" : "some status"; }
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
    Operation *made = calloc(1, sizeof(Operation));
    made->compute = compute, made->scale = scale, made->epilogue = 1;
    *operation = made;
    return compute == 68 && scale == 0 ? 0 : 7;
}
int cublasLtMatmulDescDestroy(void *operation) {
    free(operation);
    return 0;
}
int cublasLtMatmulDescSetAttribute(void *operation, int attribute, const void *value, size_t bytes) {
    CALL(cublasLtMatmulDescSetAttribute);
    Operation *made = operation;
    if (attribute == 8) {
        if (bytes != 8) return 7;
        memcpy(&made->bias, value, 8);
        return 0;
    }
    int *field = attribute == 3 ? &made->transposed[0] : attribute == 4 ? &made->transposed[1] : &made->epilogue;
    if (bytes != 4 || (attribute != 3 && attribute != 4 && attribute != 7)) return 7;
    memcpy(field, value, 4);
    return 0;
}
int cublasLtMatrixLayoutCreate(void **layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    CALL(cublasLtMatrixLayoutCreate);
    Layout *made = malloc(sizeof(Layout));
    *made = (Layout){type, rows, columns, stride};
    *layout = made;
    return stride >= (int64_t)rows ? 0 : 7;
}
int cublasLtMatrixLayoutDestroy(void *layout) {
    free(layout);
    return 0;
}
typedef struct {
    uint64_t workspace;
    uint32_t reduction, alignment[4];
} Preference;
int cublasLtMatmulPreferenceCreate(void **preference) {
    CALL(cublasLtMatmulPreferenceCreate);
    *preference = calloc(1, sizeof(Preference));
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
    if (!field || bytes != (attribute == 1 ? 8 : 4)) return 7;
    memcpy(field, value, bytes);
    return 0;
}
typedef struct {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
} Heuristic;
static int fits(const Operation *operation, const Layout *a, const Layout *b, const Layout *d) {
    uint64_t m = operation->transposed[0] ? a->columns : a->rows, k = operation->transposed[0] ? a->rows : a->columns;
    uint64_t k2 = operation->transposed[1] ? b->columns : b->rows, n = operation->transposed[1] ? b->rows : b->columns;
    int types = a->type == b->type && (d->type == 0 || d->type == a->type);
    return m == d->rows && n == d->columns && k == k2 && types;
}
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference,
                                   int most, Heuristic *found, int *count) {
    CALL(cublasLtMatmulAlgoGetHeuristic);
    Preference *wanted = preference;
    if (!handle || c != d || most != 1 || !fits(operation, a, b, d)) return 7;
    if (wanted->workspace != 32 << 20 || wanted->reduction != 2) return 7;
    for (int i = 0; i < 4; i++)
        if (wanted->alignment[i] != 16) return 7;
#ifdef NO_ALGORITHM
    *count = 0;
    return 15;
#else
    memset(found, 0, sizeof *found);
    found->algorithm[7] = 4711;
    *count = 1;
    return 0;
#endif
}
static double element(const Layout *layout, const void *data, uint64_t row, uint64_t column) {
    uint64_t i = column * (uint64_t)layout->stride + row;
    if (layout->type == 0) return ((const float *)data)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16; /* bf16 */
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static void multiply(Work *work) {
    Operation *operation = work->object[0];
    Layout *a = work->object[1], *b = work->object[2], *d = work->object[3];
    const void *c = work->object[5];
    uint64_t k = operation->transposed[0] ? a->rows : a->columns;
    for (uint64_t j = 0; j < d->columns; j++)
        for (uint64_t i = 0; i < d->rows; i++) {
            double sum = 0;
            for (uint64_t l = 0; l < k; l++)
                sum += (operation->transposed[0] ? element(a, work->from, l, i) : element(a, work->from, i, l)) *
                       (operation->transposed[1] ? element(b, work->object[4], j, l) : element(b, work->object[4], l, j));
            sum *= work->scale[0];
            if (work->scale[1] != 0) sum += work->scale[1] * element(d, c, i, j);
            if (operation->epilogue == 4) sum += element(d, (void *)work->number[0], i, 0);
            float value = (float)sum;
            uint32_t bits;
            memcpy(&bits, &value, 4);
            uint64_t place = j * (uint64_t)d->stride + i;
            /* Tests of 16-bit results have values that need no rounding. */
            if (d->type == 0) ((float *)work->to)[place] = value;
            else ((uint16_t *)work->to)[place] = (uint16_t)(bits >> 16);
        }
}
int cublasLtMatmul(void *handle, void *operation, const float *alpha, const void *a, void *a_layout, const void *b,
                   void *b_layout, const float *beta, const void *c, void *c_layout, void *d, void *d_layout,
                   const uint64_t *algorithm, void *workspace, size_t bytes, void *stream) {
    CALL(cublasLtMatmul);
    if (!handle || c_layout != d_layout || algorithm[7] != 4711 || !workspace || bytes != 32 << 20) return 7;
    if (stream != &queue) return 7;
    Work *work = append(multiply);
    work->to = d, work->from = a;
    work->object[0] = operation, work->object[1] = a_layout, work->object[2] = b_layout, work->object[3] = d_layout;
    work->object[4] = (void *)b, work->object[5] = (void *)c;
    work->scale[0] = *alpha, work->scale[1] = *beta;
    work->number[0] = (uint64_t)((Operation *)operation)->bias;
    return 0;
}
