/* A method of ABI 1.4 that has each of its functions: gains of q_proj's outputs with a penalty and an update, elements of v_proj
   by their gradients, with rates, and a state between steps. `build.sh` makes the library that tests load. */
#define _GNU_SOURCE
#include "sparta_plugin.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const SpartaHost *host;

static SpartaBytes text(const char *s) {
    SpartaBytes bytes = {(const uint8_t *)s, strlen(s)};
    return bytes;
}

static SpartaStatus fail(SpartaCall call, const char *why) {
    host->error(call, text(why));
    return SPARTA_FAILED;
}

/* What follows "key" within the message; the host writes JSON without spaces. */
static const char *after(SpartaBytes message, const char *at, const char *key) {
    const char *start = (const char *)message.data, *from = at ? at : start;
    const char *found = memmem(from, message.len - (size_t)(from - start), key, strlen(key));
    return found ? found + strlen(key) : NULL;
}

static SpartaStatus describe(SpartaCall call) {
    host->result(call, text(
        "{\"name\": \"abi14\", \"version\": \"1.4\", \"summary\": \"built for ABI 1.4\", \"default_lr\": 0.001, \"options\": ["
        "{\"name\": \"abi-every\", \"help\": \"Steps between calls\", \"default\": 2, "
        "\"kind\": {\"type\": \"int\", \"min\": 1, \"max\": 64}}]}"));
    return SPARTA_OK;
}

static SpartaStatus select_parameters(SpartaCall call, SpartaBytes request) {
    char *answer = malloc(1 << 20);
    if (!answer) return fail(call, "no memory");
    int used = sprintf(answer, "["), first = 1;
    for (const char *at = NULL; (at = after(request, at, "\"shape\":["));) {
        long out = strtol(at, NULL, 10);
        const char *role = after(request, at, "\"role\":\"");
        if (!role) return fail(call, "a parameter has no role");
        used += sprintf(answer + used, first ? "" : ", ");
        first = 0;
        if (!strncmp(role, "head\"", 5)) used += sprintf(answer + used, "\"dense\"");
        else if (!strncmp(role, "norm\"", 5))
            used += sprintf(answer + used, "{\"rated\": {\"lr_factor\": 0.5, \"weight_decay\": 0.0, \"selection\": \"dense\"}}");
        else if (!strncmp(role, "q_proj\"", 7))
            used += sprintf(answer + used,
                            "{\"reparam\": {\"tensors\": [{\"name\": \"gain\", \"shape\": [%ld], "
                            "\"init\": {\"constant\": {\"value\": 1.0}}, \"lr_factor\": 2.0}]}}", out);
        else if (!strncmp(role, "v_proj\"", 7))
            used += sprintf(answer + used,
                            "{\"scored\": {\"share\": 0.05, \"order\": \"largest\", \"scope\": \"tensor\", "
                            "\"score\": {\"gradient\": {\"batches\": 2}}}}");
        else used += sprintf(answer + used, "\"frozen\"");
    }
    sprintf(answer + used, "]");
    host->result(call, text(answer));
    free(answer);
    return SPARTA_OK;
}

/* The value that an operation with one output gives, or a failed call. */
static SpartaStatus apply(SpartaCall call, const char *op, size_t count, uint32_t a, uint32_t b, uint32_t *output) {
    uint32_t inputs[] = {a, b};
    size_t outputs = 0;
    if (host->graph_apply(call, text(op), inputs, count, output, 1, &outputs) == SPARTA_OK) return SPARTA_OK;
    host->error(call, host->last_error(call));
    return SPARTA_FAILED;
}

#define NT "{\"op\": \"linear\", \"layout\": \"nt\", \"scale\": 1.0, \"bias\": false, \"residual\": false}"
#define MUL "{\"op\": \"mul\"}"
#define ADD "{\"op\": \"add\"}"
#define TRANSPOSE "{\"op\": \"transpose\"}"

static SpartaStatus forward(SpartaCall call, SpartaBytes site, uint32_t x, uint32_t w, const uint32_t *extra,
                            size_t extra_count, uint32_t *y) {
    uint32_t plain;
    (void)site;
    if (extra_count != 1) return fail(call, "expected one tensor");
    return apply(call, NT, 2, x, w, &plain) || apply(call, MUL, 2, plain, extra[0], y) ? SPARTA_FAILED : SPARTA_OK;
}

/* Gains the bias, too. */
static SpartaStatus forward_with_bias(SpartaCall call, SpartaBytes site, uint32_t x, uint32_t w, uint32_t bias,
                                      const uint32_t *extra, size_t extra_count, uint32_t *y) {
    uint32_t plain, sum;
    (void)site;
    if (extra_count != 1) return fail(call, "expected one tensor");
    if (apply(call, NT, 2, x, w, &plain) || apply(call, ADD, 2, plain, bias, &sum)) return SPARTA_FAILED;
    return apply(call, MUL, 2, sum, extra[0], y);
}

static SpartaStatus merge(SpartaCall call, SpartaBytes site, uint32_t w, const uint32_t *extra, size_t extra_count,
                          uint32_t *merged) {
    uint32_t columns, gained;
    (void)site;
    if (extra_count != 1) return fail(call, "expected one tensor");
    if (apply(call, TRANSPOSE, 1, w, 0, &columns) || apply(call, MUL, 2, columns, extra[0], &gained)) return SPARTA_FAILED;
    return apply(call, TRANSPOSE, 1, gained, 0, merged);
}

static SpartaStatus merge_with_bias(SpartaCall call, SpartaBytes site, uint32_t w, uint32_t bias, const uint32_t *extra,
                                    size_t extra_count, uint32_t (*merged)[2]) {
    if (merge(call, site, w, extra, extra_count, &(*merged)[0])) return SPARTA_FAILED;
    return apply(call, MUL, 2, bias, extra[0], &(*merged)[1]);
}

/* A thousandth of the sum of the squares of the gains. */
static SpartaStatus penalty(SpartaCall call, SpartaBytes site, uint32_t w, const uint32_t *extra, size_t extra_count,
                            uint32_t *value) {
    uint64_t shape[4];
    size_t rank = 0;
    uint32_t row, squares, sum, one;
    char op[80];
    (void)site, (void)w;
    if (extra_count != 1 || host->graph_shape(call, extra[0], shape, 4, &rank) || rank != 1) return fail(call, "no gain");
    snprintf(op, sizeof op, "{\"op\": \"broadcast\", \"shape\": [1, %llu]}", (unsigned long long)shape[0]);
    if (apply(call, op, 1, extra[0], 0, &row) || apply(call, MUL, 2, row, row, &squares) ||
        apply(call, "{\"op\": \"row_sum\"}", 1, squares, 0, &sum) || apply(call, "{\"op\": \"column_sum\"}", 1, sum, 0, &one))
        return SPARTA_FAILED;
    return apply(call, "{\"op\": \"scale\", \"factor\": 0.001}", 1, one, 0, value);
}

/* Gains fall by a hundredth. */
static SpartaStatus update(SpartaCall call, SpartaBytes site, uint32_t lr, uint32_t *values, size_t value_count) {
    (void)site, (void)lr;
    if (value_count != 1) return fail(call, "expected one tensor");
    return apply(call, "{\"op\": \"scale\", \"factor\": 0.99}", 1, values[0], 0, &values[0]);
}

static SpartaStatus steps(SpartaCall call, SpartaBytes options) {
    const char *every = after(options, NULL, "\"abi-every\":");
    char answer[64];
    if (!every) return fail(call, "no abi-every");
    snprintf(answer, sizeof answer, "{\"every\": %d, \"gradients\": true}", atoi(every));
    host->result(call, text(answer));
    return SPARTA_OK;
}

static SpartaStatus refused(SpartaCall call) {
    host->error(call, host->last_error(call));
    return SPARTA_FAILED;
}

/* Of each tensor that is trained by elements: the last element gives way to the next one where that is there, and all changes shrink
   by a part of their gradients. The state counts the calls. */
static SpartaStatus on_step(SpartaCall call, SpartaBytes request) {
    static float values[1 << 16], gradient[1 << 16];
    static uint32_t indices[1 << 16];
    const char *at = after(request, NULL, "\"tensors\":["), *state = after(request, NULL, "\"state\":");
    char answer[32];
    size_t size = 0, again = 0;
    while (at && (at = after(request, at, "{\"name\":\""))) {
        SpartaBytes name = {(const uint8_t *)at, (size_t)(strchr(at, '"') - at)};
        const char *form = after(request, at, "\"form\":\"");
        at = after(request, at, "\"parameter\":{\"name\":\"");
        const char *shape = after(request, at, "\"shape\":[");
        if (!form || !at || !shape || strncmp(form, "sparse\"", 7)) continue;
        long numel = strtol(shape, NULL, 10) * strtol(strchr(shape, ',') + 1, NULL, 10);
        if (host->step_read(call, text("indices"), name, (uint8_t *)indices, sizeof indices, &size) ||
            host->step_read(call, text("values"), name, (uint8_t *)values, sizeof values, &again) ||
            host->step_read(call, text("gradient"), name, (uint8_t *)gradient, sizeof gradient, &again))
            return refused(call);
        size_t n = size / 4;
        if (indices[n - 1] + 1 < (uint32_t)numel) indices[n - 1]++;
        for (size_t i = 0; i < n; i++) values[i] -= 0.01f * gradient[i];
        SpartaBytes all = {(const uint8_t *)indices, size}, changes = {(const uint8_t *)values, size};
        if (host->step_write(call, text("indices"), name, all) || host->step_write(call, text("values"), name, changes))
            return refused(call);
    }
    snprintf(answer, sizeof answer, "%d", state ? atoi(state) + 1 : 1);
    host->result(call, text(answer));
    return SPARTA_OK;
}

static const SpartaMethod table = {
    .size = sizeof(SpartaMethod), .describe = describe, .select = select_parameters, .forward = forward, .merge = merge,
    .forward_with_bias = forward_with_bias, .merge_with_bias = merge_with_bias, .penalty = penalty, .update = update,
    .steps = steps, .on_step = on_step,
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
