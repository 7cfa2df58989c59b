// What stands in for the program in the worker of the page: it keeps files, and a job runs until it is stopped.
import { emit, stopped } from './host.js';

WebAssembly.promising = (work) => work;

const files = new Map();
let asked = '';
const tell = (event) => emit(JSON.stringify(event));
const write = (name, text) => files.set(name, new TextEncoder().encode(text));
/** The steps of a run: more than any machine does before it is stopped. */
const STEPS = 1e5;

export function create(name) {
    files.set(name, new Uint8Array());
}

export function append(name, part) {
    const before = files.get(name);
    const all = new Uint8Array(before.length + part.length);
    all.set(before);
    all.set(part, before.length);
    files.set(name, all);
}

export const read = (name) => files.get(name).slice();
export const list = (name) => [...files.keys()].filter((file) => file.startsWith(`${name}/`));
export const remove = (name) => [name, ...list(name)].forEach((file) => files.delete(file));
export const refused = () => 0;
export const ask = (request) => { asked = request; };

/** Calls `each` until the job is to stop; returns how often it did. */
async function until(each) {
    for (let count = 1; ; count += 1) {
        each(count);
        await new Promise((resolve) => { setTimeout(resolve, 20); });
        if (stopped()) {
            return count;
        }
    }
}

async function train(out, before) {
    tell({ event: 'plan', value: { total_steps: STEPS, memory: {}, primary: 'accuracy' }, text: 'a plan' });
    const step = (count) => ({ step: before + count, total_steps: STEPS, loss: 1 });
    const steps = before + await until((count) => tell({ event: 'step', value: step(count), tokensPerSecond: 1 }));
    write(`${out}/adapter/adapter.json`, JSON.stringify({ method: 'sparta', trained_in_body: steps }));
    write(`${out}/checkpoints/last`, String(steps));
    return { stopped: 'interrupted', steps, dev: null, test: null };
}

/** A trap in a callback of the browser: of a promise, or of what is done later. */
function trap(prompt) {
    const fall = () => { throw new WebAssembly.RuntimeError('unreachable'); };
    prompt === 'promise' ? Promise.resolve().then(fall) : queueMicrotask(fall);
    return new Promise(() => {});
}

const jobs = {
    device: () => ({ name: 'stand-in', kind: 'gpu', max_buffer: 2 ** 28 }),
    train: ({ job }) => {
        if (job.memory !== undefined && job.memory !== null) {
            throw new Error('the run needs more memory');
        }
        remove(job.out);
        return train(job.out, 0);
    },
    resume: ({ out }) => train(out, Number(new TextDecoder().decode(files.get(`${out}/checkpoints/last`)))),
    predict: ({ adapter, model, texts }) => texts.map(() => [{ label: `${adapter} on ${model}`, value: 1 }]),
    generate: async ({ prompt }) => {
        if (prompt === 'promise' || prompt === 'callback') {
            return trap(prompt);
        }
        const tokens = await until(() => tell({ event: 'piece', value: ' word' }));
        return { text: ' word'.repeat(tokens), tokens, finish: 'interrupted', prompt_tokens: 1 };
    },
};

async function work() {
    const request = JSON.parse(asked);
    try {
        tell({ event: 'result', value: await jobs[request.do](request) });
    } catch (error) {
        tell({ event: 'error', value: error.message });
    }
}

export default async () => ({ memory: { buffer: new ArrayBuffer(8) }, sparta_work: work });
