import { Sparta } from './sparta.js';
import { Curve } from './curve.js';
import { watch } from './drop.js';
import { pack, unpack } from './tar.js';

const element = (id) => document.getElementById(id);
const form = element('job');
const mebibytes = (bytes) => `${(bytes / 2 ** 20).toFixed(bytes < 2 ** 27 ? 1 : 0)} MiB`;
/** JSON has no number that is not finite. */
const digits = (x, count) => x?.toFixed(count) ?? 'not finite';
/** The metrics of a task, which stand beside what every evaluation has. */
const scored = ({ examples, loss, confusion, per_label, ...scores }) => Object.entries(scores);
const scores = (metrics) => scored(metrics).map(([name, x]) => `${name} ${digits(x, 4)}`).join(', ');

let sparta = null;
/** What of the model, the table and the adapter is in the program's memory. */
const has = { model: false, data: false };
let embedded = null;
/** The adapter that can be used, and the model and data that it belongs to. */
let adapter = null;
/** The directory of runs. */
const RUN = 'run';
/** Whether the last run's adapter is downloaded, if there is one. */
let saved = true;
/** The metric that the run is compared by. */
let primary = '';
/** What is being done: `train`, `write`, which can be stopped, or something else; nothing else is done beside it. */
let doing = null;
/** The run that can be continued: its directory, model and data, and the memory it may take. */
let unfinished = null;

function fail(error) {
    element('error').textContent = error.message ?? String(error);
    element('error').hidden = false;
    element('error').scrollIntoView({ block: 'nearest' });
}

function show() {
    const own = form.source.value === 'own';
    const free = sparta !== null && doing === null;
    element('own').hidden = !own;
    // Or the browser would require fields that it does not show.
    element('own').disabled = !own;
    const ready = free && (own ? has.model && has.data : embedded !== null);
    element('start').disabled = !ready;
    element('plan').disabled = !ready;
    element('stop').disabled = doing !== 'train' && doing !== 'write';
    element('resume').hidden = unfinished === null;
    element('resume').disabled = !free;
    for (const input of document.querySelectorAll('.drop input')) {
        input.disabled = !free;
    }
    for (const id of ['predict', 'measure', 'write']) {
        element(id).disabled = !free || adapter === null;
    }
    // The user's own model can write without an adapter, too.
    element('write').disabled &&= !free || !(own && has.model);
}

/** Does something that nothing else may be done beside. The keyboard's place is kept, although buttons are disabled meanwhile. */
async function alone(what, work) {
    const focused = document.activeElement;
    doing = what;
    element('error').hidden = true;
    show();
    try {
        await work();
    } catch (error) {
        fail(error);
        if (what === 'train' || what === 'plan') {
            const on = what === 'train' && unfinished !== null ? ' The unfinished run can be continued from its last checkpoint.' : '';
            say(`It ended with the error shown above.${on}`);
        }
    } finally {
        doing = null;
        show();
        if (document.activeElement === document.body) {
            focused.focus({ preventScroll: true });
        }
    }
}

/** Says how far the run is. The same sentence is not read out again. */
function say(text) {
    if (element('status').textContent !== text) {
        element('status').textContent = text;
    }
}

function log(text) {
    element('log').textContent += `${text}\n`;
}

/** The fields that are filled in, as options by name. */
function options(fields) {
    const filled = Object.entries(fields).filter(([, name]) => form[name].value !== '');
    return Object.fromEntries(filled.map(([option, name]) => [option, Number(form[name].value)]));
}

function job() {
    const method = form.method.value;
    const general = options({ epochs: 'epochs', 'max-steps': 'maxSteps', lr: 'lr' });
    if (form.source.value === 'embedded') {
        const given = { ...embedded.options, ...embedded.methods[method], ...general };
        return { model: 'job/model', data: 'job/data', task: embedded.task, method, options: given, out: RUN };
    }
    const given = { ...general, ...options({ 'max-length': 'maxLength', 'micro-batch-tokens': 'atOnce' }) };
    const columns = { text: form.textColumn.value, label: form.labelColumn.value };
    const named = Object.fromEntries(Object.entries(columns).filter(([, value]) => value !== ''));
    const task = form.task.value;
    const memory = form.memory.value === '' ? null : Math.floor(Number(form.memory.value) * 2 ** 30);
    return { model: 'model', data: 'data', task, method, options: given, taskOptions: task === 'classify' ? named : {}, memory, out: RUN };
}

function planned(plan, text) {
    const bytes = Object.values(plan.memory).reduce((sum, part) => sum + part, 0);
    element('memory').textContent = mebibytes(bytes);
    element('step').textContent = `0 / ${plan.total_steps}`;
    primary = plan.primary;
    log(text);
}

function clear() {
    element('run').hidden = false;
    element('log').textContent = '';
    element('evaluations').hidden = true;
    element('evaluations').tBodies[0].replaceChildren();
    element('progress').value = 0;
    for (const id of ['step', 'loss', 'dev', 'speed', 'memory', 'tab']) {
        element(id).textContent = '–';
    }
}

function showDev(metrics) {
    element('dev').textContent = digits(metrics[primary] ?? metrics.loss, 3);
}

function evaluated({ step, split, metrics }) {
    const row = element('evaluations').tBodies[0].insertRow();
    [step, split, digits(metrics.loss, 4), scores(metrics)].forEach((value) => { row.insertCell().textContent = value; });
    element('evaluations').hidden = false;
    if (split === 'dev') {
        showDev(metrics);
        say(`After step ${step} of the run: dev ${scores(metrics)}.`);
    }
}

/** The losses of the run, for whoever looks at the page by a program, and the number of its steps. */
const losses = [];
let total = 1;

async function train() {
    const asked = job();
    clear();
    losses.length = 0;
    element('save').hidden = true;
    say('Planning, and preparing the GPU …');
    await run(asked, (on) => sparta.train(asked, on));
}

async function resume() {
    const asked = unfinished;
    say('Continuing from the last checkpoint …');
    await run(asked, (on) => sparta.resume(asked, on));
}

async function run(asked, work) {
    const curve = new Curve(losses, total);
    // A program that has ended does not answer.
    const showTab = () => sparta.memory().then((bytes) => { element('tab').textContent = mebibytes(bytes); }, () => {});
    let [result, begun] = [null, false];
    const earlier = unfinished;
    unfinished = null;
    delete document.body.dataset.result;
    try {
        result = await work({
            plan: (plan, { text }) => planned(plan, text),
            step: (step, { tokensPerSecond }) => {
                losses[step.step - 1] = step.loss;
                total = step.total_steps;
                curve.show(total);
                if (!begun) {
                    begun = true;
                    say('Training.');
                }
                element('progress').value = step.step / step.total_steps;
                element('step').textContent = `${step.step} / ${step.total_steps}`;
                element('loss').textContent = digits(step.loss, 4);
                element('speed').textContent = tokensPerSecond.toFixed(0);
                showTab();
            },
            eval: evaluated,
            progress: ({ split }) => say(`Measuring ${split} …`),
            message: log,
        });
    } finally {
        // What is left after an error can be used, too: the earlier run, if this one has not begun. A program that has ended has
        // nothing.
        const left = await sparta.list(asked.out).catch(() => []);
        const own = begun || result !== null;
        const over = result !== null && result.stopped !== 'interrupted';
        const resumable = !over && left.some((name) => name.startsWith(`${asked.out}/checkpoints/`));
        unfinished = resumable ? (own ? asked : earlier) : null;
        const trained = left.includes(`${asked.out}/adapter/adapter.json`);
        element('save').hidden = !trained;
        if (!trained) {
            forget(`${asked.out}/adapter`);
            saved = true;
        } else if (own) {
            adapter = { name: `${asked.out}/adapter`, model: asked.model, data: asked.data };
            await describe();
            saved = false;
        }
        await showTab();
    }
    if (result.dev !== null) {
        showDev(result.dev);
    }
    const test = result.test === null ? '' : ` Test: ${scores(result.test)}.`;
    const how = { completed: 'Done', early_stopping: 'Stopped early', interrupted: 'Stopped, keeping what was learned' };
    say(`${how[result.stopped]}: ${result.steps} steps.${test}`);
    document.body.dataset.result = JSON.stringify({ losses, result });
}

/** The adapter of this name is gone. */
function forget(name) {
    if (adapter?.name === name) {
        adapter = null;
        element('has').textContent = 'There is none now: train one, or open one.';
        element('sets').hidden = true;
    }
}

/** Says what the adapter is, and the hash of the elements that it changes. */
async function describe() {
    const manifest = JSON.parse(new TextDecoder().decode(await sparta.read(`${adapter.name}/adapter.json`)));
    const density = (100 * (manifest.density ?? 0)).toPrecision(3);
    element('has').textContent = `${manifest.method} for ${(manifest.labels ?? []).join(', ') || 'text'}: `
        + `${manifest.trained_in_body} weights of the model, ${density} % of it.`;
    element('sets').textContent = `SHA-256 of the chosen elements: ${manifest.index_sha256}`;
    element('sets').hidden = !manifest.index_sha256;
}

/** Gives the last run's adapter to the visitor. */
async function download() {
    const files = [];
    for (const name of await sparta.list(`${RUN}/adapter`)) {
        files.push([name.slice(RUN.length + 1), await sparta.read(name)]);
    }
    const link = document.createElement('a');
    link.href = URL.createObjectURL(pack(files));
    link.download = 'adapter.tar';
    link.click();
    URL.revokeObjectURL(link.href);
    saved = true;
}

/** Shows in `said` what changes while `work` is done, and is read out only when it is complete. */
async function quietly(said, work) {
    said.ariaBusy = 'true';
    try {
        await work();
    } finally {
        said.ariaBusy = 'false';
    }
}

/** Puts chosen files into the program's memory, in place of those there. */
async function take(into, files) {
    let [done, total] = [0, 0];
    files.forEach(([, file]) => { total += file.size; });
    if (files.length === 0) {
        throw new Error('no file was chosen or dropped');
    }
    if (total > 2 ** 32) {
        throw new Error(`these files have ${mebibytes(total)}, and a tab has 4096 MiB in all: use a smaller model, or one in bf16 or quantized`);
    }
    has[into] = false;
    // A run on earlier files cannot be continued with others.
    unfinished = into !== 'adapter' && unfinished?.model === 'model' ? null : unfinished;
    await sparta.remove(into);
    const said = element(`${into}-has`);
    await quietly(said, async () => {
        for (const [name, file] of files) {
            await sparta.put(`${into}/${name}`, file, (part) => {
                said.textContent = `${name}: ${mebibytes(done + part)} of ${mebibytes(total)} are read.`;
            });
            done += file.size;
        }
        said.textContent = `${files.length === 1 ? files[0][0] : `${files.length} files`}, ${mebibytes(total)}.`;
    });
    has[into] = true;
}

/** The files by which a model is loaded, of all that may lie in its folder. */
async function takeModel(files) {
    const read = files.filter(([name]) => /^[^/]+\.(json|safetensors|gguf|jinja|txt)$/.test(name));
    if (read.length === 0) {
        throw new Error('there is no model among these files: expected config.json, safetensors and tokenizer.json, or a GGUF file');
    }
    await take('model', read);
}

async function takeAdapter(files) {
    const archive = files.length === 1 && files[0][0].endsWith('.tar');
    const inside = archive ? await unpack(files[0][1]) : files;
    const base = (name) => name.split('/').at(-1);
    const wanted = inside.filter(([name]) => base(name).startsWith('adapter')).map(([name, file]) => [base(name), file]);
    if (!wanted.some(([name]) => name === 'adapter.json')) {
        throw new Error('there is no adapter.json among these files: choose the directory "adapter" of a run');
    }
    forget('adapter');
    await take('adapter', wanted);
    const own = form.source.value === 'own';
    adapter = { name: 'adapter', model: own ? 'model' : 'job/model', data: own ? 'data' : 'job/data' };
    await describe();
}

const used = () => ({ adapter: adapter.name, model: adapter.model });

async function predict() {
    const texts = element('texts').value.split('\n').filter((text) => text.trim() !== '');
    const found = await sparta.predict({ ...used(), texts }, { message: log });
    const line = (outputs, i) => {
        const shown = [...outputs].sort((a, b) => b.value - a.value).slice(0, 3);
        return `${texts[i]}\n    ${shown.map(({ label, value }) => `${label} ${value.toFixed(3)}`).join('   ')}`;
    };
    element('answer').textContent = found.map(line).join('\n');
}

async function measure() {
    const said = element('answer');
    const progress = ({ done, total }) => { said.textContent = `${done} of ${total} examples are measured.`; };
    await quietly(said, async () => {
        const metrics = await sparta.evaluate({ ...used(), data: adapter.data }, { progress, message: log });
        said.textContent = `test: ${scores(metrics)}, loss ${digits(metrics.loss, 4)}`;
    });
}

async function write() {
    const said = element('answer');
    said.textContent = '';
    const model = form.source.value === 'own' ? 'model' : 'job/model';
    const from = adapter?.model === model ? used() : { adapter: model, model };
    const prompt = element('texts').value;
    const maxTokens = Number(element('use').tokens.value);
    await quietly(said, async () => {
        await sparta.generate({ ...from, prompt, maxTokens }, { piece: (text) => { said.textContent += text; } });
    });
}

/** As many epochs as suit the method. */
function recommend() {
    const own = form.source.value === 'own';
    form.epochs.value = own ? 3 : (embedded?.methods[form.method.value]?.epochs ?? embedded?.options.epochs ?? 4);
}

async function begin() {
    element('device').textContent = 'Loading the program …';
    const started = await Sparta.start();
    const device = await started.device();
    sparta = started;
    const info = (await navigator.gpu.requestAdapter())?.info ?? {};
    const name = [info.vendor, info.architecture, info.description].filter((text) => text).join(' ') || device.name;
    const slow = device.kind === 'software_gpu' ? ', which is this machine\'s CPU: slow' : '';
    element('device').textContent = `On ${name}${slow}. Buffers have up to ${mebibytes(device.max_buffer)}.`;
    show();
    const load = (file) => sparta.load(`job/${file}`, new URL(`./job/${file}`, import.meta.url));
    await load('job.json');
    const described = JSON.parse(new TextDecoder().decode(await sparta.read('job/job.json')));
    for (const file of described.files) {
        await load(file);
    }
    embedded = described;
    show();
    document.body.dataset.ready = 'yes';
}

form.addEventListener('change', show);
form.method.addEventListener('change', recommend);
for (const source of form.source) {
    source.addEventListener('change', recommend);
}
form.addEventListener('submit', (event) => {
    event.preventDefault();
    alone('train', train);
});
element('plan').addEventListener('click', () => form.reportValidity() && alone('plan', async () => {
    clear();
    const { plan, text } = await sparta.plan(job());
    planned(plan, text);
    element('details').open = true;
    say(`The run has ${plan.total_steps} steps; nothing is trained yet.`);
}));
element('stop').addEventListener('click', () => {
    sparta.stop();
    if (doing === 'train') {
        say('Stopping after this step …');
    }
});
element('resume').addEventListener('click', () => alone('train', resume));
element('save').addEventListener('click', () => download().catch(fail));
element('use').addEventListener('submit', (event) => {
    event.preventDefault();
    alone('predict', predict);
});
element('measure').addEventListener('click', () => alone('measure', measure));
element('write').addEventListener('click', () => element('use').reportValidity() && alone('write', write));
const taking = { model: takeModel, data: (files) => take('data', files), adapter: takeAdapter };
for (const area of document.querySelectorAll('.drop')) {
    const { into } = area.dataset;
    watch(area, (chosen) => {
        if (doing !== null) {
            fail(new Error('no files can be given while something else is done: wait, or stop it'));
        } else if (sparta !== null) {
            alone('take', async () => taking[into](await chosen()));
        }
    });
}
// A file that is dropped beside these areas would replace the page.
for (const type of ['dragover', 'drop']) {
    addEventListener(type, (event) => {
        if (event.dataTransfer.types.includes('Files')) {
            event.preventDefault();
        }
    });
}
document.addEventListener('resume', () => log('The browser had frozen this tab while it was hidden.'));
addEventListener('beforeunload', (event) => {
    if (doing !== null || !saved) {
        event.preventDefault();
    }
});
show();
begin().catch((error) => {
    element('device').textContent = sparta === null ? 'Training is not possible here.' : 'The example could not be loaded.';
    fail(error);
});
