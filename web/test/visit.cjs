// node visit.cjs DIST SPARTA_CLI OUT: uses the page as a visitor does, and holds what it does against the native command. NODE_PATH
// has playwright-core, CHROMIUM is the browser.
const assert = require('node:assert/strict');
const { execFileSync } = require('node:child_process');
const { mkdirSync, readFileSync, writeFileSync, existsSync } = require('node:fs');
const { createServer } = require('node:http');
const { dirname, extname, join, normalize, resolve } = require('node:path');
const { chromium } = require('playwright-core');

const [dist, cli, out] = process.argv.slice(2).map((path) => resolve(path));
const browser = process.env.CHROMIUM;
/** Enough for 95 %. */
const STEPS = '80';
/** Steps whose losses are compared where the native driver is another one: later weights have the rounding of all steps before. */
const COMPARED = 40;
/** Chromium's own driver, which the native command can use, too. */
const DRIVER = join(dirname(browser), '../lib/chromium/vk_swiftshader_icd.json');
const job = join(dist, 'job');

const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.json': 'application/json', '.wasm': 'application/wasm' };

function serve() {
    const asked = [];
    const server = createServer((request, answer) => {
        const path = normalize(new URL(request.url, 'http://localhost').pathname);
        asked.push(path);
        const file = join(dist, path === '/' ? 'index.html' : path);
        if (!file.startsWith(dist) || !existsSync(file)) {
            answer.statusCode = 404;
            answer.end();
            return;
        }
        answer.setHeader('content-type', TYPES[extname(file)] ?? 'application/octet-stream');
        answer.end(readFileSync(file));
    });
    return new Promise((ready) => server.listen(0, '127.0.0.1', () => ready({ server, asked })));
}

/** The native command; on the adapter that the browser has, where its driver can be used natively. */
function native(...given) {
    const env = { ...process.env, ...(existsSync(DRIVER) ? { VK_DRIVER_FILES: DRIVER } : {}) };
    return execFileSync(cli, given, { encoding: 'utf8', env, maxBuffer: 1 << 28 });
}

async function train(page) {
    await page.fill('input[name=maxSteps]', STEPS);
    await page.focus('#start');
    await page.keyboard.press('Enter');
    await page.waitForFunction(() => document.body.dataset.result || !document.getElementById('error').hidden, null, { timeout: 900_000 });
    const error = await page.isVisible('#error') && await page.textContent('#error');
    assert.equal(error, false);
    return JSON.parse(await page.evaluate(() => document.body.dataset.result));
}

async function main() {
    const { server, asked } = await serve();
    const window = await chromium.launch({
        executablePath: browser,
        args: ['--no-sandbox', '--enable-unsafe-webgpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
            '--disable-component-update', '--disable-sync'],
    });
    try {
        const page = await window.newPage({ colorScheme: 'light', viewport: { width: 1000, height: 1400 } });
        const wrong = [];
        page.on('console', (message) => message.type() === 'error' && wrong.push(message.text()));
        page.on('pageerror', (error) => wrong.push(error.message));
        await page.goto(`http://localhost:${server.address().port}/`);
        await page.waitForFunction(() => document.body.dataset.ready || !document.getElementById('error').hidden, null, { timeout: 60_000 });
        assert.equal(await page.isVisible('#error') && await page.textContent('#error'), false);
        console.log(await page.textContent('#device'));
        const loaded = asked.length;

        const begun = Date.now();
        const { losses, result } = await train(page);
        console.log(`${result.steps} steps in ${((Date.now() - begun) / 1000).toFixed(0)} s with all evaluations, test ${JSON.stringify(result.test.accuracy)}`);
        assert.ok(result.test.accuracy >= 0.95, `accuracy ${result.test.accuracy}`);
        const sets = await page.textContent('#sets');
        for (const scheme of ['light', 'dark']) {
            await page.emulateMedia({ colorScheme: scheme });
            await page.screenshot({ path: join(out, `${scheme}.png`), fullPage: true });
        }
        await page.setViewportSize({ width: 390, height: 844 });
        await page.screenshot({ path: join(out, 'phone.png'), fullPage: true });
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(wide <= 0, `the page is ${wide} pixels too wide for a phone`);

        await page.click('#predict');
        await page.waitForFunction(() => document.getElementById('answer').textContent.includes('negative') || !document.getElementById('error').hidden);
        console.log(await page.textContent('#answer'));

        const [download] = await Promise.all([page.waitForEvent('download'), page.click('#save')]);
        await download.saveAs(join(out, 'adapter.tar'));
        execFileSync('tar', ['xf', join(out, 'adapter.tar'), '-C', out]);
        compare(losses, result, sets);
        await reverse(page);
        assert.equal(asked.length, loaded, `asked for after loading: ${asked.slice(loaded)}`);
        assert.deepEqual(wrong, []);
    } finally {
        await window.close();
        server.close();
    }
}

/** The same run natively, and the browser's adapter measured natively. */
function compare(losses, result, sets) {
    const run = join(out, 'native');
    const options = Object.entries(JSON.parse(readFileSync(join(job, 'job.json'))).options)
        .flatMap(([name, value]) => [`--${name}`, String(value)]);
    const sources = ['--model', join(job, 'model'), '--data', join(job, 'data'), '--task', 'sst2'];
    native('run', ...sources, ...options, '--lr', '5e-3', '--max-steps', STEPS, '--device', 'wgpu', '--out', run);
    const lines = readFileSync(join(run, 'metrics.jsonl'), 'utf8').trim().split('\n').map((line) => JSON.parse(line));
    const own = lines.filter((line) => line.kind === 'step').map((line) => line.loss);
    assert.equal(own.length, losses.length);
    const differences = own.map((loss, i) => Math.abs(loss - losses[i]));
    const same = differences.findIndex((difference) => difference > 0);
    const largest = Math.max(...differences.slice(0, existsSync(DRIVER) ? undefined : COMPARED));
    console.log(`losses: ${same < 0 ? 'all' : `the first ${same}`} equal to the bit, the largest difference is ${largest.toExponential(1)}`);
    assert.ok(largest <= (existsSync(DRIVER) ? 0 : 1e-3), `losses differ by ${largest}: ${losses.slice(0, COMPARED)} and ${own.slice(0, COMPARED)}`);
    const manifest = JSON.parse(readFileSync(join(run, 'adapter/adapter.json')));
    assert.ok(sets.includes(manifest.index_sha256), `${sets}, natively ${manifest.index_sha256}`);
    const measured = JSON.parse(native('--allow-other-plugin', 'eval', join(out, 'adapter'), '--model', join(job, 'model'),
        '--data', join(job, 'data'), '--split', 'test', '--device', 'wgpu', '--json').trim().split('\n').at(-1));
    console.log(`the browser's adapter natively: accuracy ${measured.metrics.accuracy}`);
    const { accuracy } = measured.metrics;
    assert.ok(Math.abs(accuracy - result.test.accuracy) <= 0.002, `${accuracy} natively, ${result.test.accuracy} in the browser`);
}

/** The native run's adapter in the browser. */
async function reverse(page) {
    const adapter = join(out, 'native/adapter');
    await page.setInputFiles('#adapter-files', ['adapter.json', 'adapter.safetensors'].map((name) => join(adapter, name)));
    await page.waitForFunction(() => document.getElementById('adapter-has').textContent.startsWith('2 files'));
    await page.waitForSelector('#measure:enabled');
    await page.click('#measure');
    await page.waitForFunction(() => document.getElementById('answer').textContent.startsWith('test:') || !document.getElementById('error').hidden, null, { timeout: 120_000 });
    const found = await page.textContent('#answer');
    console.log(`the native adapter in the browser: ${found}`);
    const stated = JSON.parse(readFileSync(join(out, 'native/result.json'))).test.accuracy;
    const accuracy = Number(/accuracy ([\d.]+)/.exec(found)?.[1]);
    assert.ok(Math.abs(accuracy - stated) <= 0.002, `${found}, natively ${stated}`);
}

mkdirSync(out, { recursive: true });
main().catch((error) => {
    writeFileSync(join(out, 'error.txt'), String(error.stack));
    console.error(error);
    process.exit(1);
});
