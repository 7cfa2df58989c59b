// node visit.cjs DIST SPARTA_CLI OUT [PART...]: uses the page as a visitor does, and compares what it does with the
// native command. NODE_PATH has playwright-core, CHROMIUM is the browser. If parts are named, only those run.
const assert = require('node:assert/strict');
const { mkdirSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { dist, launch, out, serve, visit } = require('./browser.cjs');
const { embedded } = require('./embedded.cjs');
const { hidden } = require('./hidden.cjs');
const { looks } = require('./looks.cjs');
const { own, small } = require('./own.cjs');
const { page } = require('./page.cjs');
const { tokens } = require('./tokens.cjs');
const trouble = require('./trouble.cjs');

/** The page with the embedded job, without a request after loading. */
async function first(browser, server) {
    const { page, wrong } = await visit(browser, server.url);
    console.log(await page.textContent('#device'));
    const loaded = server.asked.length;
    await embedded(page);
    await looks(page);
    assert.equal(server.asked.length, loaded, `asked for after loading: ${server.asked.slice(loaded)}`);
    assert.deepEqual(wrong, []);
    await page.close();
}

const PARTS = {
    page: (browser, { url }) => page(browser, url),
    first,
    lost: (browser, { url }) => trouble.lost(browser, url),
    memory: (browser, { url }) => trouble.memory(browser, url),
    tab: (browser, { url }) => trouble.tab(browser, url),
    hidden: (_, { url }) => hidden(url),
    tokens: (browser, server) => tokens(browser, server, join(dist, 'job/model')),
    small: (browser, { url }) => small(browser, url),
    own: (browser, { url }) => own(browser, url),
};

/** Parts that take a software driver minutes: only if named. */
const NAMED = ['lost', 'hidden', 'small', 'own'];

async function main() {
    const wanted = process.argv.slice(5);
    assert.deepEqual(wanted.filter((name) => !(name in PARTS)), [], `there is no such part, only ${Object.keys(PARTS)}`);
    const server = await serve();
    const browser = await launch();
    try {
        for (const [name, part] of Object.entries(PARTS)) {
            if (wanted.length === 0 ? !NAMED.includes(name) : wanted.includes(name)) {
                const begun = Date.now();
                await part(browser, server);
                console.log(`-- ${name}: ${((Date.now() - begun) / 1000).toFixed(0)} s`);
            }
        }
    } finally {
        await browser.close();
        server.close();
    }
}

mkdirSync(out, { recursive: true });
main().catch((error) => {
    writeFileSync(join(out, 'error.txt'), String(error.stack));
    console.error(error);
    process.exit(1);
});
