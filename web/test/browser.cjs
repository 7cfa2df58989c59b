// A static server, a browser and the native command, for the parts of the visit.
const assert = require('node:assert/strict');
const { execFileSync } = require('node:child_process');
const { existsSync, readFileSync } = require('node:fs');
const { createServer } = require('node:http');
const { dirname, extname, join, normalize, resolve } = require('node:path');
const { chromium } = require('playwright-core');

const [dist, cli, out] = process.argv.slice(2).map((path) => resolve(path));
const program = process.env.CHROMIUM;
/** Chromium's own driver, which the native command can use, too. */
const DRIVER = join(dirname(program), '../lib/chromium/vk_swiftshader_icd.json');
const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.json': 'application/json', '.wasm': 'application/wasm' };
/** What docs/browser.md says that a host may allow. */
const POLICY = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; img-src data:";
/** The watchdog takes a software driver that compiles for seconds for one that hangs. */
const FLAGS = ['--no-sandbox', '--enable-unsafe-webgpu', '--disable-gpu-watchdog', '--disable-gpu-process-crash-limit',
    '--disable-domain-blocking-for-3d-apis', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];

/** Serves the page, and directories under the names in `more`. */
function serve() {
    const [asked, more] = [[], {}];
    const server = createServer((request, answer) => {
        const path = normalize(decodeURIComponent(new URL(request.url, 'http://localhost').pathname));
        asked.push(path);
        const [, first, ...rest] = path.split('/');
        const file = first in more ? join(more[first], ...rest) : join(dist, path === '/' ? 'index.html' : path);
        if (!existsSync(file)) {
            answer.statusCode = 404;
            answer.end();
            return;
        }
        answer.setHeader('content-type', TYPES[extname(file)] ?? 'application/octet-stream');
        answer.setHeader('content-security-policy', POLICY);
        answer.end(readFileSync(file));
    });
    return new Promise((ready) => server.listen(0, '127.0.0.1', () => {
        ready({ asked, more, url: `http://localhost:${server.address().port}/`, close: () => server.close() });
    }));
}

const launch = () => chromium.launch({ executablePath: program, args: FLAGS });

/** The page, loaded and ready. What goes wrong in it is collected in `wrong`. */
async function visit(browser, url, options = {}) {
    const page = await browser.newPage({ colorScheme: 'light', viewport: { width: 1000, height: 1400 }, ...options });
    const wrong = [];
    page.on('console', (message) => message.type() === 'error' && wrong.push(message.text()));
    page.on('pageerror', (error) => wrong.push(error.message));
    await page.goto(url);
    await settled(page, () => document.body.dataset.ready);
    return { page, wrong };
}

/** Waits until `done` is true in the page. Errors: the page shows one. */
async function settled(page, done, limit = 300_000) {
    for (const end = Date.now() + limit; !await page.evaluate(done);) {
        assert.equal(await error(page), null);
        assert.ok(Date.now() < end, `it has not come to this: ${done}`);
        await new Promise((resolve) => { setTimeout(resolve, 100); });
    }
    assert.equal(await error(page), null);
}

/** The sentence of an error on the page. */
async function error(page) {
    return await page.isVisible('#error') ? page.textContent('#error') : null;
}

/** Drops a file or a folder, as a mouse does. */
async function drop(page, into, path) {
    const area = page.locator(`[data-into=${into}]`);
    await area.scrollIntoViewIfNeeded();
    const { x, y } = await area.boundingBox();
    const control = await page.context().newCDPSession(page);
    const data = { items: [], files: [path], dragOperationsMask: 1 };
    for (const type of ['dragEnter', 'dragOver', 'drop']) {
        await control.send('Input.dispatchDragEvent', { type, x: x + 9, y: y + 9, data });
    }
}

/** The native command; on the adapter that the browser has, where its driver can be used natively. */
function native(...given) {
    const env = { ...process.env, ...(existsSync(DRIVER) ? { VK_DRIVER_FILES: DRIVER } : {}) };
    return execFileSync(cli, given, { encoding: 'utf8', env, maxBuffer: 1 << 28 });
}

/** Lines of JSON. */
const lines = (text) => text.trim().split('\n').map((line) => JSON.parse(line));

module.exports = { DRIVER, FLAGS, dist, drop, error, launch, lines, native, out, program, serve, settled, visit };
