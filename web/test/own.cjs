// The user's own models and tables, by drag and drop and by file input: a small model, and SmolLM2-135M where .ci/smollm2 has made it.
const assert = require('node:assert/strict');
const { existsSync, readdirSync, statSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { dist, drop, error, lines, native, out, settled, visit } = require('./browser.cjs');

const large = join(__dirname, '../../target/tools/smollm2/model');
const PROMPT = 'The capital of France is';
const TOKENS = '4';

const has = (page, into) => page.waitForFunction((id) => / MiB\.$/.test(document.getElementById(id).textContent), `${into}-has`);

/** Gives the page a dropped model and a chosen table. */
async function give(page, model) {
    const table = join(out, 'reviews.csv');
    const rows = ['a fine film,good', 'dull and long,bad', 'i loved it,good', 'a waste of time,bad'];
    writeFileSync(table, `text,label\n${Array(4).fill(rows.join('\n')).join('\n')}\n`);
    await page.check('input[value=own]');
    await drop(page, 'model', model);
    await has(page, 'model');
    await page.setInputFiles('#data-files', table);
    await has(page, 'data');
    await page.waitForSelector('#start:enabled');
}

/** Trains for two steps. */
async function train(page) {
    await page.fill('input[name=maxSteps]', '2');
    await page.fill('input[name=atOnce]', '32');
    await page.click('#start');
    await settled(page, () => document.body.dataset.result, 1_500_000);
    const { losses, result } = JSON.parse(await page.evaluate(() => document.body.dataset.result));
    assert.ok(losses.length === 2 && losses.every(Number.isFinite), String(losses));
    assert.ok(result.device_memory <= result.planned_memory, `${result.device_memory} bytes, planned ${result.planned_memory}`);
    return { losses, trained: result.trainable.body };
}

/** Continues a prompt, as the native command does. */
async function write(page, model) {
    await page.fill('#texts', PROMPT);
    await page.fill('input[name=tokens]', TOKENS);
    await page.click('#write:enabled');
    await settled(page, () => !document.getElementById('write').disabled, 900_000);
    const written = await page.textContent('#answer');
    const prompts = join(out, 'prompts.txt');
    writeFileSync(prompts, PROMPT);
    const [{ text }] = lines(native('generate', model, prompts, '--max-tokens', TOKENS, '--device', 'wgpu'));
    assert.equal(written, text);
    return written;
}

/** The embedded model as one's own: a text, a plan beyond the memory that the visitor states, and training. */
async function small(browser, url) {
    const { page, wrong } = await visit(browser, url);
    const model = join(dist, 'job/model');
    await give(page, model);
    await write(page, model);
    await page.fill('input[name=memory]', '0.0005');
    await page.click('#start');
    await page.waitForSelector('#error:not([hidden])');
    const said = await error(page);
    assert.match(said, /the run needs .*, but the device has 0\.5 MiB\. To make it fit: /);
    console.log(`a plan without memory: ${said}`);
    await page.fill('input[name=memory]', '');
    await train(page);
    assert.deepEqual(wrong, []);
    await page.close();
}

async function own(browser, url) {
    if (!existsSync(large)) {
        console.log('SKIPPED: .ci/smollm2 has not made a model');
        return;
    }
    const { page, wrong } = await visit(browser, url);
    await give(page, large);
    const written = await write(page, large);
    const { losses, trained } = await train(page);
    const [planned, used] = [await page.textContent('#memory'), await page.textContent('#tab')];
    const files = readdirSync(large).reduce((sum, name) => sum + statSync(join(large, name)).size, 0) / 2 ** 20;
    console.log(`SmolLM2-135M of ${files.toFixed(0)} MiB writes ${JSON.stringify(written)}, losses ${losses.map((loss) => loss.toFixed(3))}, `
        + `planned ${planned} on the GPU, ${used} in the tab`);
    // In the tab's memory are the model's files once and, in numbers of four bytes for each trained scalar, two checkpoints of three
    // each, the adapter, the index sets of the plan and of the session, and the values that are being merged. A fifth more is left for the
    // program's own data and for gaps.
    const expected = files + 10 * 4 * trained / 2 ** 20;
    assert.ok(parseFloat(used) < 1.2 * expected, `${used} in the tab, expected ${expected.toFixed(0)} MiB`);
    assert.deepEqual(wrong, []);
    await page.close();
}

module.exports = { own, small };
