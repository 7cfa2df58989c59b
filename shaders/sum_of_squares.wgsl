// partials[c] = sum of squares of the c-th chunk of the flattened x, of which the elements [first, last) are bound; one
// workgroup per chunk.
struct Params {
    chunk: u32,
    first: u32,
    last: u32,
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> partials: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<u32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let begin = max(p.first, group.x * p.chunk);
    let end = min(p.last, (group.x + 1u) * p.chunk);
    var sum = 0.0;
    for (var e = begin + lane; e < end; e += LANES) {
        let value = decode(X, x[word_of(X, e - p.first)], e - p.first);
        sum += value * value;
    }
    sum = sum_lanes(lane, sum);
    if (lane == 0u) {
        partials[group.x] = select(0.0, partials[group.x], p.accumulate == 1u) + sum;
    }
}
