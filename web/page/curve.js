// The live curve: losses by step.
const [WIDTH, HEIGHT] = [640, 220];
const element = (id) => document.getElementById(id);

export class Curve {
    #losses;
    #total;
    #waits = false;

    /** `losses` are those of the steps done, of `total`, and may get more. */
    constructor(losses, total) {
        this.#losses = losses;
        this.#total = total;
        this.#draw();
    }

    /** Draws what there is at the next frame, of a run of `total` steps. */
    show(total) {
        this.#total = total;
        if (!this.#waits) {
            this.#waits = true;
            requestAnimationFrame(() => this.#draw());
        }
    }

    #draw() {
        this.#waits = false;
        const losses = [...this.#losses.entries()].filter(([, loss]) => Number.isFinite(loss));
        let mean = losses[0]?.[1];
        const means = losses.map(([step, loss]) => {
            mean += 0.1 * (loss - mean);
            return [step, mean];
        });
        const top = losses.reduce((most, [, loss]) => Math.max(most, loss), 1e-9) * 1.05;
        const x = (step) => (step / Math.max(this.#total - 1, 1)) * WIDTH;
        const y = (loss) => HEIGHT - (loss / top) * HEIGHT;
        const line = (points) => points.map(([step, loss], i) => `${i ? 'L' : 'M'}${x(step).toFixed(1)} ${y(loss).toFixed(1)}`).join('');
        element('losses').setAttribute('d', line(losses));
        element('mean').setAttribute('d', line(means));
        element('grid').setAttribute('d', [0.25, 0.5, 0.75].map((part) => `M0 ${part * HEIGHT}H${WIDTH}`).join(''));
        if (losses.length > 0) {
            const said = `Loss by step, from 0 to ${top.toFixed(3)}; now ${mean.toFixed(4)}.`;
            element('range').textContent = said;
            element('curve').setAttribute('aria-label', said);
        }
    }
}
