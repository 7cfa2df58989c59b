// The embedded job, trained by keyboard, beside the same run natively; the adapter of each is used by the other.
const assert = require('node:assert/strict');
const { execFileSync } = require('node:child_process');
const { existsSync, readFileSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { DRIVER, dist, lines, native, out, settled } = require('./browser.cjs');

const job = join(dist, 'job');
/** Enough for 95 %. */
const STEPS = '80';
/** Steps whose losses are compared where the native driver is another one: later weights have the rounding of all steps before. */
const COMPARED = 40;
/** The largest difference of losses and probabilities: none where both sides have one driver. */
const TOLERANCE = existsSync(DRIVER) ? 0 : 1e-3;
const TEXTS = ['the food was cold and the service was worse.', 'i would happily come back.'];

async function embedded(page) {
    await page.fill('input[name=maxSteps]', STEPS);
    await page.focus('#start');
    await page.keyboard.press('Enter');
    await settled(page, () => document.body.dataset.result, 900_000);
    const { losses, result } = JSON.parse(await page.evaluate(() => document.body.dataset.result));
    console.log(`${result.steps} steps, test ${JSON.stringify(result.test.accuracy)}`);
    assert.ok(result.test.accuracy >= 0.95, `accuracy ${result.test.accuracy}`);
    assert.ok(result.device_memory <= result.planned_memory, `${result.device_memory} bytes, planned ${result.planned_memory}`);
    const sets = await page.textContent('#sets');
    const predicted = await predict(page);
    const [download] = await Promise.all([page.waitForEvent('download'), page.click('#save')]);
    await download.saveAs(join(out, 'adapter.tar'));
    execFileSync('tar', ['xf', join(out, 'adapter.tar'), '-C', out]);

    const run = join(out, 'native');
    const options = Object.entries(JSON.parse(readFileSync(join(job, 'job.json'))).options)
        .flatMap(([name, value]) => [`--${name}`, String(value)]);
    const sources = ['--model', join(job, 'model'), '--data', join(job, 'data')];
    native('run', ...sources, '--task', 'sst2', ...options, '--lr', '5e-3', '--max-steps', STEPS, '--device', 'wgpu', '--out', run);
    sameLosses(losses, lines(readFileSync(join(run, 'metrics.jsonl'), 'utf8')));
    const manifest = JSON.parse(readFileSync(join(run, 'adapter/adapter.json')));
    assert.ok(sets.includes(manifest.index_sha256), `${sets}, natively ${manifest.index_sha256}`);

    const [measured] = lines(native('--allow-other-plugin', 'eval', join(out, 'adapter'), ...sources, '--split', 'test', '--device', 'wgpu',
        '--json')).slice(-1);
    const { accuracy, loss } = measured.metrics;
    console.log(`the browser's adapter natively: accuracy ${accuracy}, loss ${loss}`);
    assert.ok(Math.abs(accuracy - result.test.accuracy) <= 0.002, `${accuracy} natively, ${result.test.accuracy} in the browser`);
    assert.ok(Math.abs(loss - result.test.loss) <= TOLERANCE, `loss ${loss} natively, ${result.test.loss} in the browser`);
    assert.deepEqual(predictNatively(join(out, 'adapter'), sources), predicted);
    await reverse(page, sources);
}

function sameLosses(losses, metrics) {
    const own = metrics.filter((line) => line.kind === 'step').map((line) => line.loss);
    assert.equal(own.length, losses.length);
    const differences = own.map((loss, i) => Math.abs(loss - losses[i]));
    const same = differences.findIndex((difference) => difference > 0);
    const largest = Math.max(...differences.slice(0, existsSync(DRIVER) ? undefined : COMPARED));
    console.log(`losses: ${same < 0 ? 'all' : `the first ${same}`} equal to the bit, the largest difference is ${largest.toExponential(1)}`);
    assert.ok(largest <= TOLERANCE, `losses differ by ${largest}: ${losses.slice(0, COMPARED)} and ${own.slice(0, COMPARED)}`);
}

/** What the page says of the texts. */
async function predict(page) {
    await page.fill('#texts', TEXTS.join('\n'));
    await page.evaluate(() => { document.getElementById('answer').textContent = ''; });
    await page.click('#predict');
    await settled(page, () => document.getElementById('answer').textContent.includes('negative'));
    return (await page.textContent('#answer')).split('\n').filter((line) => line.startsWith(' ')).map((line) => line.trim());
}

/** What the native command says of the texts, as the page writes it. */
function predictNatively(adapter, [, model]) {
    const texts = join(out, 'texts.txt');
    writeFileSync(texts, TEXTS.join('\n'));
    const found = lines(native('--allow-other-plugin', 'predict', adapter, texts, '--model', model, '--device', 'wgpu', '--json'));
    return found.map(({ probabilities }) => {
        const sorted = Object.entries(probabilities).sort((a, b) => b[1] - a[1]);
        return sorted.map(([label, value]) => `${label} ${value.toFixed(3)}`).join('   ');
    });
}

/** The native run's adapter in the browser: the same metrics and predictions. */
async function reverse(page, sources) {
    const adapter = join(out, 'native/adapter');
    await page.setInputFiles('#adapter-files', ['adapter.json', 'adapter.safetensors'].map((name) => join(adapter, name)));
    await settled(page, () => document.getElementById('adapter-has').textContent.startsWith('2 files'));
    await page.waitForSelector('#measure:enabled');
    await page.click('#measure');
    await settled(page, () => document.getElementById('answer').textContent.startsWith('test:'));
    const found = await page.textContent('#answer');
    console.log(`the native adapter in the browser: ${found}`);
    const stated = JSON.parse(readFileSync(join(out, 'native/result.json'))).test;
    const [accuracy, loss] = [/accuracy ([\d.]+)/, /loss ([\d.]+)/].map((pattern) => Number(pattern.exec(found)?.[1]));
    assert.ok(Math.abs(accuracy - stated.accuracy) <= 0.002, `${found}, natively ${stated.accuracy}`);
    assert.ok(Math.abs(loss - stated.loss) <= TOLERANCE + 5e-5, `${found}, natively ${stated.loss}`);
    assert.deepEqual(await predict(page), predictNatively(adapter, sources));
}

module.exports = { embedded };
