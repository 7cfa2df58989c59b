// The live curve: losses by step.
const [WIDTH, HEIGHT] = [640, 220];
const element = (id) => document.getElementById(id);

export class Curve {
    #losses = [];
    #means = [];
    #total = 1;
    #drawn = false;

    constructor() {
        this.#draw();
    }

    add({ loss, total_steps: total }) {
        if (!Number.isFinite(loss)) {
            return;
        }
        const last = this.#means.at(-1) ?? loss;
        this.#losses.push(loss);
        this.#means.push(last + 0.1 * (loss - last));
        this.#total = total;
        if (!this.#drawn) {
            this.#drawn = true;
            requestAnimationFrame(() => this.#draw());
        }
    }

    #draw() {
        this.#drawn = false;
        const top = Math.max(...this.#losses, 1e-9) * 1.05;
        const x = (step) => (step / Math.max(this.#total - 1, 1)) * WIDTH;
        const y = (loss) => HEIGHT - (loss / top) * HEIGHT;
        const line = (values) => values.map((value, i) => `${i ? 'L' : 'M'}${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join('');
        element('losses').setAttribute('d', line(this.#losses));
        element('mean').setAttribute('d', line(this.#means));
        element('grid').setAttribute('d', [0.25, 0.5, 0.75].map((part) => `M0 ${part * HEIGHT}H${WIDTH}`).join(''));
        if (this.#means.length > 0) {
            const said = `Loss by step, from 0 to ${top.toFixed(3)}; now ${this.#means.at(-1).toFixed(4)}.`;
            element('range').textContent = said;
            element('curve').setAttribute('aria-label', said);
        }
    }
}
