// The trainer as a page uses it. Types and documentation: sparta.d.ts.

/** Bytes that are read of a file at a time. */
const PART = 8 << 20;

/** The bytes of a stream in parts of at least PART bytes, except for the last. */
async function* parts(stream) {
    let [some, length] = [[], 0];
    for (const reader = stream.getReader(); ;) {
        const { done, value } = await reader.read();
        if (!done) {
            some.push(value);
            length += value.length;
        }
        if (length >= PART || (done && length > 0)) {
            yield new Uint8Array(await new Blob(some).arrayBuffer());
            [some, length] = [[], 0];
        }
        if (done) {
            return;
        }
    }
}

export class Sparta {
    #worker;
    #open = new Map();
    #next = 0;
    /** Why nothing more can be done. */
    #ended = null;

    constructor(worker) {
        this.#worker = worker;
        worker.onmessage = ({ data }) => this.#take(data);
        worker.onerror = (event) => this.#fail(event.message || 'the worker could not be loaded');
    }

    static async start(url = new URL('./worker.js', import.meta.url)) {
        const sparta = new Sparta(new Worker(url, { type: 'module' }));
        try {
            await sparta.#call('start');
        } catch (error) {
            sparta.close();
            throw error;
        }
        return sparta;
    }

    device() {
        return this.#work({ do: 'device' });
    }

    async put(name, blob, progress = () => {}) {
        await this.#call('create', { name, room: blob.size });
        for (let offset = 0; offset < blob.size; offset += PART) {
            const bytes = new Uint8Array(await blob.slice(offset, offset + PART).arrayBuffer());
            await this.#append(name, bytes);
            progress(Math.min(offset + PART, blob.size), blob.size);
        }
    }

    async load(name, url, progress = () => {}) {
        const response = await fetch(url).catch((error) => { throw new Error(`${url}: ${error.message}`); });
        if (!response.ok) {
            throw new Error(`${url}: ${response.status} ${response.statusText}`);
        }
        // The length of a compressed answer is that of the bytes sent; the file then grows beyond it.
        const total = Number(response.headers.get('content-length')) || 0;
        await this.#call('create', { name, room: total });
        let done = 0;
        for await (const bytes of parts(response.body)) {
            done += bytes.length;
            await this.#append(name, bytes);
            progress(done, Math.max(done, total));
        }
    }

    async read(name) {
        return this.#call('read', { name });
    }

    async list(name) {
        return this.#call('list', { name });
    }

    async remove(name) {
        return this.#call('remove', { name });
    }

    memory() {
        return this.#call('memory');
    }

    plan(job) {
        return this.#work({ do: 'plan', job });
    }

    train(job, on = {}) {
        return this.#work({ do: 'train', job }, on);
    }

    resume({ out, memory = null }, on = {}) {
        return this.#work({ do: 'resume', out, memory }, on);
    }

    examples(job, { split = 'train', first = 10 } = {}) {
        return this.#work({ do: 'examples', job, split, first });
    }

    evaluate({ adapter, model, data = null, split = 'test', maxExamples = null }, on = {}) {
        return this.#work({ do: 'evaluate', adapter, model, data, split, maxExamples }, on);
    }

    predict({ adapter, model, texts }, on = {}) {
        const pairs = texts.map((text) => (Array.isArray(text) ? text : [text, null]));
        return this.#work({ do: 'predict', adapter, model, texts: pairs }, on);
    }

    generate({ adapter, model = adapter, prompt, chat = false, maxTokens = 64, temperature = 0, seed = 0 }, on = {}) {
        return this.#work({ do: 'generate', adapter, model, prompt, chat, maxTokens, temperature, seed }, on);
    }

    stop() {
        this.#worker.postMessage({ call: 'stop' });
    }

    close() {
        this.#worker.terminate();
        this.#fail('it was closed');
    }

    #append(name, bytes) {
        return this.#call('append', { name, bytes }, {}, [bytes.buffer]);
    }

    #work(request, on) {
        return this.#call('work', { request }, on);
    }

    #call(call, values = {}, on = {}, moved = []) {
        if (this.#ended !== null) {
            return Promise.reject(new Error(this.#ended));
        }
        const id = this.#next;
        this.#next += 1;
        return new Promise((resolve, reject) => {
            this.#open.set(id, { resolve, reject, on });
            this.#worker.postMessage({ id, call, ...values }, moved);
        });
    }

    #take({ id, done, value, error, event, ...more }) {
        const { resolve, reject, on } = this.#open.get(id) ?? {};
        if (!done) {
            on?.[event]?.(value, more);
            return;
        }
        this.#open.delete(id);
        if (error === undefined) {
            resolve?.(value);
        } else {
            reject?.(new Error(error));
        }
    }

    #fail(message) {
        this.#ended = message;
        for (const { reject } of this.#open.values()) {
            reject(new Error(message));
        }
        this.#open.clear();
    }
}
