// Files by choice or by drag and drop.

async function inside(entry, name) {
    if (entry.isFile) {
        return [[name, await new Promise((resolve, reject) => entry.file(resolve, reject))]];
    }
    const reader = entry.createReader();
    const found = [];
    for (;;) {
        const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
        if (some.length === 0) {
            return found;
        }
        for (const child of some) {
            found.push(...await inside(child, `${name}/${child.name}`));
        }
    }
}

/** The names without the folder that all files are in. */
function below(files) {
    const first = files[0]?.[0].split('/')[0];
    const same = files.every(([name]) => name.includes('/') && name.split('/')[0] === first);
    return same ? files.map(([name, file]) => [name.slice(first.length + 1), file]) : files;
}

/** Calls `take` with what reads `[name, file]` of all that is chosen or dropped; the names are those below the chosen folder. */
export function watch(area, take) {
    for (const input of area.querySelectorAll('input')) {
        // The same files can be chosen again, as after an error: otherwise nothing would change.
        input.addEventListener('click', () => { input.value = ''; });
        input.addEventListener('change', () => {
            const files = [...input.files].map((file) => [file.webkitRelativePath || file.name, file]);
            take(async () => below(files));
        });
    }
    const over = (on) => (event) => {
        event.preventDefault();
        area.classList.toggle('over', on);
    };
    area.addEventListener('dragover', over(true));
    area.addEventListener('dragleave', over(false));
    area.addEventListener('drop', (event) => {
        over(false)(event);
        const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
        take(async () => below((await Promise.all(entries.map((entry) => inside(entry, entry.name)))).flat()));
    });
}
