/* The C ABI of sparta-cli plugins: methods, tasks, backends and communicators in any language.
 *
 * A plugin is a shared library that exports
 *
 *     const SpartaPlugin *sparta_plugin_entry(const SpartaHost *host);
 *
 * Rules:
 * - Every struct starts with its size in bytes. A later minor version appends fields; read a field only if the size
 *   covers it. SpartaBytes never changes. Function pointers may be NULL only where noted.
 * - An interface is found by its id with a major version. A different major version is a different interface; the host
 *   rejects major versions that it does not know.
 * - The host owns all memory that crosses. Results and errors are passed to it as bytes, which it copies before the
 *   function returns. What the host passes in is valid until the plugin's function returns.
 * - Handles are opaque integers, chosen by the side that made them. A SpartaCall is valid until the plugin's function returns,
 *   and only on the thread that it was called on.
 * - Messages are JSON in UTF-8. Their forms are shown below; the Rust crate sparta-plugin defines the same types.
 * - A function returns SPARTA_OK, or SPARTA_FAILED after passing a message for the user to host->error.
 * - Exceptions must not cross. The host never unloads a library.
 */
#ifndef SPARTA_PLUGIN_H
#define SPARTA_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SPARTA_ABI_MAJOR 1
#define SPARTA_ABI_MINOR 5

#define SPARTA_METHOD_ID "sparta.method/1"
#define SPARTA_TASK_ID "sparta.task/1"
#define SPARTA_BACKEND_ID "sparta.backend/1"
#define SPARTA_COMMUNICATOR_ID "sparta.communicator/1"

typedef int32_t SpartaStatus;
#define SPARTA_OK 0
#define SPARTA_FAILED 1

typedef uint64_t SpartaCall;

/* Borrowed bytes; data may be NULL where len is 0. */
typedef struct SpartaBytes {
    const uint8_t *data;
    size_t len;
} SpartaBytes;

/* (5) A tensor of f32, row by row, of a SpartaOwnFunction. */
typedef struct SpartaTensor {
    float *data;
    const uint64_t *shape;
    size_t rank;
} SpartaTensor;

/* (5) Computes one of the plugin's own operations on the CPU: reads the inputs without changing them, and writes every
 * element of the outputs, which overlap nothing. It may be called on any thread, also concurrently, and keeps no
 * pointers. A result other than 0 is a failure, which ends the run. */
typedef int32_t (*SpartaOwnFunction)(const SpartaTensor *inputs, size_t input_count, const SpartaTensor *outputs,
                                     size_t output_count);

/* What the host offers; valid for the life of the process. */
typedef struct SpartaHost {
    size_t size;
    uint32_t abi_major;
    uint32_t abi_minor;
    /* Takes the error message of a call that returns SPARTA_FAILED. */
    void (*error)(SpartaCall call, SpartaBytes message);
    /* Takes the result of a call that returns a message. */
    void (*result)(SpartaCall call, SpartaBytes bytes);
    /* The message of the latest host function that failed in this call; valid until the next host function. */
    SpartaBytes (*last_error)(SpartaCall call);
    /* In a method's functions that take values: adds an operation to the graph. op is JSON: {"op": "<name>", attributes}.
     * Writes at most capacity values to outputs and their number to output_count. */
    SpartaStatus (*graph_apply)(SpartaCall call, SpartaBytes op, const uint32_t *inputs, size_t input_count,
                                uint32_t *outputs, size_t capacity, size_t *output_count);
    /* Writes at most capacity dimensions of a value to dims and their number to rank. */
    SpartaStatus (*graph_shape)(SpartaCall call, uint32_t value, uint64_t *dims, size_t capacity, size_t *rank);
    /* Writes the value that random operations take as their counter. */
    SpartaStatus (*graph_rng)(SpartaCall call, uint32_t *value);
    /* (4) In on_step: writes the size in bytes of what is read to byte_count and, if capacity is large enough, its
     * little-endian elements to out. what is "values", "gradient", "whole_gradient", "weight" or an optimizer slot ("m"
     * and "v" of AdamW), all f32, or "indices", u32; see on_step. */
    SpartaStatus (*step_read)(SpartaCall call, SpartaBytes what, SpartaBytes name, uint8_t *out, size_t capacity,
                              size_t *byte_count);
    /* (4) In on_step: changes "values" (f32) or "indices" (u32) once on_step has returned. If one call fails, on_step
     * counts as failed and nothing is changed. */
    SpartaStatus (*step_write)(SpartaCall call, SpartaBytes what, SpartaBytes name, SpartaBytes data);
    /* (5) Like graph_apply for {"op": "own", ...}, with a function that may compute it on the CPU, or NULL. */
    SpartaStatus (*graph_own)(SpartaCall call, SpartaBytes op, SpartaOwnFunction function, const uint32_t *inputs,
                              size_t input_count, uint32_t *outputs, size_t capacity, size_t *output_count);
} SpartaHost;

typedef struct SpartaInterface {
    size_t size;
    SpartaBytes id;    /* SPARTA_METHOD_ID ... */
    const void *table; /* the SpartaMethod, SpartaTask, SpartaBackend or SpartaCommunicator of that id */
} SpartaInterface;

typedef struct SpartaPlugin {
    size_t size;
    uint32_t abi_major; /* SPARTA_ABI_MAJOR */
    uint32_t abi_minor; /* SPARTA_ABI_MINOR */
    size_t interface_count;
    const SpartaInterface *const *interfaces;
} SpartaPlugin;

/* sparta.method/1. Functions may be called from any thread, several at a time.
 *
 * MethodInfo  {"name": "lora", "version": "0.1.0", "summary": "...", "default_lr": 2e-4, "options": [OptionInfo]}
 * OptionInfo  {"name": "lora-r", "help": "...", "default": 8 | null if the user must give it, "kind": OptionKind}
 * OptionKind  {"type": "float", "min": 0.0, "max": 1.0, "min_open": true} | {"type": "int", "min": 1, "max": 1024}
 *             | {"type": "bool"} | {"type": "text"}
 * Parameter   {"name": "model.layers.0.mlp.up_proj.weight", "shape": [out, in], "dtype": "f32" | "bf16" | "f16",
 *              "role": "embedding" | "norm" | "q_proj" | "k_proj" | "v_proj" | "o_proj" | "gate_proj" | "up_proj"
 *              | "down_proj" | "qkv_proj" | "gate_up_proj" | "bias" | "lm_head" | "head", "layer": 0 | null}; "qkv_proj" and
 *              "gate_up_proj" are q, k and v, or gate and up, as one layer
 * Options     {"lora-r": 8, ...}: checked values of all options
 * Selection   "frozen" | "dense" | {"sparse": {"probability": 0.05}} | {"reparam": {"tensors": [ExtraTensor]}}
 *             | {"chosen": {"indices": [0, 17, ...]}} (3): these elements, flat, row-major, ascending
 *             | {"magnitude": {"share": 0.05, "order": "largest" | "smallest", "scope": "tensor" | "model"
 *                              | {"group": 4}}} (3): the elements with the largest or smallest |w| in the tensor, in all tensors
 *               with the same selection, or in groups of this many neighbours in a row
 *             | {"scored": {"share", "order" and "scope" as of "magnitude", "score": Score}} (4)
 *             | {"rated": {"lr_factor": 0.1, "weight_decay": 0.0, "selection": Selection}} (4): a dense or sparse selection
 *               with its own rates; either may be left out
 * Score       {"gradient": {"batches": 8, "squared": false}}: the sum of |g| or g^2 over the first batches of the run
 *             | {"weight_gradient": {"batches": 8}}: the same sum of |w g|
 *             | {"change": {"steps": 100}}: |w after - w before| over this many steps that train all of these tensors
 * ExtraTensor {"name": "lora_A", "shape": [8, in], "init": Init, "trained": true (3), "shared": false (3),
 *              "lr_factor": 16.0 (4), "weight_decay": 0.0 (4)}; "trained": false: keeps its initial values; "shared": all
 *              weights that add this name share one tensor
 * Init        "zeros" | {"uniform": {"bound": 0.1}} | {"normal": {"std": 0.02}} | {"constant": {"value": 1.0}} (3)
 *             | "row_norms" (3): the Euclidean norms of the weight's rows, [out]
 * Site        {"parameter": Parameter, "options": Options, "training": true}
 *
 * Steps (4)   null | {"every": 100, "gradients": false, "whole_gradients": false}: on_step is called at this interval of
 *              optimizer steps; "gradients" and "whole_gradients" declare that it reads those, which takes device memory
 * StepInfo (4) {"step": 100, "total_steps": 1000, "options": Options, "state": any JSON, "tensors": [OwnTensor]}
 * OwnTensor (4) {"name": "...", "form": "dense" | "sparse" | "extra" | "frozen", "shape": [n], "parameter": Parameter}; the name
 *              is the parameter's or, for an added tensor, that without ".weight" and with its own: "...q_proj.lora_A"; the shape
 *              is that of its values, for a sparse one the number of its elements
 *
 * (3), (4) and (5) mark what minor versions 3, 4 and 5 added.
 *
 * A reparametrized linear layer of the decoder, or classification head, computes forward. Any other reparametrized
 * parameter (4), such as a norm, a bias, the embeddings or the vocabulary head, is replaced by what merge returns.
 *
 * Operations with their inputs; a, b and x are f32 or bf16, w is of any float type. All have gradients.
 *   {"op": "linear", "layout": "nt" | "nn" | "tn", "scale": 1.0, "bias": false, "residual": false}: a, b -> scale op(a) op(b)
 *       (nt: a [m, k], b [n, k]; nn: a [m, k], b [k, n]; tn: a [k, m], b [k, n]), then bias [n] and residual [m, n] if given
 *   {"op": "add"} | {"op": "mul"} (3) | {"op": "div"} (3): a [m, n], b of its shape, a row [n] or a column [m, 1] (3)
 *   {"op": "scale", "factor": 0.5}: x; {"op": "scale_by"}: x and f32 [1], through which no gradient goes
 *   {"op": "fill", "value": 0.5, "shape": [n]}: f32
 *   {"op": "map", "function": "exp" | "rsqrt" | "abs" | "relu" | "round" (5) | "step" (5)} (3): x; round is to the
 *       nearest whole number, of two the even one, step is 1 above 0 and otherwise 0; the gradients of both are 0
 *   {"op": "gated_act", "act": "silu" | "gelu_tanh"}: gate, up -> act(gate) up
 *   {"op": "column_sum"}: x [m, n] -> f32 [n]; {"op": "row_sum"} (3): x [m, n] -> f32 [m, 1]
 *   {"op": "broadcast", "shape": [m, n]} (3): a row [n] or a column [m, 1]; {"op": "transpose"} (3): x [m, n] -> [n, m]
 *   {"op": "slice", "rows": [0, 2], "columns": [0, 4]} (3): x; {"op": "unslice", "shape": [m, n], "at": [0, 0]} (3): x, a
 *       block of a matrix of zeros
 *   {"op": "detach"} (3): x, through which no gradient goes
 *   {"op": "rms_norm", "eps": 1e-6, "plus_one": false}: x [T, k n], w [n]
 *   {"op": "dropout", "p": 0.1, "salt": 1}: x and the value of graph_rng, in training
 *   {"op": "soft_cap", "cap": 30.0}: x; {"op": "cast", "to": "f32" | "bf16"}: x
 *   {"op": "own", "name": "gate", "inputs": ["x", "w"], "outputs": ["y"], "body": Body, "gradient": Gradient or absent,
 *       "wgsl": Wgsl or absent} (5): one of the plugin's own operations, which computes what body does. Names are words
 * Body (5)     {"calls": [{"op": {"op": "mul"}, "inputs": [0, 1]}, ...], "outputs": [2]}: operations on numbered values;
 *              the inputs come first, then the outputs of each call
 * Gradient (5) {"of": [0], "body": Body, "straight_through": true}: maps the inputs, the outputs and the gradients of the
 *              outputs, in this order, to the gradients of the inputs "of"; the others have none. Without it, body is
 *              differentiated. "straight_through", by default false, says that it deliberately is not the derivative,
 *              so that no check compares it with differences
 * Wgsl (5)     {"text": "fn kernel(i: u32) { y[i] = x[i] * w[i]; }", "launch": "elements", "lanes": 64}: text declares
 *              fn kernel(i: u32), called for each element of the first output, or with "launch": "rows"
 *              fn kernel(row: u32, lane: u32), called by LANES threads, the "lanes" of a workgroup, for each row of the
 *              first output. Inputs and outputs are arrays of f32 with their names; sizes.x_0 and sizes.x_1 are the
 *              dimensions of x. It must not write its inputs; accesses are checked. Devices without WGSL, and tensors
 *              other than f32, use body; the same is true of the function of graph_own
 */
typedef struct SpartaMethod {
    size_t size;
    /* Result: MethodInfo. */
    SpartaStatus (*describe)(SpartaCall call);
    /* Request: {"parameters": [Parameter], "options": Options}; result: [Selection], one per parameter. */
    SpartaStatus (*select)(SpartaCall call, SpartaBytes request);
    /* x is [T, in], w [out, in], extra the tensors that select added; writes the [T, out] output to y.
     * NULL if no linear layer is reparametrized. */
    SpartaStatus (*forward)(SpartaCall call, SpartaBytes site, uint32_t x, uint32_t w, const uint32_t *extra,
                            size_t extra_count, uint32_t *y);
    /* Writes the parameter with which the plain model computes the same result, f32, to merged; w is f32.
     * NULL if nothing is reparametrized. */
    SpartaStatus (*merge)(SpartaCall call, SpartaBytes site, uint32_t w, const uint32_t *extra, size_t extra_count,
                          uint32_t *merged);
    /* (4) Like forward, for a layer with a bias [out]. May be NULL: then the bias is added to the result of forward. */
    SpartaStatus (*forward_with_bias)(SpartaCall call, SpartaBytes site, uint32_t x, uint32_t w, uint32_t bias,
                                      const uint32_t *extra, size_t extra_count, uint32_t *y);
    /* (4) Like merge, for a layer with a bias, f32; writes weight and bias to merged. May be NULL: then the bias stays. */
    SpartaStatus (*merge_with_bias)(SpartaCall call, SpartaBytes site, uint32_t w, uint32_t bias, const uint32_t *extra,
                                    size_t extra_count, uint32_t (*merged)[2]);
    /* (4) May be NULL. Writes a term of the training loss, f32 [1], to value, or leaves value unchanged. It counts once per
     * optimizer step, however many micro-batches that has. w has any float type, extra are f32. */
    SpartaStatus (*penalty)(SpartaCall call, SpartaBytes site, uint32_t w, const uint32_t *extra, size_t extra_count,
                            uint32_t *value);
    /* (4) May be NULL. values are the extra tensors after the optimizer's update, f32; overwrites those that change with
     * values of their shapes. Nothing changes in a step that is not finite. lr is the step's learning rate, f32 [1]. For a
     * shared tensor, the first weight decides. */
    SpartaStatus (*update)(SpartaCall call, SpartaBytes site, uint32_t lr, uint32_t *values, size_t value_count);
    /* (4) Result: Steps. NULL if on_step is never called. */
    SpartaStatus (*steps)(SpartaCall call, SpartaBytes options);
    /* (4) Called after an optimizer step that changed something. Request: StepInfo; result: the state for the next call, any
     * JSON; without a result the state stays. It may depend only on the request and what it reads.
     *   "values": for a sparse tensor, what is added to its elements; "gradient": the one that updated it, clipped;
     *   "indices": its elements, flat, row-major, ascending; "weight": for a parameter that is not frozen; "whole_gradient": for
     *   every element of a parameter that is sparse or reparametrized, over the step's batch, at the model's current values.
     * Written values must be finite and as many as there are. Written indices must ascend within the parameter and be as many as
     * before: elements that stay keep value and optimizer state, those dropped return to the model's values, and new ones
     * start at zero; values written in the same call belong to the new elements. NULL if steps is. */
    SpartaStatus (*on_step)(SpartaCall call, SpartaBytes request);
} SpartaMethod;

/* sparta.task/1. describe and open may be called from any thread, several at a time; the functions of one data set and
 * its iterators from one thread at a time. A data set is closed after its iterators.
 *
 * (3) marks what minor version 3 added; it may be left out.
 *
 * TaskPluginInfo {"name": "glue", "version": "0.1.0", "tasks": [TaskInfo], "options": [OptionInfo] (3)}; all its
 *                tasks share the options
 * TaskInfo       {"id": "rte", "title": "...", "labels": ["entailment", "not_entailment"], "target": Target (3), "weights": [1.0, 2.5] (3),
 *                 "metrics": ["accuracy"], "primary": "accuracy", "pair": true, "prompt": Prompt or absent};
 *                "labels" are at least two classes, or the name of a number; [] if tokens are learned and, in describe,
 *                if the labels are found in the data. "primary" is one of "metrics", of which larger is better;
 *                "weights" are those of the examples of each class in the training loss
 * Target (3)     "class": one of the labels, the default with labels; metrics "accuracy", "f1", "mcc", "precision",
 *                         "recall"
 *                | "classes": any number of the labels; metrics "accuracy", "exact", "f1", "precision", "recall"
 *                | "number": metrics "pearson", "spearman", "mse", "mae"; the last two, of which smaller is better, cannot
 *                           be primary
 *                | "tokens": each next token is learned, the default without labels; metrics "perplexity",
 *                            "log_likelihood"
 * Prompt         {"template": "If {text}, then {pair}?", "verbalizers": ["Yes", "No"]}, for instruction models: {text}
 *                once, {pair} once in a pair task only; one word per label
 * OpenRequest    {"task": "rte", "data": "directory", "splits": ["test"], "options": Options (3), "trained": TaskInfo (3),
 *                 "other_data": true (3)}; "splits" are those that will be read; without it, all. "trained" is the task
 *                as it was when a model was trained on it, whose labels must be kept in their order;
 *                "other_data" says that the model was not trained on this data: a single file is then the requested split
 * Recipe         {"train": Source, "dev": Source, "test": Source, "notes": ["..."], "task": TaskInfo (3)}; "task" is the
 *                task as found in the data, if the description leaves something open
 * Source         {"parts": ["train.tsv"], "take": "all" | {"draw": {"count": 300}} | {"rest": {"cap": 100000 | null}}
 *                 | {"share": {"from": 0.8, "to": 1.0}} (3)}; no parts: no such split. A share takes the examples in an
 *                order drawn by the seed, in which each label gets about its share and equal texts stay together
 * Example        {"text": "...", "pair": "..." (only in a pair task), "label": 0}; for targets other than a class,
 *                instead of "label": "labels": [0, 2] (3), "number": 3.5 (3); for tokens, instead of "text":
 *                "messages": [{"role": "user", "content": "...", "context": false}] (3), which the host formats with the
 *                model's chat template; an answer with "context" true is read, not learned; and "segments":
 *                [{"text": "...", "trained": true}] (3), concatenated if there are no messages or no template
 */
typedef struct SpartaTask {
    size_t size;
    /* Result: TaskPluginInfo. */
    SpartaStatus (*describe)(SpartaCall call);
    /* Request: OpenRequest; writes a handle of the data set. */
    SpartaStatus (*open)(SpartaCall call, SpartaBytes request, uint64_t *dataset);
    /* Result: Recipe. */
    SpartaStatus (*recipe)(SpartaCall call, uint64_t dataset);
    /* Starts reading a part that the recipe names; writes a handle of the iterator. */
    SpartaStatus (*examples)(SpartaCall call, uint64_t dataset, SpartaBytes part, uint64_t *iterator);
    /* Result: [Example], at most max of them; [] at the end. */
    SpartaStatus (*next)(SpartaCall call, uint64_t iterator, size_t max);
    void (*close_examples)(uint64_t iterator);
    void (*close)(uint64_t dataset);
} SpartaTask;

/* A piece of work of submit. Its layout never changes. */
typedef struct SpartaWork {
    uint64_t kind; /* SPARTA_WORK_WRITE or SPARTA_WORK_RUN */
    uint64_t handle; /* the buffer to write, or the prepared plan to run */
    size_t offset; /* for a write: the first element to write */
    SpartaBytes data; /* for a write */
} SpartaWork;

#define SPARTA_WORK_WRITE 0
#define SPARTA_WORK_RUN 1

/* sparta.backend/1. describe, devices and open may be called from any thread; the functions of one opened backend from
 * one thread at a time. Offsets and lengths count elements of a buffer's dtype ("f32", "bf16", "f16", "u32"). An error
 * message is a BackendError or plain text.
 *
 * BackendPluginInfo {"name": "cuda", "version": "0.1.0", "ops": ["linear", ...]}; without "ops", which minor version 2
 *                   added, the backend counts as having the operations of minor version 1
 * DeviceInfo        {"id": "cuda:0", "name": "...", "kind": "discrete_gpu" | "integrated_gpu" | "virtual_gpu"
 *                    | "software_gpu" | "cpu" | "other", "driver": "...", "memory": bytes | null, "max_buffer": bytes,
 *                    "in_place": true, "activations": ["f32", "bf16"], "products": ["bf16"],
 *                    "max_binding": bytes | null}; minor version 2 added the last three: the types of activations it
 *                    supports and the 16-bit types that it multiplies faster than f32 (by default only f32), and how
 *                    much of a buffer WGSL kernels may bind, null for a backend with its own kernels. May have
 *                    "multiplier": "...", which tells people how 16-bit floats are multiplied, and
 *                    "own_kernels": ["wgsl", "function"] (5): the kernels that it runs of plugins' own operations
 *                    whose tensors are all f32, through prepare_own; otherwise plans contain their subgraphs. May
 *                    have "tf32": true: it takes plans with "tf32": true, whose products may round f32 factors to TF32
 * BackendError      {"out_of_memory": {"device": "...", "what": "...", "bytes": 1}}
 *                   | {"device_lost": {"device": "...", "during": "...", "reason": "..."}}
 *                   | {"op": {"device": "...", "op": "...", "reason": "..."}} | {"other": {"device": "...",
 *                   "reason": "..."}}
 * Plan              the JSON form of sparta_graph::Plan. A plan with a key or an operation that the backend does not
 *                   know must be rejected, not run without it
 */
typedef struct SpartaBackend {
    size_t size;
    /* Result: BackendPluginInfo. */
    SpartaStatus (*describe)(SpartaCall call);
    /* Result: [DeviceInfo]. */
    SpartaStatus (*devices)(SpartaCall call);
    /* device is the id of a DeviceInfo. Result: the DeviceInfo of what was opened; writes a handle of the backend. */
    SpartaStatus (*open)(SpartaCall call, SpartaBytes device, uint64_t *backend);
    void (*close)(uint64_t backend);
    /* Zero-filled memory for len elements; writes a handle of the buffer. label names it in messages. */
    SpartaStatus (*alloc)(SpartaCall call, uint64_t backend, SpartaBytes dtype, size_t len, SpartaBytes label,
                          uint64_t *buffer);
    SpartaStatus (*free)(SpartaCall call, uint64_t backend, uint64_t buffer);
    /* Little-endian values from element offset on. */
    SpartaStatus (*write)(SpartaCall call, uint64_t backend, uint64_t buffer, size_t offset, SpartaBytes data);
    SpartaStatus (*read)(SpartaCall call, uint64_t backend, uint64_t buffer, size_t offset, uint8_t *out,
                         size_t byte_count);
    /* Binds a plan to an arena and one buffer per external tensor; writes a handle of the prepared plan. */
    SpartaStatus (*prepare)(SpartaCall call, uint64_t backend, SpartaBytes plan, uint64_t arena,
                            const uint64_t *externals, size_t external_count, uint64_t *prepared);
    SpartaStatus (*run)(SpartaCall call, uint64_t backend, uint64_t prepared);
    SpartaStatus (*release)(SpartaCall call, uint64_t backend, uint64_t prepared);
    /* Since minor version 1, may be NULL. Like run. Result: [integer], the nanoseconds of each call of the plan. */
    SpartaStatus (*run_profiled)(SpartaCall call, uint64_t backend, uint64_t prepared);
    /* Since minor version 2, may be NULL. Writes the bytes that the backend has allocated on the device: now, and at
     * most so far. Fails if the backend does not count them. */
    SpartaStatus (*memory)(SpartaCall call, uint64_t backend, uint64_t *in_use, uint64_t *peak);
    /* Since minor version 2, may be NULL. Does pieces of work in order, with one upload and one submission if the
     * device can. */
    SpartaStatus (*submit)(SpartaCall call, uint64_t backend, const SpartaWork *work, size_t work_count);
    /* Since minor version 2, may be NULL; then fetch is NULL, too. Requests what the buffer holds after all work so far,
     * without waiting for it; writes a handle of the read. */
    SpartaStatus (*request)(SpartaCall call, uint64_t backend, uint64_t buffer, size_t offset, size_t byte_count,
                            uint64_t *read);
    /* Since minor version 2, may be NULL. Waits for a requested read, copies it to out, as many bytes as were requested,
     * and ends its handle. */
    SpartaStatus (*fetch)(SpartaCall call, uint64_t backend, uint64_t read, uint8_t *out, size_t byte_count);
    /* Since minor version 5, may be NULL; then no plan has functions. Like prepare, for a plan with "own" operations: a
     * function or NULL for each of them, in order. */
    SpartaStatus (*prepare_own)(SpartaCall call, uint64_t backend, SpartaBytes plan, uint64_t arena,
                                const uint64_t *externals, size_t external_count, const SpartaOwnFunction *functions,
                                size_t function_count, uint64_t *prepared);
} SpartaBackend;

/* sparta.communicator/1: the processes that a launcher has started together. describe and launched may be called from any
 * thread; the functions of what was joined from one thread at a time. All processes call the same functions in the same
 * order; each waits for the others as long as they live. If a process is lost, all end.
 *
 * CommunicatorPluginInfo {"name": "mpi", "version": "0.1.0"}
 * Launch                 {"launcher": "mpirun", "rank": 1, "size": 4}
 * Place                  {"rank": 1, "size": 4, "local_rank": 0, "host": "node7", "library": "MPICH Version: 5.0.2"};
 *                        local_rank counts the processes on the same machine
 */
typedef struct SpartaCommunicator {
    size_t size;
    /* Result: CommunicatorPluginInfo. */
    SpartaStatus (*describe)(SpartaCall call);
    /* Result: Launch, or null if this process was started alone. Looks only at the environment. */
    SpartaStatus (*launched)(SpartaCall call);
    /* Meets the other processes, once. Result: Place; writes a handle. */
    SpartaStatus (*join)(SpartaCall call, uint64_t *communicator);
    /* Ends the communicator, once the other processes end theirs. */
    void (*leave)(uint64_t communicator);
    SpartaStatus (*barrier)(SpartaCall call, uint64_t communicator);
    /* Overwrites data with that of the process root. */
    SpartaStatus (*broadcast)(SpartaCall call, uint64_t communicator, size_t root, uint8_t *data, size_t byte_count);
    /* Writes what each process has to all, in the order of ranks: byte_count is size times own.len. */
    SpartaStatus (*all_gather)(SpartaCall call, uint64_t communicator, SpartaBytes own, uint8_t *all, size_t byte_count);
    /* Overwrites values with their sums over all processes, in any order, but the same in each process. */
    SpartaStatus (*all_reduce)(SpartaCall call, uint64_t communicator, float *values, size_t count);
    /* Ends all processes, for this reason. */
    void (*abort)(uint64_t communicator, SpartaBytes reason);
} SpartaCommunicator;

const SpartaPlugin *sparta_plugin_entry(const SpartaHost *host);

#ifdef __cplusplus
}
#endif

#endif
