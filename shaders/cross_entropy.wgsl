// The log-sum-exp of each row of logits and its loss; one workgroup per row. CAP: 1 where logits are soft-capped.
struct Params {
    rows: u32,
    classes: u32,
    cap: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<{{ NUMBERS }}>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> losses: array<f32>;

fn capped(x: f32) -> f32 {
    if (CAP == 1u) {
        return p.cap * safe_tanh(x / p.cap);
    }
    return x;
}

{% call each("workgroup", "row", "row >= p.rows") %}
    {%- set STEP = VECTORS or 1 %}
    let steps = p.classes / {{ STEP }}u;
    let base = row * steps;
    // For this thread's logits so far, the largest, and the sum of exp(logit - largest): each logit is read once.
    var largest = -3.0e38;
    var sum = 0.0;
    for (var i = lane; i < steps; i += LANES) {
        let x = logits[base + i];
        {%- for e in EACH %}
        let x{{ loop.index0 }} = capped(x{{ e }});
        {%- endfor %}
        let next = {{ "max(max(x0, x1), max(x2, x3))" if VECTORS else "x0" }};
        if (next > largest) {
            sum *= exp(largest - next);
            largest = next;
        }
        sum += {% for e in EACH %}exp(x{{ loop.index0 }} - largest){{ " + " if not loop.last }}{% endfor %};
    }
    let most = max_lanes(lane, largest);
    sum = sum_lanes(lane, sum * exp(largest - most));
    if (lane == 0u) {
        let log_sum = most + log(sum);
        lse[row] = log_sum;
        let label = labels[row];
        losses[row] = 0.0;
        if (label < p.classes) {
            losses[row] = log_sum - capped(logits[base + label / {{ STEP }}u]{{ "[label % 4u]" if VECTORS }});
        }
    }
{% endcall %}
