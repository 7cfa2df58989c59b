// The program in a worker: the page stays responsive, and a hidden tab is not slowed down. Calls are done one after the other.
import { host } from './host.js';

let ended = null;

async function start() {
    if (typeof WebAssembly.promising !== 'function') {
        throw new Error('this browser lacks JavaScript Promise Integration for WebAssembly, by which the program waits for the '
            + 'GPU; Chrome and Edge have it from version 137');
    }
    if (!navigator.gpu) {
        throw new Error('this browser has no WebGPU here; it needs a page from https or localhost, and a browser with WebGPU');
    }
    const program = await import('./program.js');
    const raw = await program.default({ module_or_path: new URL('./program_bg.wasm', import.meta.url) });
    return { program, memory: raw.memory, work: WebAssembly.promising(raw.sparta_work) };
}

const started = start();
// Each call is answered with its error.
started.catch(() => {});
let last = Promise.resolve();
/** Rejects the job that is being done. */
let fail = () => {};

/** Why the program has ended, if this error has ended it. */
function end(error, program) {
    const refused = program.refused();
    if (refused > 0) {
        ended ??= `the tab has no memory for ${Math.ceil(refused / 2 ** 20)} MiB more, of 4 GiB in all; reload the page, and use `
            + 'a smaller model, or a method that trains less of it';
    }
    ended ??= `the program has failed, reload the page: ${error.message ?? error}`;
}

// A trap in a callback of the browser reaches no call, and the job would wait for ever.
for (const type of ['error', 'unhandledrejection']) {
    addEventListener(type, (event) => {
        const error = event.reason ?? event.error;
        if (error instanceof WebAssembly.RuntimeError || error instanceof RangeError) {
            event.preventDefault();
            started.then(({ program }) => end(error, program));
            fail(error);
        }
    });
}

const calls = {
    start: async () => true,
    create: async ({ program }, { name, room }) => program.create(name, room),
    append: async ({ program }, { name, bytes }) => program.append(name, bytes),
    read: async ({ program }, { name }) => program.read(name),
    list: async ({ program }, { name }) => program.list(name),
    remove: async ({ program }, { name }) => program.remove(name),
    memory: async ({ memory }) => memory.buffer.byteLength,
    work: ({ program, work }, { request, id }) => new Promise((resolve, reject) => {
        fail = reject;
        host.stop = false;
        host.listener = ({ event, value, ...more }) => {
            if (event === 'result') {
                resolve(value);
            } else if (event === 'error') {
                reject(new Error(value));
            } else if (event === 'panic') {
                ended = `the program has failed, reload the page: ${value}`;
            } else {
                postMessage({ id, event, value, ...more });
            }
        };
        program.ask(JSON.stringify(request));
        work().catch(reject);
    }),
};

async function answer({ id, call, ...arguments_ }) {
    try {
        const loaded = await started;
        if (ended !== null) {
            throw new Error(ended);
        }
        try {
            const value = await calls[call](loaded, { ...arguments_, id });
            postMessage({ id, done: true, value }, value instanceof Uint8Array ? [value.buffer] : []);
        } catch (error) {
            // A stack that is full is a RangeError, and leaves the program half-way, too.
            if (!(error instanceof WebAssembly.RuntimeError || (call === 'work' && error instanceof RangeError))) {
                throw error;
            }
            end(error, loaded.program);
            throw new Error(ended);
        }
    } catch (error) {
        postMessage({ id, done: true, error: String(error?.message ?? error) });
    }
}

onmessage = ({ data }) => {
    if (data.call === 'stop') {
        host.stop = true;
    } else if (data.call === 'memory') {
        answer(data);
    } else {
        last = last.then(() => answer(data));
    }
};
