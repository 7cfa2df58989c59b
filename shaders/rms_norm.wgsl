// y = x r (offset + w) with r = 1 / sqrt(mean(x^2) + eps); one workgroup per norm, of even width where Y has 16 bits.
// RATE: 0 or 1, whether r is kept: at `first` and the following elements of `rate`.
struct Params {
    norms: u32,
    width: u32,
    eps: f32,
    offset: f32,
    first: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> w: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;
@group(0) @binding(4) var<storage, read_write> rate: array<f32>;

const PER_WORD: u32 = 1u + min(Y, 1u);

fn x_at(i: u32) -> f32 {
    return decode(X, x[word_of(X, i)], i);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let norm = linear_id(group, groups);
    if (norm >= p.norms) {
        return;
    }
    let base = norm * p.width;
    var squares = 0.0;
    for (var i = lane; i < p.width; i += LANES) {
        squares += x_at(base + i) * x_at(base + i);
    }
    let r = 1.0 / sqrt(sum_lanes(lane, squares) / f32(p.width) + p.eps);
    if (RATE == 1u && lane == 0u) {
        rate[p.first + norm] = r;
    }
    for (var first = PER_WORD * lane; first < p.width; first += PER_WORD * LANES) {
        var word = 0u;
        for (var i = first; i < first + PER_WORD; i++) {
            word = insert(Y, word, i, x_at(base + i) * r * (p.offset + decode(W, w[word_of(W, i)], i)));
        }
        y[word_of(Y, base + first)] = word;
    }
}
