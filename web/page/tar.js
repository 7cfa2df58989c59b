// Archives of a few small files, as `tar` reads and writes them.
const BLOCK = 512;
/** The most bytes of a name. */
const NAME = 100;
const text = new TextEncoder();

function header(name, size) {
    if (text.encode(name).length > NAME) {
        throw new Error(`${name}: a name in an archive has at most ${NAME} bytes`);
    }
    const block = new Uint8Array(BLOCK);
    const put = (at, value) => block.set(text.encode(value), at);
    const octal = (number, digits) => `${number.toString(8).padStart(digits, '0')}\0`;
    put(0, name);
    put(NAME, octal(0o644, 7));
    put(108, octal(0, 7));
    put(116, octal(0, 7));
    put(124, octal(size, 11));
    put(136, octal(0, 11));
    put(148, '        ');
    put(156, '0');
    put(257, 'ustar\x0000');
    put(148, `${octal(block.reduce((sum, byte) => sum + byte, 0), 6)} `);
    return block;
}

/** An archive of `[name, bytes]`. Errors: a name of more than 100 bytes. */
export function pack(files) {
    const parts = files.flatMap(([name, bytes]) => {
        const filling = new Uint8Array((BLOCK - bytes.length % BLOCK) % BLOCK);
        return [header(name, bytes.length), bytes, filling];
    });
    return new Blob([...parts, new Uint8Array(2 * BLOCK)], { type: 'application/x-tar' });
}

/** The files of an archive, as `[name, blob]`. */
export async function unpack(archive) {
    const files = [];
    for (let at = 0; at + BLOCK <= archive.size;) {
        const block = new Uint8Array(await archive.slice(at, at + BLOCK).arrayBuffer());
        const field = (from, to) => new TextDecoder().decode(block.slice(from, to)).split('\0')[0];
        const [name, size, kind] = [field(0, NAME), parseInt(field(124, 136), 8), field(156, 157)];
        if (name === '') {
            break;
        }
        if (!(size >= 0) || at + BLOCK + size > archive.size) {
            throw new Error('the archive is damaged: a file in it ends behind its end');
        }
        at += BLOCK;
        if (kind === '0' || kind === '') {
            files.push([name, archive.slice(at, at + size)]);
        }
        at += Math.ceil(size / BLOCK) * BLOCK;
    }
    return files;
}
