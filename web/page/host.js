// What the program calls: its events go to whoever listens, and it asks whether to stop.
export const host = { listener: () => {}, stop: false };

export function emit(text) {
    host.listener(JSON.parse(text));
}

export function stopped() {
    return host.stop;
}

/** GiB of the machine's memory, rounded; 0 where the browser does not say. */
export function memory() {
    return navigator.deviceMemory ?? 0;
}
