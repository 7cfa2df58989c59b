// dx = r (g - x r^2 mean(g x)) + acc with g = dy * (offset + w); one workgroup per norm, of even width where Y, the type of
// dx, has 16 bits.
struct Params {
    norms: u32,
    width: u32,
    eps: f32,
    offset: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> w: array<u32>;
@group(0) @binding(3) var<storage, read_write> dy: array<u32>;
@group(0) @binding(4) var<storage, read_write> acc: array<u32>;
@group(0) @binding(5) var<storage, read_write> dx: array<u32>;

const PER_WORD: u32 = 1u + min(Y, 1u);

fn x_at(i: u32) -> f32 {
    return decode(X, x[word_of(X, i)], i);
}

fn dy_at(i: u32) -> f32 {
    return decode(DY, dy[word_of(DY, i)], i);
}

fn weight(i: u32) -> f32 {
    return p.offset + decode(W, w[word_of(W, i)], i);
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
    var products = 0.0;
    for (var i = lane; i < p.width; i += LANES) {
        squares += x_at(base + i) * x_at(base + i);
        products += dy_at(base + i) * weight(i) * x_at(base + i);
    }
    let r = 1.0 / sqrt(sum_lanes(lane, squares) / f32(p.width) + p.eps);
    let shift = r * r * sum_lanes(lane, products) / f32(p.width);
    for (var first = PER_WORD * lane; first < p.width; first += PER_WORD * LANES) {
        var word = 0u;
        for (var i = first; i < first + PER_WORD; i++) {
            var sum = r * (dy_at(base + i) * weight(i) - x_at(base + i) * shift);
            if (ACC == 1u) {
                sum += decode(X, acc[word_of(X, base + i)], base + i);
            }
            word = insert(Y, word, i, sum);
        }
        dx[word_of(Y, base + first)] = word;
    }
}
