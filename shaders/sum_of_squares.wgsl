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
@group(0) @binding(2) var<storage, read_write> x: array<u32>;
@group(0) @binding(3) var<storage, read_write> parts: array<u32>;

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
        // A table that does not fit the tensor ends at its last element.
        start = min(parts[2u * slot], p.n);
        length = min(parts[2u * slot + 1u], p.n - start);
    }
    let chunk = (length + PARTIALS - 1u) / PARTIALS;
    let begin = max(p.first, start + min(length, (id % PARTIALS) * chunk));
    let end = min(p.last, start + min(length, (id % PARTIALS + 1u) * chunk));
    var sum = 0.0;
    for (var e = begin + lane; e < end; e += LANES) {
        let value = decode(X, x[word_of(X, e - p.first)], e - p.first);
        sum += value * value;
    }
    sum = sum_lanes(lane, sum);
    if (lane == 0u) {
        partials[id] = select(0.0, partials[id], p.accumulate == 1u) + sum;
    }
}
