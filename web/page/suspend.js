// Lets the program wait: its stack is suspended until `wake` is called, while the browser carries on.
let waiting = null;
let woken = false;

function pause() {
    if (woken) {
        woken = false;
        return undefined;
    }
    return new Promise((resolve) => { waiting = resolve; });
}

export const suspend = new WebAssembly.Suspending(pause);

export function wake() {
    if (waiting === null) {
        woken = true;
        return;
    }
    const resolve = waiting;
    waiting = null;
    resolve();
}
