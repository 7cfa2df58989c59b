// WebGPU with 1 MiB of memory: in the worker of the page, before the program.
let left = 2 ** 20;
const scopes = [];
const { createBuffer, pushErrorScope, popErrorScope } = GPUDevice.prototype;

Object.assign(GPUDevice.prototype, {
    createBuffer(descriptor) {
        left -= descriptor.size;
        const scope = scopes.findLast(({ filter }) => filter === 'out-of-memory');
        if (left < 0 && scope) {
            scope.failed = true;
        }
        return createBuffer.call(this, descriptor);
    },
    pushErrorScope(filter) {
        scopes.push({ filter, failed: false });
        return pushErrorScope.call(this, filter);
    },
    async popErrorScope() {
        const { failed } = scopes.pop();
        const error = await popErrorScope.call(this);
        return failed ? new GPUOutOfMemoryError('no memory') : error;
    },
});
