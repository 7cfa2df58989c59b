/* A task of ABI 1.3 with an option, labels found in its data, weights of classes and shares of one part: which of two
   words a text has. `build.sh` makes the library that tests load. */
#include "sparta_plugin.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const SpartaHost *host;

static SpartaBytes text(const char *s) {
    SpartaBytes bytes = {(const uint8_t *)s, strlen(s)};
    return bytes;
}

/* Whether a message has these bytes. */
static const char *find(SpartaBytes message, const char *what) {
    size_t len = strlen(what);
    for (size_t i = 0; i + len <= message.len; i++)
        if (!memcmp(message.data + i, what, len)) return (const char *)message.data + i + len;
    return NULL;
}

#define TASK(LABELS, WEIGHTS) \
    "{\"id\": \"words13\", \"title\": \"Which word\", \"labels\": [" LABELS "], \"target\": \"class\", " \
    "\"weights\": [" WEIGHTS "], \"metrics\": [\"accuracy\", \"f1\"], \"primary\": \"accuracy\", \"pair\": false}"

static SpartaStatus describe(SpartaCall call) {
    host->result(call, text("{\"name\": \"words13\", \"version\": \"1.3\", \"tasks\": [" TASK("", "") "], \"options\": ["
                            "{\"name\": \"words-count\", \"help\": \"Texts\", \"default\": 120, "
                            "\"kind\": {\"type\": \"int\", \"min\": 20, \"max\": 1000}}]}"));
    return SPARTA_OK;
}

static SpartaStatus open_dataset(SpartaCall call, SpartaBytes request, uint64_t *dataset) {
    const char *count = find(request, "\"words-count\":");
    if (!count) {
        host->error(call, text("the request has no words-count"));
        return SPARTA_FAILED;
    }
    *dataset = (uint64_t)atoi(count);
    return SPARTA_OK;
}

static SpartaStatus recipe(SpartaCall call, uint64_t dataset) {
    (void)dataset;
#define SHARE(FROM, TO) "{\"parts\": [\"all\"], \"take\": {\"share\": {\"from\": " FROM ", \"to\": " TO "}}}"
    host->result(call, text("{\"train\": " SHARE("0.0", "0.6") ", \"dev\": " SHARE("0.6", "0.8") ", \"test\": "
                            SHARE("0.8", "1.0") ", \"notes\": [\"made up\"], \"task\": "
                            TASK("\"good\", \"bad\"", "1.0, 1.5") "}"));
    return SPARTA_OK;
}

typedef struct Iterator {
    uint64_t at, end;
} Iterator;

static SpartaStatus examples(SpartaCall call, uint64_t dataset, SpartaBytes part, uint64_t *iterator) {
    Iterator *one = malloc(sizeof *one);
    if (!one || part.len != 3 || memcmp(part.data, "all", 3)) {
        free(one);
        host->error(call, text("there is no such part"));
        return SPARTA_FAILED;
    }
    *one = (Iterator){0, dataset};
    *iterator = (uint64_t)(uintptr_t)one;
    return SPARTA_OK;
}

static SpartaStatus next(SpartaCall call, uint64_t iterator, size_t max) {
    Iterator *one = (Iterator *)(uintptr_t)iterator;
    static const char *const words[] = {"good", "bad"}, *const things[] = {"film", "story", "actor", "song", "ending"};
    char answer[8192];
    int used = sprintf(answer, "[");
    for (size_t n = 0; n < max && n < 32 && one->at < one->end; n++, one->at++) {
        unsigned long i = (unsigned long)one->at;
        used += sprintf(answer + used, "%s{\"text\": \"the %s is %s %lu\", \"label\": %lu}", n ? ", " : "", things[i / 2 % 5],
                        words[i % 2], i, i % 2);
    }
    sprintf(answer + used, "]");
    host->result(call, text(answer));
    return SPARTA_OK;
}

static void close_examples(uint64_t iterator) {
    free((void *)(uintptr_t)iterator);
}

static void close_dataset(uint64_t dataset) {
    (void)dataset;
}

static const SpartaTask table = {
    .size = sizeof(SpartaTask), .describe = describe, .open = open_dataset, .recipe = recipe, .examples = examples,
    .next = next, .close_examples = close_examples, .close = close_dataset,
};

static const SpartaInterface interface = {
    .size = sizeof(SpartaInterface), .id = {(const uint8_t *)SPARTA_TASK_ID, sizeof(SPARTA_TASK_ID) - 1}, .table = &table,
};

static const SpartaInterface *const interfaces[] = {&interface};

static const SpartaPlugin plugin = {
    .size = sizeof(SpartaPlugin),
    .abi_major = SPARTA_ABI_MAJOR,
    .abi_minor = SPARTA_ABI_MINOR,
    .interface_count = 1,
    .interfaces = interfaces,
};

const SpartaPlugin *sparta_plugin_entry(const SpartaHost *given) {
    host = given;
    return &plugin;
}
