// The page with stand-in.js in place of the program: what a visitor does at the wrong time or wrongly, what fails
// beside training, and browsers that cannot train.
const assert = require('node:assert/strict');
const { execFileSync } = require('node:child_process');
const { readFileSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { pathToFileURL } = require('node:url');
const { dist, drop, error, out, visit } = require('./browser.cjs');

/** A shorter wait than the browser's own: nothing here takes long. */
const LIMIT = 20_000;
const script = (body) => ({ contentType: 'text/javascript', body });
const json = (name, value) => ({ name, mimeType: 'application/json', buffer: Buffer.from(JSON.stringify(value)) });
const table = (name) => ({ name, mimeType: 'text/csv', buffer: Buffer.from('text,label\na,b\n') });
const seen = (page, what, given) => page.waitForFunction(what, given, { timeout: LIMIT });
const step = (page) => page.$eval('#step', (place) => Number.parseInt(place.textContent, 10) || 0);
const trains = (page, after = 0) => seen(page, (n) => Number.parseInt(document.getElementById('step').textContent, 10) > n, after);
const idle = (page) => page.waitForSelector('#stop:disabled', { timeout: LIMIT });

/** Gives files, and waits until the page has them. */
async function give(page, into, ...files) {
    await page.setInputFiles(`#${into}-files`, files);
    await seen(page, ([id, name]) => document.getElementById(id).textContent.startsWith(`${name}, `), [`${into}-has`, files[0].name]);
    await page.waitForSelector(`#${into}-files:enabled`);
}

/** Which adapter and model are used. */
async function used(page) {
    await page.evaluate(() => { document.getElementById('answer').textContent = ''; });
    await page.click('#predict:enabled');
    await seen(page, () => document.getElementById('answer').textContent !== '');
    return (await page.textContent('#answer')).split('\n')[1].trim();
}

/** Waits for an error; returns its sentence. */
async function refused(page) {
    await page.waitForSelector('#error:not([hidden])', { timeout: LIMIT });
    return error(page);
}

/** A browser that gets other scripts than the page's at some addresses, and whose GPU is not needed. */
async function browserWith(browser, scripts) {
    const context = await browser.newContext();
    context.setDefaultTimeout(LIMIT);
    await context.addInitScript(() => {
        if (typeof GPU === 'function') {
            GPU.prototype.requestAdapter = async () => null;
        }
    });
    for (const [name, body] of Object.entries(scripts)) {
        await context.route(`**/${name}`, (route) => route.fulfill(body === null ? { status: 404 } : script(body)));
    }
    return { newPage: () => context.newPage(), close: () => context.close() };
}

/** The text of a file in the archive that the page offers. */
async function downloaded(page, name) {
    const [download] = await Promise.all([page.waitForEvent('download'), page.click('#save')]);
    const archive = join(out, 'page.tar');
    await download.saveAs(archive);
    return execFileSync('tar', ['xfO', archive, name], { encoding: 'utf8' });
}

/** A run beside which nothing else is done, and which fields that are not shown do not keep from starting. */
async function busy(page) {
    await page.check('input[value=own]');
    await page.fill('input[name=maxLength]', '0');
    await page.check('input[value=embedded]');
    await page.click('#start');
    await trains(page);
    const hint = await page.textContent('#adapter-has');
    const dropped = join(out, 'adapter.json');
    writeFileSync(dropped, '{}');
    await drop(page, 'adapter', dropped);
    assert.match(await refused(page), /^no files can be given while something else is done/);
    assert.equal(await page.textContent('#adapter-has'), hint);
    await trains(page, await step(page));
    await page.click('#stop');
    await idle(page);
    await page.waitForSelector('#save:not([hidden])');
}

/** A run that is continued, with the curve that it had. */
async function continued(page) {
    const steps = await step(page);
    const drawn = await page.evaluate(() => {
        document.getElementById('resume').click();
        return document.getElementById('losses').getAttribute('d');
    });
    const places = drawn.match(/[ML][\d.]+/g).map((place) => Number(place.slice(1)));
    assert.ok(places.length >= steps && Math.max(...places) < 640, drawn);
    await trains(page, steps);
    await page.click('#stop');
    await idle(page);
}

/** An adapter that is opened is not the one that was trained; a plan that does not fit costs neither it nor the run. */
async function adapters(page) {
    const steps = await step(page);
    const own = new RegExp(`^sparta for text: ${steps} weights`);
    assert.match(await page.textContent('#has'), own);
    await page.check('input[value=own]');
    await page.fill('input[name=maxLength]', '');
    await give(page, 'model', json('config.json', {}));
    await give(page, 'data', table('train.csv'));
    await page.fill('input[name=memory]', '1');
    await page.click('#start:enabled');
    assert.equal(await refused(page), 'the run needs more memory');
    await idle(page);
    assert.match(await page.textContent('#has'), own);
    assert.equal(await used(page), 'run/adapter on job/model 1.000');
    assert.equal(JSON.parse(await downloaded(page, 'adapter/adapter.json')).trained_in_body, steps);
    await give(page, 'adapter', json('adapter.json', { method: 'other', trained_in_body: 0 }));
    assert.match(await page.textContent('#has'), /^other for text: 0 weights/);
    assert.equal(await used(page), 'adapter on model 1.000');
    assert.equal(JSON.parse(await downloaded(page, 'adapter/adapter.json')).trained_in_body, steps);
    await page.check('input[value=embedded]');
}

/** The same file can be chosen twice. A choice of nothing leaves what there was. A field with a wrong number is shown. */
async function choices(page) {
    await page.check('input[value=own]');
    await give(page, 'data', table('other.csv'));
    assert.equal(await page.$eval('#data-files', (input) => { input.click(); return input.value; }), '');
    await page.setInputFiles('#data-files', []);
    assert.equal(await refused(page), 'no file was chosen or dropped');
    await page.waitForSelector('#start:enabled');
    assert.match(await page.textContent('#data-has'), /^other\.csv, /);
    await page.fill('input[name=memory]', '-1');
    await page.click('#start');
    assert.equal(await page.$eval('#stop', (stop) => stop.disabled), true);
    assert.equal(await page.evaluate(() => document.activeElement.name), 'memory');
    await page.check('input[value=embedded]');
}

/** A text that is stopped stays. */
async function stopped(page) {
    await page.click('#write:enabled');
    await seen(page, () => document.getElementById('answer').textContent.length > 10);
    await page.click('#stop:enabled');
    await page.waitForSelector('#write:enabled');
    assert.equal(await error(page), null);
    assert.match(await page.textContent('#answer'), /^( word){3,}$/);
    assert.equal(await page.$eval('#answer', (answer) => answer.ariaBusy), 'false');
}

/** A program that traps where no call is. */
async function traps(browser, url) {
    for (const prompt of ['promise', 'callback']) {
        const { page } = await visit(browser, url);
        await page.check('input[value=own]');
        await give(page, 'model', json('config.json', {}));
        await page.fill('#texts', prompt);
        await page.click('#write:enabled');
        const said = await refused(page);
        assert.equal(said, 'the program has failed, reload the page: unreachable');
        await page.fill('#texts', 'more');
        await page.click('#write:enabled');
        assert.equal(await refused(page), said);
        await page.close();
    }
}

/** Without the example, one's own model can be trained. */
async function missing(browser, url) {
    const without = await browserWith(browser, { 'program.js': readFileSync(join(__dirname, 'stand-in.js')), 'job.json': null });
    const page = await without.newPage();
    await page.goto(url);
    assert.match(await refused(page), /\/job\/job\.json: 404 /);
    assert.equal(await page.textContent('#device'), 'The example could not be loaded.');
    assert.equal(await page.isDisabled('#start'), true);
    await page.check('input[value=own]');
    await give(page, 'model', json('config.json', {}));
    await give(page, 'data', table('train.csv'));
    await page.click('#start:enabled');
    await trains(page);
    await without.close();
}

/** What is said where the page cannot train. */
async function lacking(browser, url) {
    const worker = readFileSync(join(dist, 'worker.js'), 'utf8');
    const cases = [
        ['delete WorkerNavigator.prototype.gpu;', /^this browser has no WebGPU here; it needs a page from https or localhost/],
        ['delete WebAssembly.promising;', /^this browser lacks JavaScript Promise Integration .* Chrome and Edge have it from version 137$/],
    ];
    for (const [less, sentence] of cases) {
        const without = await browserWith(browser, { 'worker.js': `${less}\n${worker}` });
        const page = await without.newPage();
        await page.addInitScript(() => { delete Navigator.prototype.gpu; });
        await page.goto(url);
        assert.match(await refused(page), sentence);
        assert.equal(await page.textContent('#device'), 'Training is not possible here.');
        assert.equal(await page.isDisabled('#start'), true);
        await without.close();
    }
    const page = await browser.newPage();
    await page.goto(pathToFileURL(join(dist, 'index.html')).href);
    assert.match(await page.textContent('#device'), /^This page needs WebGPU and .* https or localhost\.$/);
    await page.close();
}

async function page(browser, url) {
    const stand = await browserWith(browser, { 'program.js': readFileSync(join(__dirname, 'stand-in.js')) });
    const { page: visited, wrong } = await visit(stand, url);
    await busy(visited);
    await continued(visited);
    await adapters(visited);
    await choices(visited);
    await stopped(visited);
    const long = await visited.evaluate(async () => (await import('./tar.js')).pack([['é'.repeat(51), new Uint8Array()]])).catch((e) => e.message);
    assert.match(long, /a name in an archive has at most 100 bytes/);
    assert.deepEqual(wrong, []);
    await traps(stand, url);
    await stand.close();
    await missing(browser, url);
    await lacking(browser, url);
}

module.exports = { page };
