/* A task plugin in C: two examples of a task `sign`, from the text of the request and nothing else. */
#include "sparta_plugin.h"
#include <string.h>

static const SpartaHost *host;

static SpartaBytes text(const char *s) {
    SpartaBytes bytes = {(const uint8_t *)s, strlen(s)};
    return bytes;
}

static int contains(SpartaBytes haystack, const char *needle) {
    size_t n = strlen(needle);
    for (size_t i = 0; i + n <= haystack.len; i++)
        if (memcmp(haystack.data + i, needle, n) == 0) return 1;
    return 0;
}

static SpartaStatus describe(SpartaCall call) {
    host->result(call, text("{\"name\": \"c-sign\", \"version\": \"1.2.3\", \"tasks\": [{\"id\": \"sign\", "
                            "\"title\": \"Sign\", \"labels\": [\"minus\", \"plus\"], \"metrics\": [\"accuracy\"], "
                            "\"primary\": \"accuracy\", \"pair\": false}]}"));
    return SPARTA_OK;
}

static SpartaStatus open_dataset(SpartaCall call, SpartaBytes request, uint64_t *dataset) {
    if (!contains(request, "\"task\":\"sign\"")) {
        host->error(call, text("only the task sign is known"));
        return SPARTA_FAILED;
    }
    if (contains(request, "\"data\":\"/nowhere\"")) {
        host->error(call, text("/nowhere: no train.txt there"));
        return SPARTA_FAILED;
    }
    *dataset = 17;
    return SPARTA_OK;
}

static SpartaStatus recipe(SpartaCall call, uint64_t dataset) {
    if (dataset != 17) return SPARTA_FAILED;
    host->result(call, text("{\"train\": {\"parts\": [\"train\"], \"take\": {\"rest\": {\"cap\": null}}}, "
                            "\"dev\": {\"parts\": [\"train\"], \"take\": {\"draw\": {\"count\": 1}}}, "
                            "\"test\": {\"parts\": [\"test\"], \"take\": \"all\"}, \"notes\": []}"));
    return SPARTA_OK;
}

static int served;

static SpartaStatus examples(SpartaCall call, uint64_t dataset, SpartaBytes part, uint64_t *iterator) {
    if (dataset != 17 || part.len != 5 || memcmp(part.data, "train", 5) != 0) {
        host->error(call, text("there is only the part train"));
        return SPARTA_FAILED;
    }
    served = 0;
    *iterator = 99;
    return SPARTA_OK;
}

static SpartaStatus next(SpartaCall call, uint64_t iterator, size_t max) {
    if (iterator != 99 || max < 2) return SPARTA_FAILED;
    host->result(call, text(served ? "[]" : "[{\"text\": \"-1\", \"label\": 0}, {\"text\": \"+1\", \"label\": 1}]"));
    served = 1;
    return SPARTA_OK;
}

static void close_examples(uint64_t iterator) { (void)iterator; }

static void close_dataset(uint64_t dataset) { (void)dataset; }

static const SpartaTask table = {
    .size = sizeof(SpartaTask),
    .describe = describe,
    .open = open_dataset,
    .recipe = recipe,
    .examples = examples,
    .next = next,
    .close_examples = close_examples,
    .close = close_dataset,
};

static const SpartaInterface interface = {
    .size = sizeof(SpartaInterface),
    .id = {(const uint8_t *)SPARTA_TASK_ID, sizeof(SPARTA_TASK_ID) - 1},
    .table = &table,
};

static const SpartaInterface *const interfaces[] = {&interface};

static const SpartaPlugin plugin = {
    .size = sizeof(SpartaPlugin),
    .abi_major = SPARTA_ABI_MAJOR,
    .abi_minor = SPARTA_ABI_MINOR,
    .interface_count = 1,
    .interfaces = interfaces,
};

const SpartaPlugin *sparta_plugin_entry(const SpartaHost *h) {
    host = h;
    return &plugin;
}
