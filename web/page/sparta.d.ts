/** Called while something is loaded, with the bytes so far and in all. */
export type Progress = (done: number, total: number) => void;

/** A run. All names are those of files and directories that were given to `put` or `load`. */
export interface Job {
    /** A directory in the Hugging Face layout, or a GGUF file. */
    model: string;
    /** A table, or a directory of them. */
    data: string;
    /** `classify` for any table with labels, `sft` for prompts and answers, `text` for documents, or a task of GLUE. */
    task: string;
    method: 'sparta' | 'lora' | 'full' | 'head';
    /** Options of `sparta-cli run` by name, without dashes: `{ epochs: 4, 'batch-size': 16, lr: 5e-3 }`. */
    options?: Record<string, string | number | boolean | null>;
    /** Options of the method and the task, as `sparta-cli plugin list` names them. */
    methodOptions?: Record<string, unknown>;
    taskOptions?: Record<string, unknown>;
    /** Puts each text into a prompt for an instruction model. */
    instruct?: boolean;
    /** The run's directory, which is emptied once the plan fits; neither `model` nor `data` is in it. */
    out: string;
    /** Bytes that the run may take on the GPU. Browsers do not reveal how many it has; if given, the run is planned to fit them. */
    memory?: number | null;
}

export interface Device {
    id: string;
    name: string;
    kind: string;
    driver: string;
    /** In bytes; that of a software device only if the browser reveals it. */
    memory: number | null;
    max_buffer: number;
    max_binding: number | null;
}

/** `plan.json` of a run directory. */
export interface Plan {
    total_steps: number;
    parameters: number;
    trainable: { body: number; head: number; density: number };
    /** Bytes on the device by kind. */
    memory: Record<string, number>;
    /** The metric that the run is compared by; empty without any. */
    primary: string;
    labels: string[];
    /** Anything unusual. */
    notes?: string[];
}

export interface Step {
    step: number;
    total_steps: number;
    epoch: number;
    /** `null` if it is not finite: the step was skipped. */
    loss: number | null;
    lr: number;
    /** As `loss`. */
    grad_norm: number | null;
    tokens: number;
}

/** Besides these the task's metrics by name: `accuracy`, `f1` ... */
export interface Metrics {
    examples: number;
    loss: number;
    confusion: number[][];
    [metric: string]: unknown;
}

export interface Evaluation {
    step: number;
    split: string;
    metrics: Metrics;
    best: boolean;
}

/** `result.json` of a run directory. */
export interface Result {
    stopped: 'completed' | 'early_stopping' | 'interrupted';
    steps: number;
    /** Steps without an update, as a gradient was not finite. */
    skipped_steps: number;
    /** The step whose state was kept, with early stopping. */
    best_step: number | null;
    /** Metrics of the saved state; absent after an interruption. */
    dev: Metrics | null;
    test: Metrics | null;
    training_seconds: number;
    tokens_per_second: number;
    /** Bytes allocated on the device, and those planned. */
    device_memory: number;
    planned_memory: number;
}

/** What is called while a job runs. */
export interface Listener {
    plan?(plan: Plan, more: { text: string }): void;
    step?(step: Step, more: { tokensPerSecond: number }): void;
    eval?(evaluation: Evaluation): void;
    /** Examples measured of a split or, before training, for the `scores` by which a method chooses. */
    progress?(progress: { split: string; done: number; total: number }): void;
    message?(text: string): void;
    /** A piece of a text that is being written. */
    piece?(text: string): void;
}

/** A label with its probability, or a number under its name. */
export interface Output {
    label: string;
    value: number;
}

export interface Generated {
    text: string;
    tokens: number;
    /** What ended the text: the model, the number of tokens, the context, or `stop`. */
    finish: 'stop' | 'length' | 'context' | 'interrupted';
    prompt_tokens: number;
}

/** An example as it is trained on, token by token. */
export interface Example {
    split: string;
    /** Its place in the split, from 1. */
    number: number;
    ids: number[];
    tokens: string[];
    /** Whether each token is trained on; empty if the example has a label instead. */
    trained: boolean[];
    label?: string;
    /** Why it is not used. */
    left_out?: string;
    /** Its number of tokens before it was cut. */
    cut_from?: number;
}

/** The trainer in a worker. Jobs are done one after the other; each promise is rejected with the sentence that `sparta-cli` would print. */
export class Sparta {
    private constructor();
    /**
     * Loads the program; `worker` is the address of `worker.js`, on the page's own origin. Errors: a browser without WebGPU or
     * without JavaScript Promise Integration.
     */
    static start(worker?: URL | string): Promise<Sparta>;
    /** Opens the browser's device, and says what it offers. */
    device(): Promise<Device>;
    /** Keeps a file in memory, as bytes that the caller has. It is read in parts. Errors: more than 2 GiB, or 4 GiB in all. */
    put(name: string, blob: Blob, progress?: Progress): Promise<void>;
    /** Keeps a file in memory, from a URL. Errors: the server's, and those of `put`. */
    load(name: string, url: string | URL, progress?: Progress): Promise<void>;
    read(name: string): Promise<Uint8Array>;
    /** The names of all files below a directory. */
    list(name: string): Promise<string[]>;
    remove(name: string): Promise<void>;
    /** Bytes of the program's memory in the tab, files included: the most so far, as it never shrinks. Answered during jobs, too. */
    memory(): Promise<number>;
    /** What a run would do. Errors: it cannot be done, or does not fit the device. */
    plan(job: Job): Promise<{ plan: Plan; text: string }>;
    /** Trains. The run's directory then has all that `sparta-cli run` writes; `adapter` in it is the adapter. */
    train(job: Job, on?: Listener): Promise<Result>;
    /** Continues the run in `out` from its last checkpoint, after a stop or an error. */
    resume(run: { out: string; memory?: number | null }, on?: Listener): Promise<Result>;
    /** The first examples of a split as a run would train on them. */
    examples(job: Job, which?: { split?: 'train' | 'dev' | 'test'; first?: number }): Promise<Example[]>;
    /** Measures an adapter on a split of the run's data, or of other `data`. */
    evaluate(
        what: { adapter: string; model: string; data?: string; split?: string; maxExamples?: number },
        on?: Listener,
    ): Promise<Metrics>;
    /** The labels of texts, or of pairs of texts. */
    predict(
        what: { adapter: string; model: string; texts: (string | [string, string])[] },
        on?: Listener,
    ): Promise<Output[][]>;
    /** Continues a prompt or, with `chat`, answers it. Without an adapter `adapter` is the model. */
    generate(
        what: {
            adapter: string;
            model?: string;
            prompt: string;
            chat?: boolean;
            maxTokens?: number;
            temperature?: number;
            seed?: number;
        },
        on?: Listener,
    ): Promise<Generated>;
    /**
     * Stops training after the current step, keeping what was learned; or stops writing a text, whose beginning is the result.
     * Other jobs do not stop.
     */
    stop(): void;
    /** Ends the worker and gives its memory back. All promises, later ones too, are rejected. */
    close(): void;
}
