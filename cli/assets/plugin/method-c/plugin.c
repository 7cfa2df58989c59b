/* The method `@name@`: trains a scale of each output of the values and of the MLP's first layer, and the head. */
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
static SpartaStatus fail(SpartaCall call, const char *why) {
    host->error(call, text(why));
    return SPARTA_FAILED;
}

static SpartaStatus describe(SpartaCall call) {
    host->result(call, text(
        "{\"name\": \"@name@\", \"version\": \"0.1.0\", \"summary\": \"trains a scale for each value and for each unit of the MLP's first layer\", "
        "\"default_lr\": 0.003, \"options\": [{\"name\": \"scale-start\", \"help\": \"Initial value of the scales\", "
        "\"default\": 1.0, \"kind\": {\"type\": \"float\", \"min\": 0.0, \"max\": 10.0}}]}"));
    return SPARTA_OK;
}

/* What follows `key` in a text, or NULL. The host writes JSON without spaces; a real plugin uses a JSON library. */
static const char *after(const char *at, const char *key) {
    const char *found = strstr(at, key);
    return found ? found + strlen(key) : NULL;
}

static int is(const char *at, const char *role) {
    size_t len = strlen(role);
    return !strncmp(at, role, len) && at[len] == '"';
}

/* Writes a selection for each parameter to `answer`, which has room for `capacity` bytes. */
static const char *choose(const char *request, char *answer, size_t capacity) {
    const char *options = after(request, "\"options\":{");
    const char *start = options ? after(options, "\"scale-start\":") : NULL;
    if (!start) return "the request has no option scale-start";
    double value = strtod(start, NULL);
    size_t used = (size_t)snprintf(answer, capacity, "[");
    for (const char *at = request; (at = after(at, "\"shape\":[")) && used + 256 < capacity;) {
        long out = strtol(at, NULL, 10);
        const char *role = after(at, "\"role\":\"");
        if (!role) return "a parameter has no role";
        used += (size_t)snprintf(answer + used, capacity - used, used > 1 ? "," : "");
        if (is(role, "head")) used += (size_t)snprintf(answer + used, capacity - used, "\"dense\"");
        else if (is(role, "v_proj") || is(role, "up_proj"))
            used += (size_t)snprintf(answer + used, capacity - used,
                                     "{\"reparam\":{\"tensors\":[{\"name\":\"scale\",\"shape\":[%ld],"
                                     "\"init\":{\"constant\":{\"value\":%.17g}}}]}}", out, value);
        else used += (size_t)snprintf(answer + used, capacity - used, "\"frozen\"");
    }
    snprintf(answer + used, capacity - used, "]");
    return NULL;
}

static SpartaStatus select_parameters(SpartaCall call, SpartaBytes request) {
    /* More than the longest answer: a parameter's selection is shorter than four times its part of the request. */
    size_t capacity = 4 * request.len + 1024;
    char *copy = malloc(request.len + 1), *answer = malloc(capacity);
    const char *why = "out of memory for the answer";
    if (copy && answer) {
        memcpy(copy, request.data, request.len);
        copy[request.len] = 0;
        why = choose(copy, answer, capacity);
        if (!why) host->result(call, text(answer));
    }
    free(copy);
    free(answer);
    return why ? fail(call, why) : SPARTA_OK;
}

/* Adds an operation with one output to the graph. */
static SpartaStatus apply(SpartaCall call, const char *op, const uint32_t *inputs, size_t count, uint32_t *output) {
    size_t outputs = 0;
    if (host->graph_apply(call, text(op), inputs, count, output, 1, &outputs) == SPARTA_OK) return SPARTA_OK;
    host->error(call, host->last_error(call));
    return SPARTA_FAILED;
}

#define LINEAR "{\"op\": \"linear\", \"layout\": \"nt\", \"scale\": 1.0, \"bias\": false, \"residual\": false}"

/* y = (x w^T) * scale */
static SpartaStatus forward(SpartaCall call, SpartaBytes site, uint32_t x, uint32_t w, const uint32_t *extra,
                            size_t extra_count, uint32_t *y) {
    (void)site;
    uint32_t plain, product[] = {x, w};
    if (extra_count != 1) return fail(call, "expected the tensor `scale`");
    if (apply(call, LINEAR, product, 2, &plain)) return SPARTA_FAILED;
    uint32_t scaled[] = {plain, extra[0]};
    return apply(call, "{\"op\": \"mul\"}", scaled, 2, y);
}

/* The rows of w times scale: its columns are the rows of its transpose. */
static SpartaStatus merge(SpartaCall call, SpartaBytes site, uint32_t w, const uint32_t *extra, size_t extra_count,
                          uint32_t *merged) {
    (void)site;
    uint32_t columns, scaled;
    if (extra_count != 1) return fail(call, "expected the tensor `scale`");
    if (apply(call, "{\"op\": \"transpose\"}", &w, 1, &columns)) return SPARTA_FAILED;
    uint32_t inputs[] = {columns, extra[0]};
    if (apply(call, "{\"op\": \"mul\"}", inputs, 2, &scaled)) return SPARTA_FAILED;
    return apply(call, "{\"op\": \"transpose\"}", &scaled, 1, merged);
}

static const SpartaMethod table = {
    .size = sizeof(SpartaMethod), .describe = describe, .select = select_parameters, .forward = forward, .merge = merge,
};

static const SpartaInterface interface = {
    .size = sizeof(SpartaInterface), .id = {(const uint8_t *)SPARTA_METHOD_ID, sizeof(SPARTA_METHOD_ID) - 1}, .table = &table,
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
