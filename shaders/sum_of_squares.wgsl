// Partial sums of squares of tensors that lie in x one after the other, PARTIALS chunks each; one workgroup per chunk. The
// elements [first, last) of x are bound. With PARTS the begin and length of each tensor are in `parts`, those of the first
// one here at `slot`; without, x is one tensor of n elements.
struct Params {
    first: u32,
    last: u32,
    accumulate: u32,
    slot: u32,
    n: u32,
}

const PARTIALS: u32 = 64u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> partials: array<f32>;
{{- bound("x", 2) }}
@group(0) @binding(3) var<storage, read> parts: array<u32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = linear_id(group, groups);
    var start = 0u;
    var length = p.n;
    if (PARTS == 1u) {
        let slot = p.slot + id / PARTIALS;
        // A table that does not fit the tensor is cut off at the tensor's last element.
        start = min(parts[2u * slot], p.n);
        length = min(parts[2u * slot + 1u], p.n - start);
    }
    {%- set STEP = VECTORS or 1 %}
    // `elements_per_partial`: whole steps of every width, as shards of one tensor may take different ones.
    let chunk = (length + PARTIALS * 8u - 1u) / (PARTIALS * 8u) * 8u;
    let begin = max(p.first, start + min(length, (id % PARTIALS) * chunk));
    let end = min(p.last, start + min(length, (id % PARTIALS + 1u) * chunk));
    var sum = 0.0;
    {%- if VECTORS %}
    for (var i = begin / {{ STEP }}u + lane; {{ STEP }}u * i < end; i += LANES) {
        {%- for part in range(PARTS) %}
        let x{{ part }} = {{ four("x", X, "i - p.first / " ~ STEP ~ "u", part) }};
            {%- for e in E %}
        {
            let e = {{ STEP }}u * i + {{ 4 * part + loop.index0 }}u;
            sum += select(0.0, x{{ part }}.{{ e }} * x{{ part }}.{{ e }}, (e >= begin) & (e < end));
        }
            {%- endfor %}
        {%- endfor %}
    }
    {%- else %}
    for (var e = begin + lane; e < end; e += LANES) {
        let value = {{ one("x", X, "(e - p.first)") }};
        sum += value * value;
    }
    {%- endif %}
    sum = sum_lanes(lane, sum);
    if (lane == 0u) {
        partials[id] = select(0.0, partials[id], p.accumulate == 1u) + sum;
    }
}
