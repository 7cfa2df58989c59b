/* Stand-ins for libcuda, libnvrtc and libcublasLt on a machine without a card, all in one library: the device's memory is
 * the host's, and what is put into the queue is done when somebody waits, so that what reads or writes too early shows.
 *
 * -DFAIL="name" -DCODE=700 -DAFTER=2   this call fails with this code from its third time on; as stand_in_fails says later
 * -DCARDS=2 -DVERSION=12080            cards and the driver's version
 * -DCAPABILITY=6                       the cards' compute capability is 6.0
 * -DUSED=1024                          bytes that others use of every card
 * -DSHIM="path"                        NVRTC compiles with g++ on top of `shim.h`, and launches run the kernels; without
 *                                      it, `add` is the only kernel
 *
 * `cublaslt.c` has the definitions of its own.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

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
#ifndef CAPABILITY
#define CAPABILITY 9
#endif
#ifndef USED
#define USED 0
#endif

/* What fails, which a test may change, and how often each function was called since then. */
static const char *failing = FAIL;
static int failure = CODE, after = AFTER;
static struct {
    const char *name;
    int calls;
} called[80];

/* The i-th function that was called, or NULL. */
const char *stand_in_called(int i, int *calls) {
    *calls = called[i].calls;
    return called[i].name;
}

static int fails(const char *name) {
    /* NVRTC is called by several threads. */
    static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&one);
    int i = 0;
    while (called[i].name && strcmp(called[i].name, name)) i++;
    called[i].name = name;
    int now = called[i].calls++ >= after && strcmp(name, failing) == 0;
    pthread_mutex_unlock(&one);
    return now;
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
typedef struct {
    Work *all;
    size_t count, room;
} Works;

static Work queue[1 << 16];
static size_t queued, finished;

/* What is put into the queue while it is captured; NULL otherwise. What ends or spoils a capture leaves it NULL. */
static Works *captured;
enum { NOT_IN_CAPTURE = 900 };

/* The device's memory that is not freed yet. */
static struct {
    char *start;
    size_t bytes;
} memories[4096];
#define MEMORIES (sizeof memories / sizeof *memories)

static void *keep(void *memory, size_t bytes) {
    size_t i = 0;
    while (i < MEMORIES && memories[i].start) i++;
    if (i == MEMORIES) abort();
    memories[i].bytes = bytes;
    return memories[i].start = memory;
}
static void release(void *memory) {
    size_t i = 0;
    while (i < MEMORIES && memories[i].start != memory) i++;
    if (i == MEMORIES) abort();
    free(memory);
    memories[i].start = NULL;
}
static int is_allocated(const void *from, size_t bytes) {
    const char *start = from;
    for (size_t i = 0; i < MEMORIES; i++)
        if (memories[i].start && start >= memories[i].start && start + bytes <= memories[i].start + memories[i].bytes)
            return 1;
    return 0;
}

/* A function fails with a code from a call on. Ends what an earlier use has left: work in the queue, and memory. */
void stand_in_fails(const char *name, int with, int from) {
    failing = name, failure = with, after = from;
    memset(called, 0, sizeof called);
    queued = finished = 0;
    captured = NULL;
    for (size_t i = 0; i < MEMORIES; i++) free(memories[i].start), memories[i].start = NULL;
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

static Work *append(void (*run)(Work *)) {
    Work *work;
    if (captured) {
        if (captured->count == captured->room) {
            captured->room = 2 * captured->room + 16;
            captured->all = realloc(captured->all, captured->room * sizeof(Work));
        }
        work = &captured->all[captured->count++];
    } else {
        if (queued == sizeof queue / sizeof *queue) finish(queued);
        work = &queue[queued++];
    }
    memset(work, 0, sizeof *work);
    work->run = run;
    return work;
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
    *value = attribute == 75 ? CAPABILITY : attribute == 76 || attribute == 18 ? 0 : -1;
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
    current = device;
    return 0;
}
int cuCtxDestroy_v2(void *destroyed) { return destroyed == &context ? 0 : 1; }
int cuCtxSetCurrent(void *wanted) {
    CALL(cuCtxSetCurrent);
    return wanted == &context ? 0 : 1;
}
int cuMemGetInfo_v2(size_t *unused, size_t *all) {
    CALL(cuMemGetInfo_v2);
    *all = (size_t)(current - 9) << 30;
    *unused = *all - (size_t)USED;
    return 0;
}
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    CALL(cuMemAlloc_v2);
    if (captured) return NOT_IN_CAPTURE;
    void *memory = NULL;
    if (bytes == 0 || posix_memalign(&memory, 256, bytes)) return bytes ? 2 : 1;
    memset(memory, 0xa5, bytes); /* A device does not clear it. */
    *address = (uint64_t)keep(memory, bytes);
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
    *memory = keep(malloc(bytes), bytes);
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
    if (captured) {
        captured = NULL;
        return NOT_IN_CAPTURE;
    }
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
int cuEventDestroy_v2(void *event) {
    CALL(cuEventDestroy_v2);
    free(event);
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

/* Captures, and graphs of what was captured. */
int cuStreamBeginCapture_v2(void *stream, int mode) {
    CALL(cuStreamBeginCapture_v2);
    if (captured || mode != 1 || stream != &queue) return 1;
    captured = calloc(1, sizeof(Works));
    return 0;
}
int cuStreamEndCapture(void *stream, void **graph) {
    CALL(cuStreamEndCapture);
    *graph = captured;
    captured = NULL;
    return *graph && stream == &queue ? 0 : 901;
}
int cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) {
    CALL(cuGraphInstantiateWithFlags);
    Works *from = graph, *copy = malloc(sizeof(Works));
    *copy = (Works){malloc(from->count * sizeof(Work) + 1), from->count, from->count};
    memcpy(copy->all, from->all, from->count * sizeof(Work));
    *made = copy;
    return flags ? 1 : 0;
}
int cuGraphDestroy(void *graph) {
    CALL(cuGraphDestroy);
    free(((Works *)graph)->all);
    free(graph);
    return 0;
}
int cuGraphExecDestroy(void *made) {
    CALL(cuGraphExecDestroy);
    free(((Works *)made)->all);
    free(made);
    return 0;
}
static void replay(Work *work) {
    Works *works = work->object[0];
    for (size_t i = 0; i < works->count; i++) works->all[i].run(&works->all[i]);
}
int cuGraphLaunch(void *made, void *stream) {
    CALL(cuGraphLaunch);
    if (captured || stream != &queue) return 1;
    append(replay)->object[0] = made;
    return 0;
}

/* Kernels. Their code is an image, which NVRTC's stand-in has made. `add` adds a number to so many floats. */
typedef struct {
    char magic[8], entry[64], architecture[16];
    uint64_t bytes;
} Image;
typedef struct {
    char entry[64];
    int shared;
    const char *(*emulate)(const unsigned *, const unsigned *, int, void **);
    const size_t *sizes;
    size_t arguments;
} Kernel;
#ifdef SHIM
static int open_kernel(Kernel *kernel, const Image *image) {
    /* It stays open: the loader takes equal names for equal libraries. */
    int file = memfd_create("kernel", 0);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    if (file < 0 || write(file, image + 1, image->bytes) != (ssize_t)image->bytes) return 1;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    size_t (*sizes)(const size_t **) = library ? (size_t(*)(const size_t **))dlsym(library, "argument_sizes") : NULL;
    if (!sizes) return 1;
    kernel->arguments = sizes(&kernel->sizes);
    kernel->emulate = (const char *(*)(const unsigned *, const unsigned *, int, void **))dlsym(library, "emulate");
    return kernel->emulate ? 0 : 1;
}
#endif
int cuModuleLoadData(void **module, const void *code) {
    CALL(cuModuleLoadData);
    const Image *image = code;
    Kernel *kernel = calloc(1, sizeof(Kernel));
    *module = kernel;
    if (strcmp(image->magic, "KERNEL") || strcmp(image->architecture, "sm_90")) return 200;
    memcpy(kernel->entry, image->entry, sizeof kernel->entry);
#ifdef SHIM
    if (open_kernel(kernel, image)) return 200;
#endif
    return 0;
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
/* Every argument in the work's memory, each at 16 bytes. */
static void emulate(Work *work) {
    Kernel *kernel = work->object[0];
    void *arguments[64];
    char *at = work->object[1];
    for (size_t i = 0; i < kernel->arguments; i++) arguments[i] = at, at += (kernel->sizes[i] + 15) / 16 * 16;
    unsigned grid[3] = {(unsigned)work->number[0], (unsigned)work->number[1], (unsigned)work->number[2]};
    unsigned threads[2] = {(unsigned)work->number[3], (unsigned)work->bytes};
    const char *wrong = kernel->emulate(grid, threads, 2, arguments);
    if (wrong) {
        fprintf(stderr, "kernel %s: %s\n", kernel->entry, wrong);
        abort();
    }
}
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    CALL(cuLaunchKernel);
    Kernel *kernel = function;
    if (!x || !y || !z || !bx || by != 1 || bz != 1 || extra || stream != &queue) return 1;
    if (shared > 49152 && (int)shared > kernel->shared) return 1;
    launches++;
    if (!kernel->emulate) {
        Work *work = append(add);
        work->to = *(void **)arguments[0];
        uint32_t *words = arguments[1];
        work->number[0] = words[0];
        memcpy(&work->scale[0], &words[1], 4);
        return 0;
    }
    Work *work = append(emulate);
    size_t bytes = 0;
    for (size_t i = 0; i < kernel->arguments; i++) bytes += (kernel->sizes[i] + 15) / 16 * 16;
    char *at = aligned_alloc(16, bytes + 16);
    work->object[0] = kernel, work->object[1] = at;
    work->number[0] = x, work->number[1] = y, work->number[2] = z, work->number[3] = bx, work->bytes = shared;
    for (size_t i = 0; i < kernel->arguments; i++) {
        memcpy(at, arguments[i], kernel->sizes[i]);
        at += (kernel->sizes[i] + 15) / 16 * 16;
    }
    return 0;
}

/* libnvrtc: texts with `wrong` in them do not compile. */
typedef struct {
    Image image;
    char *text, *code, log[4096];
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
    strcpy(made->image.magic, "KERNEL");
    snprintf(made->image.entry, sizeof made->image.entry, "%s", name);
    made->text = strdup(text);
    *program = made;
    return 0;
}
#ifdef SHIM
/* The whole of a file, and its bytes. */
static char *whole(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *text = calloc(1, *bytes + 1);
    *bytes = fread(text, 1, *bytes, file);
    fclose(file);
    return text;
}
static int compile(Program *program) {
    const char *temporary = getenv("TMPDIR");
    char folder[200], path[256], command[1200];
    snprintf(folder, sizeof folder, "%s/kernelXXXXXX", temporary ? temporary : "/tmp");
    if (!mkdtemp(folder)) return 5;
    snprintf(path, sizeof path, "%s/kernel.cpp", folder);
    FILE *source = fopen(path, "w");
    if (!source) return 5;
    fprintf(source, "#include \"" SHIM "\"\n#line 1\n%s\nSHIM_EXPORT(%s)\n", program->text, program->image.entry);
    fclose(source);
    snprintf(command, sizeof command,
             "g++ -std=c++17 -O1 -ffp-contract=off -fno-gnu-unique -fPIC -shared -w -nostdinc++ -o %s/kernel.so %s 2>%s/log",
             folder, path, folder);
    int code = system(command) ? 6 : 0;
    size_t bytes = 0;
    snprintf(path, sizeof path, code ? "%s/log" : "%s/kernel.so", folder);
    char *result = whole(path, &bytes);
    if (code) snprintf(program->log, sizeof program->log, "%s", result ? result : "no g++");
    else program->code = result, program->image.bytes = bytes;
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command) ? 5 : code;
}
#else
static int compile(Program *program) {
    if (!strstr(program->text, "wrong")) return 0;
    snprintf(program->log, sizeof program->log, "%s(2): error: it is wrong\n", program->image.entry);
    return 6;
}
#endif
int nvrtcCompileProgram(void *program, int count, const char *const *options) {
    CALL(nvrtcCompileProgram);
    Program *made = program;
    const char *architecture = strchr(options[0], '=');
    if (count < 1 || !architecture) return 5;
    snprintf(made->image.architecture, sizeof made->image.architecture, "%s", architecture + 1);
    return compile(made);
}
int nvrtcDestroyProgram(void **program) {
    Program *made = *program;
    free(made->text), free(made->code), free(made);
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
    *bytes = sizeof(Image) + ((Program *)program)->image.bytes;
    return 0;
}
int nvrtcGetCUBIN(void *program, char *code) {
    CALL(nvrtcGetCUBIN);
    Program *made = program;
    memcpy(code, &made->image, sizeof(Image));
    if (made->code) memcpy(code + sizeof(Image), made->code, made->image.bytes);
    return 0;
}

#include "cublaslt.c"
