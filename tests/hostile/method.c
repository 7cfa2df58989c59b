/* A method that misbehaves, chosen by -DCASE=...: a reparametrization `y = x w^T` of q_proj whose plugin does something
   that no plugin should. */
#define _GNU_SOURCE
#include "sparta_plugin.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GOOD 0
#define EXIT_IN_CONSTRUCTOR 1
#define EXIT_IN_DESCRIBE 2
#define EXIT_IN_SELECT 3
#define SLOW 4
#define PRINTS 5
#define MOVES 6
#define NULL_POINTERS 7
#define NAME 8
#define OPTION_HELP 9
#define EMPTY_RANGE 10
#define UNDEFINED 11
#define HUGE_ANSWER 12
#define OTHER_TYPE 13
#define FAILS 14
#define NO_MERGE 15
#define LONG_SUMMARY 16
/* These train elements of q_proj and act after each step. */
#define ACTS 17
#define UNKNOWN_TENSOR 18
#define OTHER_LENGTH 19
#define NOT_FINITE 20
#define NOT_ASCENDING 21
#define OUT_OF_RANGE 22
#define OTHER_SIZE 23
#define UNDECLARED_GRADIENT 24
#define UNDECLARED_WHOLE 25
#define UNKNOWN_SLOT 26
#define LONG_STATE 27
#define NEVER 28
#define IGNORES_REFUSAL 29
#define NO_ON_STEP 30
#define OTHER_KIND 31
#define HALF_A_FLOAT 32
#define NO_JSON 33
/* These fail in one function of minor version 4. */
#define FAILS_IN_PENALTY 34
#define FAILS_IN_UPDATE 35
#define FAILS_IN_STEPS 36
#define FAILS_IN_ON_STEP 37
/* These have an operation of their own: `y = 2 x`. */
#define OWN 38
#define OWN_KERNEL_IS_NO_WGSL 39
#define OWN_KERNEL_WRITES_INPUT 40
#define OWN_FUNCTION_COMPUTES_OTHERS 41
#define OWN_FUNCTION_FAILS 42
#define OWN_BODY_IS_NONE 43
#define OWN_FUNCTION_FOR_ADD 44
#define CRASHES 45
#define ANSWERS_NOTHING 46
#define NO_DESCRIBE 47

#define SPARSE (CASE >= ACTS && CASE <= NO_JSON)

static const SpartaHost *host;

static SpartaBytes text(const char *s) {
    SpartaBytes bytes = {(const uint8_t *)s, strlen(s)};
    return bytes;
}

#if CASE == UNDEFINED
extern int a_function_that_is_nowhere(void);
#endif

__attribute__((constructor)) static void opened(void) {
#if CASE == EXIT_IN_CONSTRUCTOR
    exit(0);
#elif CASE == CRASHES
    *(volatile int *)NULL = 0;
#elif CASE == SLOW
    sleep(4);
#elif CASE == MOVES
    if (chdir("/")) abort();
#endif
}

#if CASE == NAME
#define METHOD "../escape"
#else
#define METHOD "hostile"
#endif

#if CASE == OPTION_HELP
#define OPTIONS "{\"name\": \"help\", \"help\": \"\", \"kind\": {\"type\": \"bool\"}, \"default\": false}"
#elif CASE == EMPTY_RANGE
#define OPTIONS "{\"name\": \"n\", \"help\": \"\", \"kind\": {\"type\": \"int\", \"min\": 3, \"max\": 2}, \"default\": null}"
#else
#define OPTIONS ""
#endif

static SpartaStatus describe(SpartaCall call) {
    static char answer[10000];
    char summary[8000] = "misbehaves";
#if CASE == LONG_SUMMARY
    memset(summary, 'x', sizeof summary - 1);
#endif
    snprintf(answer, sizeof answer,
             "{\"name\": \"" METHOD "\", \"version\": \"1\", \"summary\": \"%s\", \"options\": [" OPTIONS "], "
             "\"default_lr\": 0.001, \"mergeable\": %s}", summary, CASE == NO_MERGE ? "false" : "true");
#if CASE == EXIT_IN_DESCRIBE
    exit(0);
#elif CASE == PRINTS
    puts("{\"stopped\": \"by a plugin\"}");
    fflush(stdout);
#elif CASE == UNDEFINED
    return a_function_that_is_nowhere();
#endif
    host->result(call, text(answer));
    return SPARTA_OK;
}

/* An answer for each parameter: how many there are is the number of times that "role" stands in the request. */
static SpartaStatus select_parameters(SpartaCall call, SpartaBytes request) {
#if CASE == EXIT_IN_SELECT
    exit(0);
#elif CASE == FAILS
    host->error(call, text("the moon is not full"));
    return SPARTA_FAILED;
#elif CASE == HUGE_ANSWER
    SpartaBytes huge = {calloc(1, (size_t)300 << 20), (size_t)300 << 20};
    host->result(call, huge);
    return SPARTA_OK;
#elif CASE == ANSWERS_NOTHING
    return SPARTA_OK;
#endif
    static char answer[1 << 20];
    size_t used = (size_t)sprintf(answer, "[");
    for (size_t i = 0; i + 8 <= request.len; i++) {
        if (memcmp(request.data + i, "\"role\":\"", 8)) continue;
        int q = i + 14 <= request.len && !memcmp(request.data + i + 8, "q_proj", 6);
        int head = i + 12 <= request.len && !memcmp(request.data + i + 8, "head", 4);
        int norm = i + 12 <= request.len && !memcmp(request.data + i + 8, "norm", 4);
        const char *changed = SPARSE ? "{\"sparse\": {\"probability\": 0.1}}" : "{\"reparam\": {\"tensors\": []}}";
        const char *one = q ? changed : head || (norm && CASE >= OWN) ? "\"dense\"" : "\"frozen\"";
        used += (size_t)sprintf(answer + used, "%s%s", used > 1 ? ", " : "", one);
    }
    sprintf(answer + used, "]");
    host->result(call, text(answer));
    return SPARTA_OK;
}

static SpartaStatus apply(SpartaCall call, const char *op, const uint32_t *inputs, size_t count, uint32_t *y) {
    size_t outputs = 0;
    if (host->graph_apply(call, text(op), inputs, count, y, 1, &outputs) == SPARTA_OK) return SPARTA_OK;
    host->error(call, host->last_error(call));
    return SPARTA_FAILED;
}

#if CASE >= OWN
#if CASE == OWN_KERNEL_IS_NO_WGSL
#define KERNEL "fn kernel(i: u32) {\\n    y[i] = 2.0 * z[i];\\n}"
#elif CASE == OWN_KERNEL_WRITES_INPUT
#define KERNEL "fn kernel(i: u32) {\\n    x[i] = 2.0;\\n    y[i] = x[i];\\n}"
#else
#define KERNEL "fn kernel(i: u32) {\\n    y[i] = 2.0 * x[i];\\n}"
#endif

#if CASE == OWN_BODY_IS_NONE
#define INPUT "8"
#else
#define INPUT "0"
#endif
#define TWICE "{\"op\": \"own\", \"name\": \"twice\", \"inputs\": [\"x\"], \"outputs\": [\"y\"], \"body\": {\"calls\": " \
    "[{\"op\": {\"op\": \"scale\", \"factor\": 2.0}, \"inputs\": [" INPUT "]}], \"outputs\": [1]}, \"wgsl\": {\"text\": \"" KERNEL "\"}}"

static int32_t twice(const SpartaTensor *inputs, size_t input_count, const SpartaTensor *outputs, size_t output_count) {
    static int said;
    if (!said++) fputs("the function of the plugin was called\n", stderr);
    if (input_count != 1 || output_count != 1 || inputs[0].rank != 2) return 1;
    size_t n = inputs[0].shape[0] * inputs[0].shape[1];
    float factor = CASE == OWN_FUNCTION_COMPUTES_OTHERS ? 2.5f : 2.0f;
    for (size_t i = 0; i < n; i++) outputs[0].data[i] = factor * inputs[0].data[i];
    return CASE == OWN_FUNCTION_FAILS;
}
#endif

static SpartaStatus forward(SpartaCall call, SpartaBytes site, uint32_t x, uint32_t w, const uint32_t *extra,
                            size_t extra_count, uint32_t *y) {
    (void)site, (void)extra, (void)extra_count;
    uint32_t inputs[] = {x, w};
#if CASE == NULL_POINTERS
    if (host->graph_rng(call, NULL) == SPARTA_OK || host->graph_shape(call, x, NULL, 4, NULL) == SPARTA_OK ||
        host->graph_apply(call, text("{\"op\": \"add\"}"), inputs, 2, NULL, 1, NULL) == SPARTA_OK)
        return SPARTA_OK;
    host->error(call, host->last_error(call));
    return SPARTA_FAILED;
#endif
    if (apply(call, "{\"op\": \"linear\", \"layout\": \"nt\", \"scale\": 1.0, \"bias\": false, \"residual\": false}", inputs, 2, y)) return SPARTA_FAILED;
#if CASE >= OWN
    size_t outputs = 0;
    const char *op = CASE == OWN_FUNCTION_FOR_ADD ? "{\"op\": \"scale\", \"factor\": 2.0}" : TWICE;
    if (host->graph_own(call, text(op), twice, y, 1, &inputs[0], 1, &outputs)) {
        host->error(call, host->last_error(call));
        return SPARTA_FAILED;
    }
    return apply(call, "{\"op\": \"scale\", \"factor\": 0.5}", inputs, 1, y);
#endif
#if CASE == OTHER_TYPE
    inputs[0] = *y;
    return apply(call, "{\"op\": \"cast\", \"to\": \"bf16\"}", inputs, 1, y);
#endif
    return SPARTA_OK;
}

static SpartaStatus merge(SpartaCall call, SpartaBytes site, uint32_t w, const uint32_t *extra, size_t extra_count,
                          uint32_t *merged) {
    (void)site, (void)extra, (void)extra_count;
    uint32_t inputs[] = {w};
    return apply(call, "{\"op\": \"scale\", \"factor\": 1.0}", inputs, 1, merged);
}

#if CASE >= FAILS_IN_PENALTY && CASE < OWN
static SpartaStatus penalty(SpartaCall call, SpartaBytes site, uint32_t w, const uint32_t *extra, size_t extra_count,
                            uint32_t *value) {
    host->error(call, text("no moon in penalty"));
    return CASE == FAILS_IN_PENALTY ? SPARTA_FAILED : SPARTA_OK;
}

static SpartaStatus update(SpartaCall call, SpartaBytes site, uint32_t lr, uint32_t *values, size_t value_count) {
    host->error(call, text("no moon in update"));
    return CASE == FAILS_IN_UPDATE ? SPARTA_FAILED : SPARTA_OK;
}
#endif

#if CASE >= ACTS && CASE < OWN
static SpartaStatus steps(SpartaCall call, SpartaBytes options) {
    (void)options;
#if CASE == FAILS_IN_STEPS
    host->error(call, text("no moon in steps"));
    return SPARTA_FAILED;
#endif
    host->result(call, text(CASE == NEVER ? "{\"every\": 0}" : "{\"every\": 1}"));
    return SPARTA_OK;
}

static SpartaStatus refused(SpartaCall call) {
    host->error(call, host->last_error(call));
    return SPARTA_FAILED;
}

static SpartaStatus on_step(SpartaCall call, SpartaBytes request) {
#if CASE >= FAILS_IN_PENALTY
    host->error(call, text("no moon in on_step"));
    return CASE == FAILS_IN_ON_STEP ? SPARTA_FAILED : SPARTA_OK;
#endif
    /* The first tensor of the request: `"tensors":[{"name":"..."`. */
    static const char before[] = "\"tensors\":[{\"name\":\"";
    SpartaBytes name = {memmem(request.data, request.len, before, sizeof before - 1), 0};
    name.data += sizeof before - 1;
    while (name.data[name.len] != '"') name.len++;
    static uint32_t indices[1 << 20];
    static float values[1 << 20];
    size_t size = 0, again = 0;
    if (host->step_read(call, text("indices"), name, NULL, 0, &size)) return refused(call);
    if (size > sizeof indices || host->step_read(call, text("indices"), name, (uint8_t *)indices, size, &again)) return refused(call);
    if (size != again || host->step_read(call, text("values"), name, (uint8_t *)values, size, &again)) return refused(call);
    SpartaBytes what = text("values"), data = {(const uint8_t *)values, size};
#if CASE == UNKNOWN_TENSOR
    name = text("moon");
#elif CASE == OTHER_LENGTH || CASE == IGNORES_REFUSAL
    data.len -= 4;
#elif CASE == HALF_A_FLOAT
    data.len -= 2;
#elif CASE == NOT_FINITE
    values[2] = 0.0f / 0.0f;
#elif CASE == OTHER_KIND
    what = text("weight");
#elif CASE == UNDECLARED_GRADIENT || CASE == UNDECLARED_WHOLE || CASE == UNKNOWN_SLOT
    what = text(CASE == UNDECLARED_GRADIENT ? "gradient" : CASE == UNDECLARED_WHOLE ? "whole_gradient" : "hindsight");
    return host->step_read(call, what, name, NULL, 0, &size) ? refused(call) : SPARTA_OK;
#elif CASE == NOT_ASCENDING || CASE == OUT_OF_RANGE || CASE == OTHER_SIZE
    what = text("indices"), data.data = (const uint8_t *)indices;
    if (CASE == NOT_ASCENDING) indices[1] = indices[0];
    if (CASE == OUT_OF_RANGE) indices[size / 4 - 1] = 0xffffffff;
    if (CASE == OTHER_SIZE) data.len -= 4;
#elif CASE == LONG_STATE
    static char state[(65 << 20) + 1];
    memset(state, '1', 65 << 20);
    host->result(call, text(state));
#elif CASE == NO_JSON
    host->result(call, text("{\"half\":"));
#endif
    if (!host->step_write(call, what, name, data) || CASE == IGNORES_REFUSAL) return SPARTA_OK;
    return refused(call);
}
#endif

static const SpartaMethod table = {
    .size = sizeof(SpartaMethod),
    .describe = CASE == NO_DESCRIBE ? NULL : describe,
    .select = select_parameters,
    .forward = forward,
    .merge = CASE == NO_MERGE ? NULL : merge,
#if CASE >= ACTS && CASE < OWN
    .steps = steps,
    .on_step = CASE == NO_ON_STEP ? NULL : on_step,
#endif
#if CASE >= FAILS_IN_PENALTY && CASE < OWN
    .penalty = penalty,
    .update = update,
#endif
};

static const SpartaInterface interface = {
    .size = sizeof(SpartaInterface),
    .id = {(const uint8_t *)SPARTA_METHOD_ID, sizeof(SPARTA_METHOD_ID) - 1},
    .table = &table,
};

static const SpartaInterface *const interfaces[] = {&interface};

static const SpartaPlugin plugin = {
    .size = sizeof(SpartaPlugin),
    .abi_major = SPARTA_ABI_MAJOR,
    .interface_count = 1,
    .interfaces = interfaces,
};

const SpartaPlugin *sparta_plugin_entry(const SpartaHost *given) {
    host = given;
    return &plugin;
}
