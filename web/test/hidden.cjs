// A hidden tab keeps training, and one that the browser freezes continues when it is shown. Playwright keeps its pages visible, so this
// part speaks Chromium's protocol itself.
const assert = require('node:assert/strict');
const { spawn } = require('node:child_process');
const { mkdtempSync, rmSync } = require('node:fs');
const { tmpdir } = require('node:os');
const { join } = require('node:path');
const { FLAGS, program } = require('./browser.cjs');

class Control {
    #browser;
    #open = new Map();
    #next = 0;
    #text = '';

    constructor(profile, url) {
        const flags = [...FLAGS, '--headless', '--remote-debugging-pipe', `--user-data-dir=${profile}`, url];
        this.#browser = spawn(program, flags, { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] });
        this.#browser.stdio[4].on('data', (bytes) => this.#take(bytes));
    }

    #take(bytes) {
        const messages = (this.#text + bytes).split('\0');
        this.#text = messages.pop();
        for (const message of messages.map((text) => JSON.parse(text))) {
            this.#open.get(message.id)?.(message.result);
            this.#open.delete(message.id);
        }
    }

    send(method, params = {}, sessionId = undefined) {
        this.#next += 1;
        const id = this.#next;
        return new Promise((resolve) => {
            this.#open.set(id, resolve);
            this.#browser.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
        });
    }

    close() {
        const closed = new Promise((resolve) => { this.#browser.on('exit', resolve); });
        this.send('Browser.close');
        return closed;
    }
}

/** Asks until the answer is true. */
async function until(ask, what) {
    for (let tries = 0; tries < 2400; tries += 1) {
        if (await ask()) {
            return;
        }
        await new Promise((resolve) => { setTimeout(resolve, 250); });
    }
    assert.fail(`it has not come to this: ${what}`);
}

async function hidden(url) {
    const profile = mkdtempSync(join(tmpdir(), 'visit-'));
    const control = new Control(profile, url);
    try {
        const target = async () => (await control.send('Target.getTargets')).targetInfos.find(({ type }) => type === 'page');
        await until(target, 'a tab');
        const { targetId } = await target();
        const { sessionId } = await control.send('Target.attachToTarget', { targetId, flatten: true });
        const ask = async (expression) => (await control.send('Runtime.evaluate', { expression, returnByValue: true }, sessionId)).result?.value;
        const step = async () => Number.parseInt(await ask('document.getElementById("step").textContent'), 10) || 0;
        await until(() => ask('document.body?.dataset.ready'), 'the page is ready');
        await ask('document.querySelector("input[name=maxSteps]").value = 200; document.getElementById("start").click()');
        await until(async () => await step() >= 2, 'the run is at step 2');
        await control.send('Target.createTarget', { url: 'about:blank' });
        await until(async () => await ask('document.visibilityState') === 'hidden', 'the tab is hidden');
        const before = await step();
        await until(async () => await step() >= before + 5, 'the hidden tab is 5 steps further');
        assert.equal(await ask('document.visibilityState'), 'hidden');
        await control.send('Page.setWebLifecycleState', { state: 'frozen' }, sessionId);
        await control.send('Page.setWebLifecycleState', { state: 'active' }, sessionId);
        await control.send('Target.activateTarget', { targetId });
        const frozen = await step();
        await until(async () => await step() > frozen, 'the tab that was frozen is a step further');
        await ask('document.getElementById("stop").click()');
        await until(() => ask('document.body.dataset.result ?? document.getElementById("error").textContent'), 'the run has ended');
        assert.equal(await ask('document.getElementById("error").textContent'), '');
        assert.match(await ask('document.getElementById("log").textContent'), /had frozen this tab/);
        console.log(`a hidden tab: trained on from step ${before}, and on when it was shown after being frozen`);
    } finally {
        await control.close();
        rmSync(profile, { recursive: true, force: true });
    }
}

module.exports = { hidden };
