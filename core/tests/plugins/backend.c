/* A backend in C that keeps tensors and computes nothing, built for an earlier ABI: CASE is its minor version, 0 or 1.
 * CASE 9 dies, and CASE 8 never returns, when it is opened. */
#include "sparta_plugin.h"
#include <stdlib.h>
#include <string.h>

static const SpartaHost *host;

static SpartaBytes text(const char *s) {
    SpartaBytes bytes = {(const uint8_t *)s, strlen(s)};
    return bytes;
}

#define INFO "{\"id\": \"store\", \"name\": \"Store\", \"kind\": \"other\", \"driver\": \"none\", \"memory\": null, " \
             "\"max_buffer\": 4194304}"

static SpartaStatus describe(SpartaCall call) {
    host->result(call, text("{\"name\": \"store\", \"version\": \"0.1\"}"));
    return SPARTA_OK;
}

static SpartaStatus devices(SpartaCall call) {
    host->result(call, text("[" INFO "]"));
    return SPARTA_OK;
}

static SpartaStatus open_backend(SpartaCall call, SpartaBytes device, uint64_t *backend) {
    (void)device;
#if CASE == 9
    abort();
#elif CASE == 8
    for (;;) *(volatile int *)&(int){0};
#endif
    host->result(call, text(INFO));
    *backend = 1;
    return SPARTA_OK;
}

static void close_backend(uint64_t backend) {
    (void)backend;
}

/* A buffer is its address; every element takes 4 bytes. */
static SpartaStatus alloc(SpartaCall call, uint64_t backend, SpartaBytes dtype, size_t len, SpartaBytes label,
                          uint64_t *buffer) {
    (void)call, (void)backend, (void)dtype, (void)label;
    void *memory = calloc(len + 1, 4);
    *buffer = (uint64_t)(uintptr_t)memory;
    return memory ? SPARTA_OK : SPARTA_FAILED;
}

static SpartaStatus free_buffer(SpartaCall call, uint64_t backend, uint64_t buffer) {
    (void)call, (void)backend;
    free((void *)(uintptr_t)buffer);
    return SPARTA_OK;
}

static SpartaStatus write(SpartaCall call, uint64_t backend, uint64_t buffer, size_t offset, SpartaBytes data) {
    (void)call, (void)backend;
    memcpy((uint8_t *)(uintptr_t)buffer + 4 * offset, data.data, data.len);
    return SPARTA_OK;
}

static SpartaStatus read(SpartaCall call, uint64_t backend, uint64_t buffer, size_t offset, uint8_t *out,
                         size_t byte_count) {
    (void)call, (void)backend;
    memcpy(out, (uint8_t *)(uintptr_t)buffer + 4 * offset, byte_count);
    return SPARTA_OK;
}

static SpartaStatus prepare(SpartaCall call, uint64_t backend, SpartaBytes plan, uint64_t arena,
                            const uint64_t *externals, size_t external_count, uint64_t *prepared) {
    (void)call, (void)backend, (void)plan, (void)arena, (void)externals;
    *prepared = 100 + external_count;
    return SPARTA_OK;
}

static SpartaStatus run(SpartaCall call, uint64_t backend, uint64_t prepared) {
    (void)backend;
    if (prepared == 102) return SPARTA_OK;
    host->error(call, text("there is no such plan"));
    return SPARTA_FAILED;
}

static SpartaStatus release(SpartaCall call, uint64_t backend, uint64_t prepared) {
    (void)call, (void)backend, (void)prepared;
    return SPARTA_OK;
}

#if CASE != 0
static SpartaStatus run_profiled(SpartaCall call, uint64_t backend, uint64_t prepared) {
    (void)backend, (void)prepared;
    host->result(call, text("[7]"));
    return SPARTA_OK;
}
#endif

static const SpartaBackend table = {
#if CASE == 0
    .size = offsetof(SpartaBackend, run_profiled),
#else
    .size = offsetof(SpartaBackend, run_profiled) + sizeof(void (*)(void)),
    .run_profiled = run_profiled,
#endif
    .describe = describe,
    .devices = devices,
    .open = open_backend,
    .close = close_backend,
    .alloc = alloc,
    .free = free_buffer,
    .write = write,
    .read = read,
    .prepare = prepare,
    .run = run,
    .release = release,
};

static const SpartaInterface interface = {
    .size = sizeof(SpartaInterface),
    .id = {(const uint8_t *)SPARTA_BACKEND_ID, sizeof(SPARTA_BACKEND_ID) - 1},
    .table = &table,
};

static const SpartaInterface *const interfaces[] = {&interface};

static const SpartaPlugin plugin = {
    .size = sizeof(SpartaPlugin),
    .abi_major = 1,
    .abi_minor = CASE == 0 ? 0 : 1,
    .interface_count = 1,
    .interfaces = interfaces,
};

const SpartaPlugin *sparta_plugin_entry(const SpartaHost *h) {
    host = h;
    return &plugin;
}
