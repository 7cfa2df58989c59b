/* A method of ABI 1.3 with every form of selection and with frozen and shared tensors: low-rank changes of q_proj whose
   projection down is random, shared and kept, scaled and merged. `build.sh` makes the library that tests load. */
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

/* What follows "key": within the message, from `at` on; the host writes JSON without spaces. */
static const char *after(const char *at, const char *end, const char *key) {
    size_t len = strlen(key);
    for (; at + len <= end; at++)
        if (!memcmp(at, key, len)) return at + len;
    return NULL;
}

static SpartaStatus describe(SpartaCall call) {
    host->result(call, text(
        "{\"name\": \"abi13\", \"version\": \"1.3\", \"summary\": \"built for ABI 1.3\", \"default_lr\": 0.001, \"options\": ["
        "{\"name\": \"abi-r\", \"help\": \"Rank\", \"default\": 4, \"kind\": {\"type\": \"int\", \"min\": 1, \"max\": 64}}, "
        "{\"name\": \"abi-scale\", \"help\": \"Scale\", \"default\": 2.0, "
        "\"kind\": {\"type\": \"float\", \"min\": 0.0, \"max\": 8.0, \"min_open\": true}}, "
        "{\"name\": \"abi-norms\", \"help\": \"Train the norms\", \"default\": true, \"kind\": {\"type\": \"bool\"}}]}"));
    return SPARTA_OK;
}

static SpartaStatus select_parameters(SpartaCall call, SpartaBytes request) {
    /* A copy ends in 0, so that numbers can be read from it. */
    char *copy = malloc(request.len + 1), *answer = malloc(1 << 20);
    if (!copy || !answer) return fail(call, "no memory");
    memcpy(copy, request.data, request.len);
    copy[request.len] = 0;
    const char *end = copy + request.len, *at = copy, *options = after(copy, end, "\"options\":{");
    const char *rank = options ? after(options, end, "\"abi-r\":") : NULL;
    const char *norms = options ? after(options, end, "\"abi-norms\":") : NULL;
    if (!rank || !norms) return fail(call, "the request has no options");
    int r = atoi(rank), used = sprintf(answer, "["), first = 1;
    while ((at = after(at, end, "\"shape\":["))) {
        long out = strtol(at, NULL, 10);
        const char *comma = strchr(at, ','), *role = after(at, end, "\"role\":\"");
        long in = comma ? strtol(comma + 1, NULL, 10) : 0;
        if (!role) return fail(call, "a parameter has no role");
        used += sprintf(answer + used, first ? "" : ", ");
        first = 0;
        if (!strncmp(role, "head\"", 5)) used += sprintf(answer + used, "\"dense\"");
        else if (!strncmp(role, "norm\"", 5)) used += sprintf(answer + used, *norms == 't' ? "\"dense\"" : "\"frozen\"");
        else if (!strncmp(role, "q_proj\"", 7))
            used += sprintf(answer + used,
                            "{\"reparam\": {\"tensors\": ["
                            "{\"name\": \"down\", \"shape\": [%d, %ld], \"init\": {\"normal\": {\"std\": 0.1}}, \"trained\": false, "
                            "\"shared\": true}, {\"name\": \"up\", \"shape\": [%ld, %d], \"init\": \"zeros\"}, "
                            "{\"name\": \"gain\", \"shape\": [%d], \"init\": {\"constant\": {\"value\": 1.0}}}]}}",
                            r, in, out, r, r);
        else if (!strncmp(role, "k_proj\"", 7)) used += sprintf(answer + used, "{\"sparse\": {\"probability\": 0.25}}");
        else if (!strncmp(role, "v_proj\"", 7)) used += sprintf(answer + used, "{\"chosen\": {\"indices\": [0, 3, 17]}}");
        else if (!strncmp(role, "o_proj\"", 7))
            used += sprintf(answer + used, "{\"magnitude\": {\"share\": 0.1, \"order\": \"largest\", \"scope\": \"tensor\"}}");
        else used += sprintf(answer + used, "\"frozen\"");
    }
    sprintf(answer + used, "]");
    host->result(call, text(answer));
    free(copy);
    free(answer);
    return SPARTA_OK;
}

/* The value that an operation with one output gives, or a failed call. */
static SpartaStatus apply(SpartaCall call, const char *op, uint32_t a, uint32_t b, uint32_t *output) {
    uint32_t inputs[] = {a, b};
    size_t count = strstr(op, "scale\",") ? 1 : 2, outputs = 0;
    if (host->graph_apply(call, text(op), inputs, count, output, 1, &outputs) == SPARTA_OK) return SPARTA_OK;
    host->error(call, host->last_error(call));
    return SPARTA_FAILED;
}

#define NT "{\"op\": \"linear\", \"layout\": \"nt\", \"scale\": 1.0, \"bias\": false, \"residual\": false}"
#define NN "{\"op\": \"linear\", \"layout\": \"nn\", \"scale\": 1.0, \"bias\": false, \"residual\": false}"
#define ADD "{\"op\": \"add\"}"
#define MUL "{\"op\": \"mul\"}"

/* {"op": "scale"} with the option's value. */
static SpartaStatus scaled(SpartaCall call, SpartaBytes site, uint32_t x, uint32_t *y) {
    const char *start = (const char *)site.data;
    const char *value = after(start, start + site.len, "\"abi-scale\":");
    char op[64], number[24];
    size_t n = 0;
    if (!value) return fail(call, "the site has no abi-scale");
    while (n < sizeof number - 1 && value + n < start + site.len && strchr("0123456789.e-+", value[n])) {
        number[n] = value[n];
        n++;
    }
    number[n] = 0;
    snprintf(op, sizeof op, "{\"op\": \"scale\", \"factor\": %s}", number);
    return apply(call, op, x, 0, y);
}

static SpartaStatus forward(SpartaCall call, SpartaBytes site, uint32_t x, uint32_t w, const uint32_t *extra,
                            size_t extra_count, uint32_t *y) {
    uint32_t plain, low, gained, change, factor;
    uint64_t shape[4];
    size_t rank = 0;
    if (extra_count != 3) return fail(call, "expected three tensors");
    if (host->graph_shape(call, extra[1], shape, 4, &rank) != SPARTA_OK || rank != 2) return fail(call, "no matrix");
    if (apply(call, NT, x, w, &plain) || apply(call, NT, x, extra[0], &low) || apply(call, MUL, low, extra[2], &gained) ||
        apply(call, NT, gained, extra[1], &change) || scaled(call, site, change, &factor))
        return SPARTA_FAILED;
    return apply(call, ADD, plain, factor, y);
}

static SpartaStatus merge(SpartaCall call, SpartaBytes site, uint32_t w, const uint32_t *extra, size_t extra_count,
                          uint32_t *merged) {
    uint32_t up, change, factor;
    if (extra_count != 3) return fail(call, "expected three tensors");
    if (apply(call, MUL, extra[1], extra[2], &up) || apply(call, NN, up, extra[0], &change) ||
        scaled(call, site, change, &factor))
        return SPARTA_FAILED;
    return apply(call, ADD, w, factor, merged);
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
