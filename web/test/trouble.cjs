// What can go wrong is a sentence on the page, and a rejected promise with the same sentence.
const assert = require('node:assert/strict');
const { readFileSync } = require('node:fs');
const { join } = require('node:path');
const { dist, error, visit } = require('./browser.cjs');

/** Few steps of the embedded job, with a checkpoint after each. */
const SHORT = { epochs: 1, 'batch-size': 8, 'max-steps': 6, 'max-dev': 16, 'max-test': 16, 'checkpoint-interval': 1, lr: 5e-3 };

/** Loses the device while a run is at step 3 and, with `always`, at each step after it. Returns what came of the run. */
function run(page, always) {
    return page.evaluate(async ([options, again]) => {
        const { Sparta } = await import('./sparta.js');
        window.sparta ??= await Sparta.start();
        const job = { model: 'job/model', data: 'job/data', task: 'sst2', method: 'sparta', options, out: 'short' };
        for (const name of (await (await fetch('job/job.json')).json()).files) {
            await window.sparta.load(`job/${name}`, `job/${name}`);
        }
        const [losses, messages] = [[], []];
        let lost = 0;
        const step = async ({ step: at, loss }) => {
            losses[at - 1] = loss;
            if (again !== null && at >= 3 && (again || lost === 0)) {
                lost += 1;
                await window.crash();
            }
        };
        const result = await window.sparta.train(job, { step, message: (text) => messages.push(text) })
            .catch((e) => ({ error: e.message }));
        return { losses, messages, result };
    }, [SHORT, always]);
}

/** A lost device is opened once more, and the run ends as if nothing had happened; after a second loss it can continue. */
async function lost(browser, url) {
    const { page } = await visit(browser, url);
    const control = await browser.newBrowserCDPSession();
    await page.exposeFunction('crash', () => control.send('Browser.crashGpuProcess').catch(() => {}));
    const undisturbed = await run(page, null);
    assert.equal(undisturbed.result.stopped, 'completed', JSON.stringify(undisturbed));
    const once = await run(page, false);
    assert.equal(once.result.stopped, 'completed', JSON.stringify(once));
    assert.ok(once.messages.some((text) => /the device was lost .* reopening the device/.test(text)), once.messages.join('\n'));
    assert.deepEqual(once.losses, undisturbed.losses);
    const twice = await run(page, true);
    assert.match(twice.result.error ?? '', /the device was lost .* for the second time/, JSON.stringify(twice));
    const resumed = await page.evaluate(async () => window.sparta.resume({ out: 'short' }));
    assert.equal(resumed.steps, 6);
    assert.deepEqual(resumed.test, undisturbed.result.test);
    console.log(`a lost device: the losses are the same; lost again: ${twice.result.error}`);
    await page.close();
}

/** A GPU without memory for all buffers. What it lacks cannot be had from a driver at will, so the worker's WebGPU says so. */
async function memory(browser, url) {
    const context = await browser.newContext();
    await context.route('**/worker.js', (route) => route.fulfill({
        contentType: 'text/javascript',
        body: 'import "./worker.js?fault"; import "./worker.js?real";',
    }));
    await context.route('**/worker.js?*', (route) => route.fulfill({
        contentType: 'text/javascript',
        body: readFileSync(route.request().url().endsWith('fault') ? join(__dirname, 'fault.js') : join(dist, 'worker.js')),
    }));
    const { page } = await visit({ newPage: () => context.newPage() }, url);
    await page.fill('input[name=maxSteps]', '2');
    await page.click('#start');
    await page.waitForSelector('#error:not([hidden])');
    const said = await error(page);
    assert.match(said, /out of memory while allocating .* for /);
    const rejected = await page.evaluate(async () => {
        const { Sparta } = await import('./sparta.js');
        const sparta = await Sparta.start();
        const { files, options } = await (await fetch('job/job.json')).json();
        for (const name of files) {
            await sparta.load(`job/${name}`, `job/${name}`);
        }
        const job = { model: 'job/model', data: 'job/data', task: 'sst2', method: 'sparta', options: { ...options, lr: 5e-3, 'max-steps': 2 }, out: 'run' };
        return sparta.train(job).then(() => null, (e) => e.message);
    });
    assert.equal(rejected, said);
    console.log(`no memory on the GPU: ${said}`);
    await context.close();
}

/** A tab whose 4 GiB are taken, by files that nothing is written to. */
async function tab(browser, url) {
    const { page } = await visit(browser, url);
    const said = await page.evaluate(async () => {
        const { Sparta } = await import('./sparta.js');
        const sparta = await Sparta.start();
        const empty = (size) => ({ size, slice: () => new Blob([]) });
        const failed = (promise) => promise.then(() => null, (e) => e.message);
        const { files, options } = await (await fetch('job/job.json')).json();
        for (const name of files) {
            await sparta.load(`job/${name}`, `job/${name}`);
        }
        await sparta.put('first', empty(2 ** 31 - 2 ** 24));
        const large = await failed(sparta.put('second', empty(2 ** 31)));
        for (let size = 2 ** 30; size >= 2 ** 20; size /= 2) {
            while (await failed(sparta.put(`more${Math.random()}`, empty(size))) === null);
        }
        const job = { model: 'job/model', data: 'job/data', task: 'sst2', method: 'sparta', options: { ...options, lr: 5e-3, 'max-steps': 2 }, out: 'run' };
        return { large, ended: await failed(sparta.train(job)), after: await failed(sparta.list('job')) };
    });
    assert.match(said.large, /^second: this tab has no memory for its 2.00 GiB/);
    assert.match(said.ended, /^the tab has no memory for \d+ MiB more/);
    assert.equal(said.after, said.ended);
    console.log(`no memory in the tab: ${said.ended}`);
    await page.close();
}

module.exports = { lost, memory, tab };
