import { Sparta } from './sparta.js';
import { Curve } from './curve.js';
import { watch } from './drop.js';
import { pack, unpack } from './tar.js';

const element = (id) => document.getElementById(id);
const form = element('job');
const mebibytes = (bytes) => `${(bytes / 2 ** 20).toFixed(bytes < 2 ** 27 ? 1 : 0)} MiB`;
/** The metrics of a task, which stand beside what every evaluation has. */
const scored = ({ examples, loss, confusion, per_label, ...scores }) => Object.entries(scores);
const scores = (metrics) => scored(metrics).map(([name, x]) => `${name} ${x.toFixed(4)}`).join(', ');

let sparta = null;
/** What of the model, the table and the adapter is in the program's memory. */
const has = { model: false, data: false };
let embedded = null;
/** The adapter that can be used, and the model and data that it belongs to. */
let adapter = null;
let busy = false;

function fail(error) {
    element('error').textContent = error.message ?? String(error);
    element('error').hidden = false;
    element('status').textContent = 'It has ended with an error, which stands above.';
}

function show() {
    const own = form.source.value === 'own';
    element('own').hidden = !own;
    const ready = sparta !== null && !busy && (own ? has.model && has.data : embedded !== null);
    element('start').disabled = !ready;
    element('plan').disabled = !ready;
    element('stop').disabled = !busy;
    for (const id of ['predict', 'measure', 'write']) {
        element(id).disabled = sparta === null || busy || adapter === null;
    }
    // A model of one's own writes without an adapter, too.
    element('write').disabled &&= sparta === null || busy || !(own && has.model);
}

/** Does something that nothing else may be done beside. */
async function alone(work) {
    busy = true;
    element('error').hidden = true;
    show();
    try {
        await work();
    } catch (error) {
        fail(error);
    } finally {
        busy = false;
        show();
    }
}

function log(text) {
    element('log').textContent += `${text}\n`;
}

function job() {
    const own = form.source.value === 'own';
    const number = (name) => (form[name].value === '' ? null : Number(form[name].value));
    const chosen = { epochs: number('epochs'), 'max-steps': number('maxSteps'), lr: number('lr') };
    const given = Object.fromEntries(Object.entries(chosen).filter(([, value]) => value !== null));
    const method = form.method.value;
    if (!own) {
        const options = { ...embedded.options, ...embedded.methods[method], ...given };
        return { model: 'job/model', data: 'job/data', task: embedded.task, method, options, out: 'run' };
    }
    const columns = { text: form.textColumn.value, label: form.labelColumn.value };
    const named = Object.fromEntries(Object.entries(columns).filter(([, value]) => value !== ''));
    const taskOptions = form.task.value === 'classify' ? named : {};
    return { model: 'model', data: 'data', task: form.task.value, method, options: given, taskOptions, out: 'run' };
}

function planned(plan, text) {
    const bytes = Object.values(plan.memory).reduce((sum, part) => sum + part, 0);
    element('memory').textContent = mebibytes(bytes);
    element('step').textContent = `0 / ${plan.total_steps}`;
    log(text);
}

function clear() {
    element('run').hidden = false;
    element('log').textContent = '';
    element('evaluations').hidden = true;
    element('evaluations').tBodies[0].replaceChildren();
    element('sets').hidden = true;
    element('save').hidden = true;
    element('progress').value = 0;
    for (const id of ['step', 'loss', 'dev', 'speed', 'memory']) {
        element(id).textContent = '–';
    }
}

function showDev(metrics) {
    element('dev').textContent = (scored(metrics)[0]?.[1] ?? metrics.loss).toFixed(3);
}

function evaluated({ step, split, metrics }) {
    const row = element('evaluations').tBodies[0].insertRow();
    [step, split, metrics.loss.toFixed(4), scores(metrics)].forEach((value) => { row.insertCell().textContent = value; });
    element('evaluations').hidden = false;
    if (split === 'dev') {
        showDev(metrics);
        element('status').textContent = `After step ${step} of the run: dev ${scores(metrics)}.`;
    }
}

/** The losses of the run, for whoever looks at the page by a program. */
const losses = [];

async function train() {
    clear();
    losses.length = 0;
    const curve = new Curve();
    const asked = job();
    element('status').textContent = 'Planning, and preparing the GPU …';
    const result = await sparta.train(asked, {
        plan: (plan, { text }) => planned(plan, text),
        step: (step, { tokensPerSecond }) => {
            losses.push(step.loss);
            curve.add(step);
            if (step.step === 1) {
                element('status').textContent = 'Training.';
            }
            element('progress').value = step.step / step.total_steps;
            element('step').textContent = `${step.step} / ${step.total_steps}`;
            element('loss').textContent = step.loss?.toFixed(4) ?? 'not finite';
            element('speed').textContent = tokensPerSecond.toFixed(0);
        },
        eval: evaluated,
        message: log,
    });
    if (result.dev !== null) {
        showDev(result.dev);
    }
    adapter = { name: 'run/adapter', model: asked.model, data: asked.data };
    await describe();
    element('save').hidden = false;
    const test = result.test === null ? '' : ` Test: ${scores(result.test)}.`;
    const how = { completed: 'Done', early_stopping: 'Stopped early', interrupted: 'Stopped by you, and what was learned is kept' };
    element('status').textContent = `${how[result.stopped]}: ${result.steps} steps.${test}`;
    document.body.dataset.result = JSON.stringify({ losses, result });
}

/** Says what the adapter is, and the hash of the elements that it changes. */
async function describe() {
    const manifest = JSON.parse(new TextDecoder().decode(await sparta.read(`${adapter.name}/adapter.json`)));
    const density = (100 * (manifest.density ?? 0)).toPrecision(3);
    element('has').textContent = `${manifest.method} for ${(manifest.labels ?? []).join(', ') || 'text'}: `
        + `${manifest.trained_in_body} weights of the model, ${density} % of it.`;
    if (manifest.index_sha256) {
        element('sets').textContent = `SHA-256 of the chosen elements: ${manifest.index_sha256}`;
        element('sets').hidden = false;
    }
}

async function download() {
    const files = [];
    for (const name of await sparta.list(adapter.name)) {
        files.push([`adapter/${name.slice(adapter.name.length + 1)}`, await sparta.read(name)]);
    }
    const link = document.createElement('a');
    link.href = URL.createObjectURL(pack(files));
    link.download = 'adapter.tar';
    link.click();
    URL.revokeObjectURL(link.href);
}

/** Puts chosen files into the program's memory. */
async function take(into, files) {
    const said = element(`${into}-has`);
    await sparta.remove(into);
    let [done, total] = [0, 0];
    files.forEach(([, file]) => { total += file.size; });
    for (const [name, file] of files) {
        await sparta.put(`${into}/${name}`, file, (part) => {
            said.textContent = `Reading ${name}: ${mebibytes(done + part)} of ${mebibytes(total)}.`;
        });
        done += file.size;
    }
    said.textContent = `${files.length === 1 ? files[0][0] : `${files.length} files`}, ${mebibytes(total)}.`;
}

async function takeAdapter(files) {
    const archive = files.length === 1 && files[0][0].endsWith('.tar');
    const inside = archive ? await unpack(files[0][1]) : files;
    const base = (name) => name.split('/').at(-1);
    const wanted = inside.filter(([name]) => base(name).startsWith('adapter')).map(([name, file]) => [base(name), file]);
    if (!wanted.some(([name]) => name === 'adapter.json')) {
        throw new Error('there is no adapter.json among these files: choose the directory "adapter" of a run');
    }
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
    const metrics = await sparta.evaluate({ ...used(), data: adapter.data }, { message: log });
    element('answer').textContent = `test: ${scores(metrics)}, loss ${metrics.loss.toFixed(4)}`;
}

async function write() {
    element('answer').textContent = '';
    const from = adapter === null ? { adapter: 'model', model: 'model' } : used();
    const prompt = element('texts').value;
    await sparta.generate({ ...from, prompt }, { piece: (text) => { element('answer').textContent += text; } });
}

/** As many epochs as suit the method. */
function recommend() {
    const own = form.source.value === 'own';
    form.epochs.value = own ? 3 : (embedded?.methods[form.method.value]?.epochs ?? embedded?.options.epochs ?? 4);
}

async function begin() {
    sparta = await Sparta.start();
    const device = await sparta.device();
    const { info } = await navigator.gpu.requestAdapter();
    const name = [info.vendor, info.architecture, device.name].filter((text) => text).join(' ') || 'a GPU that the browser does not name';
    const slow = device.kind === 'software_gpu' ? ', which is this machine\'s CPU: slow' : '';
    element('device').textContent = `On ${name}${slow}. Buffers have up to ${mebibytes(device.max_buffer)}.`;
    const answer = await fetch(new URL('./job/job.json', import.meta.url));
    const described = await answer.json();
    for (const file of described.files) {
        await sparta.load(`job/${file}`, new URL(`./job/${file}`, import.meta.url));
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
    alone(train);
});
element('plan').addEventListener('click', () => alone(async () => {
    clear();
    const { plan, text } = await sparta.plan(job());
    planned(plan, text);
    element('details').open = true;
    element('status').textContent = `The run has ${plan.total_steps} steps; nothing is trained yet.`;
}));
element('stop').addEventListener('click', () => {
    sparta.stop();
    element('status').textContent = 'Stopping after this step …';
});
element('save').addEventListener('click', () => download().catch(fail));
element('use').addEventListener('submit', (event) => {
    event.preventDefault();
    alone(predict);
});
element('measure').addEventListener('click', () => alone(measure));
element('write').addEventListener('click', () => alone(write));
for (const area of document.querySelectorAll('.drop')) {
    const { into } = area.dataset;
    watch(area, (files) => alone(async () => {
        if (into === 'adapter') {
            return takeAdapter(files);
        }
        has[into] = false;
        await take(into, files);
        has[into] = true;
    }));
}
addEventListener('beforeunload', (event) => {
    if (busy) {
        event.preventDefault();
    }
});
show();
begin().catch((error) => {
    element('device').textContent = 'Training is not possible here.';
    fail(error);
});
