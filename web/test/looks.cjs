// How the page looks in both schemes, on a desktop and on a phone, and whether it can be used without a mouse and
// without sight.
const assert = require('node:assert/strict');
const { join } = require('node:path');
const { out } = require('./browser.cjs');

async function looks(page) {
    for (const [screen, width, height] of [['desktop', 1000, 1400], ['phone', 390, 844]]) {
        await page.setViewportSize({ width, height });
        for (const scheme of ['light', 'dark']) {
            await page.emulateMedia({ colorScheme: scheme });
            await page.screenshot({ path: join(out, `${screen}-${scheme}.png`), fullPage: true });
            assert.deepEqual(await pale(page), [], `${scheme}: too little contrast`);
        }
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(wide <= 0, `the page is ${wide} pixels too wide for a ${screen}`);
    }
    await page.setViewportSize({ width: 1000, height: 1400 });
    assert.deepEqual(await unnamed(page), []);
    assert.deepEqual(await unreached(page), []);
    const live = await page.$$eval('#status, #device, #error, #answer', (all) => all.map((e) => e.role ?? e.getAttribute('role') ?? e.ariaLive));
    assert.deepEqual(live, ['status', 'alert', 'status', 'polite']);
}

/** Texts, also those in empty fields, with less contrast than 4.5 against what is behind them. */
function pale(page) {
    return page.evaluate(() => {
        const parsed = (colour) => colour.match(/[\d.]+/g).map(Number);
        const light = (colour) => parsed(colour).slice(0, 3).map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4))
            .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
        const behind = (element) => {
            const { backgroundColor } = getComputedStyle(element);
            return parsed(backgroundColor)[3] === 0 && element.parentElement ? behind(element.parentElement) : backgroundColor;
        };
        const shown = [...document.querySelectorAll('body *')].filter((element) => element.checkVisibility() && !element.disabled
            && [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim()));
        const hints = [...document.querySelectorAll('input[placeholder]')].filter((element) => element.checkVisibility());
        const contrast = (element, part) => {
            const [a, b] = [light(getComputedStyle(element, part).color), light(behind(element))];
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        };
        const pale = [...shown.filter((element) => contrast(element) < 4.5), ...hints.filter((element) => contrast(element, '::placeholder') < 4.5)];
        return pale.map((element) => element.outerHTML.slice(0, 80));
    });
}

/** Fields and buttons without a name for a screen reader. */
function unnamed(page) {
    return page.$$eval('input, select, textarea, button, svg, table, progress', (all) => all
        .filter((e) => !(e.labels?.length || e.ariaLabel || e.caption || (e.matches('button') && e.textContent.trim())))
        .map((e) => e.outerHTML.slice(0, 80)));
}

/** Fields and buttons that are shown and can be used, but are not reached by the tabulator key. */
async function unreached(page) {
    await page.evaluate(() => document.activeElement.blur());
    const reached = new Set();
    for (let i = 0; i < 60; i += 1) {
        await page.keyboard.press('Tab');
        reached.add(await page.evaluate(() => document.activeElement.id || document.activeElement.name));
    }
    const all = await page.$$eval('input:not([type=radio]), select, textarea, button, pre', (some) => some
        .filter((e) => !e.disabled && e.checkVisibility()).map((e) => e.id || e.name));
    return all.filter((name) => !reached.has(name));
}

module.exports = { looks };
