/* The task `@name@`: which of two labels a line has. --data is a directory with train.tsv, dev.tsv and test.tsv, each line a
   label, a tab and a text of letters, digits and signs that JSON need not escape. */
#include "sparta_plugin.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const SpartaHost *host;

static SpartaBytes text(const char *s) {
    SpartaBytes bytes = {(const uint8_t *)s, strlen(s)};
    return bytes;
}

/* An error is a sentence for the user: what, where, expected, got, what to do next. */
static SpartaStatus fail(SpartaCall call, const char *where, const char *why) {
    char message[1400];
    snprintf(message, sizeof message, "%.1100s: %s", where, why);
    host->error(call, text(message));
    return SPARTA_FAILED;
}

static const char *const labels[] = {"negative", "positive"};

static SpartaStatus describe(SpartaCall call) {
    host->result(call, text(
        "{\"name\": \"@name@\", \"version\": \"0.1.0\", \"tasks\": [{\"id\": \"@name@\", \"title\": \"Lines with one of two labels\", "
        "\"labels\": [\"negative\", \"positive\"], \"metrics\": [\"accuracy\", \"f1\"], \"primary\": \"accuracy\", "
        "\"pair\": false}]}"));
    return SPARTA_OK;
}

/* A data set is the path of its directory. */
static SpartaStatus open_dataset(SpartaCall call, SpartaBytes request, uint64_t *dataset) {
    static const char key[] = "\"data\":\"";
    const size_t len = sizeof key - 1;
    for (size_t i = 0; i + len < request.len; i++) {
        if (memcmp(request.data + i, key, len)) continue;
        const char *start = (const char *)request.data + i + len, *end = memchr(start, '"', request.len - i - len);
        char *path = end && end - start < 1000 ? calloc((size_t)(end - start) + 16, 1) : NULL;
        if (!path) break;
        memcpy(path, start, (size_t)(end - start));
        char file[1100];
        snprintf(file, sizeof file, "%s/train.tsv", path);
        FILE *train = fopen(file, "r");
        if (!train) {
            free(path);
            return fail(call, file, "there is no such file; expected lines `label<TAB>text`");
        }
        fclose(train);
        *dataset = (uint64_t)(uintptr_t)path;
        return SPARTA_OK;
    }
    return fail(call, "--data", "expected the path of a directory, shorter than 1000 bytes");
}

static SpartaStatus recipe(SpartaCall call, uint64_t dataset) {
    (void)dataset;
    host->result(call, text("{\"train\": {\"parts\": [\"train.tsv\"], \"take\": \"all\"}, "
                            "\"dev\": {\"parts\": [\"dev.tsv\"], \"take\": \"all\"}, "
                            "\"test\": {\"parts\": [\"test.tsv\"], \"take\": \"all\"}, \"notes\": []}"));
    return SPARTA_OK;
}

static SpartaStatus examples(SpartaCall call, uint64_t dataset, SpartaBytes part, uint64_t *iterator) {
    char path[1200];
    snprintf(path, sizeof path, "%s/%.*s", (const char *)(uintptr_t)dataset, (int)part.len, (const char *)part.data);
    FILE *file = fopen(path, "r");
    if (!file) return fail(call, path, "it cannot be opened");
    *iterator = (uint64_t)(uintptr_t)file;
    return SPARTA_OK;
}

/* One example per call, and none at the end. */
static SpartaStatus next(SpartaCall call, uint64_t iterator, size_t max) {
    (void)max;
    char line[4096], answer[4300];
    if (!fgets(line, sizeof line, (FILE *)(uintptr_t)iterator)) {
        host->result(call, text("[]"));
        return SPARTA_OK;
    }
    line[strcspn(line, "\r\n")] = 0;
    char *tab = strchr(line, '\t');
    if (!tab || strpbrk(tab + 1, "\"\\\t")) return fail(call, line, "expected a label, a tab and a text without \" and \\");
    *tab = 0;
    for (int label = 0; label < 2; label++) {
        if (strcmp(line, labels[label])) continue;
        snprintf(answer, sizeof answer, "[{\"text\": \"%s\", \"label\": %d}]", tab + 1, label);
        host->result(call, text(answer));
        return SPARTA_OK;
    }
    return fail(call, line, "expected the label negative or positive");
}

static void close_examples(uint64_t iterator) {
    fclose((FILE *)(uintptr_t)iterator);
}

static void close_dataset(uint64_t dataset) {
    free((void *)(uintptr_t)dataset);
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
