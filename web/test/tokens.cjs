// The tokenizer without C: its token ids in the browser are those of the native command, for every tokenizer there is.
const assert = require('node:assert/strict');
const { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { lines, native, out, visit } = require('./browser.cjs');

const FILES = ['config.json', 'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json'];
// Optional test data: see CONTRIBUTING.md.
const data = join(process.env.SPARTA_TEST_DATA || join(__dirname, '../../../shared'), 'data');
const real = join(__dirname, '../../target/tools/smollm2/model');

/** Numbers below `below`, the same each time. */
function random(seed) {
    let state = BigInt(seed);
    return (below) => {
        state = (state * 6364136223846793005n + 1442695040888963407n) & 0xffffffffffffffffn;
        return Number(state >> 33n) % below;
    };
}

/** Characters of all kinds: the ranges are drawn from evenly, so that rare ones are not. */
const RANGES = [[0x20, 0x7f], [9, 14], [0xa0, 0x250], [0x300, 0x370], [0x370, 0x600], [0x600, 0x1200], [0x1e00, 0x2070], [0x2000, 0x2bff],
    [0x3000, 0x3100], [0x4e00, 0x9fff], [0xac00, 0xd7a3], [0xfb00, 0xffef], [0x10000, 0x1d7ff], [0x1f000, 0x1fbff], [0xe0100, 0xe01ef]];
const SPACES = [' ', '  ', '\t', '\n', '\r\n', '\u00a0', '\u3000', '\u2028', '\u0085', '\u200b', '\u200d'];
const PIECES = ["'s", "'LL", "'\u017f", 'it\u2019s', '1,234.5e-6', '\u00bd\u2167\u0665', 'caf\u00e9 cafe\u0301', '\u{1f469}\u200d\u{1f52c}', '\u{1f1e9}\u{1f1ea}', '#!/bin/sh',
    'fn main() {\n    let x = vec![1, 2];\n\treturn x\n}', 'def f(a, *b):\n    """doc"""\n', 'https://example.org/a?b=c&d=%20', '<s>', '</s>', '<|im_start|>', '<bos>'];

function texts() {
    const draw = random(1);
    const made = [];
    for (let i = 0; i < 400; i += 1) {
        let text = '';
        for (let n = draw(60); n >= 0; n -= 1) {
            const [from, to] = RANGES[draw(RANGES.length)];
            const kind = draw(8);
            text += kind === 0 ? SPACES[draw(SPACES.length)] : kind === 1 ? PIECES[draw(PIECES.length)] : String.fromCodePoint(from + draw(to - from));
        }
        made.push(text);
    }
    for (const space of SPACES) {
        made.push(`${space.repeat(2000)}x${space.repeat(3)}`, `a${space.repeat(5000)}`);
    }
    const tables = ['glue/SST-2/dev.tsv', 'glue/RTE/dev.tsv', 'glue/CoLA/dev.tsv'].map((name) => join(data, name)).filter(existsSync);
    for (const table of tables) {
        made.push(...readFileSync(table, 'utf8').split('\n').slice(1, 301));
    }
    // Without text there is no example.
    return made.map((text) => `x${text}`);
}

/** The directories of a tokenizer. */
function tokenizers() {
    const below = (name) => (existsSync(join(data, name)) ? readdirSync(join(data, name)).map((inside) => join(data, name, inside)) : []);
    return [...below('tokenizers'), ...below('models'), real].filter((dir) => existsSync(join(dir, 'tokenizer.json')));
}

async function tokens(browser, server, embedded) {
    const all = [embedded, ...tokenizers()];
    if (all.length === 1) {
        console.log(`SKIPPED: only the embedded tokenizer is compared: ${data} is missing; it is optional test data: see CONTRIBUTING.md`);
    }
    const table = join(out, 'texts');
    mkdirSync(table, { recursive: true });
    const lined = texts().map((text, i) => JSON.stringify({ text, label: i % 2 ? 'a' : 'b' })).join('\n');
    for (const split of ['train', 'dev', 'test']) {
        writeFileSync(join(table, `${split}.jsonl`), split === 'train' ? lined : '{"text":"x","label":"a"}\n{"text":"x","label":"b"}\n');
    }
    const { page } = await visit(browser, server.url);
    for (const dir of all) {
        server.more.model = dir;
        server.more.texts = table;
        const files = FILES.filter((name) => existsSync(join(dir, name)));
        const shown = ['data', 'show', '--model', dir, '--data', table, '--task', 'classify', '--split', 'train', '--json'];
        const own = lines(native(...shown)).filter(({ ids }) => ids).map(({ ids }) => ids);
        const found = await page.evaluate(async (names) => {
            const { Sparta } = await import('./sparta.js');
            const sparta = await Sparta.start();
            for (const name of names) {
                await sparta.load(`model/${name}`, `model/${name}`);
            }
            for (const split of ['train', 'dev', 'test']) {
                await sparta.load(`texts/${split}.jsonl`, `texts/${split}.jsonl`);
            }
            const job = { model: 'model', data: 'texts', task: 'classify', method: 'sparta', out: 'run' };
            const examples = await sparta.examples(job, { split: 'train', first: 1e6 });
            sparta.close();
            return examples.map(({ ids }) => ids);
        }, files);
        assert.ok(own.length > 400, `${own.length} texts`);
        own.forEach((ids, i) => assert.deepEqual(found[i], ids, `${dir}: text ${i} of ${table}`));
        console.log(`${dir.split('/').slice(-2).join('/')}: ${own.flat().length} token ids of ${own.length} texts are the native ones`);
    }
    await page.close();
}

module.exports = { tokens };
