// dk and dv, which have `n` elements of type Y each: sums over the query heads that share a key head, in order, of what
// each of them gives. One thread per word of both.
struct Params {
    n: u32,
    head_dim: u32,
    shared_by: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> dk_heads: array<f32>;
@group(0) @binding(2) var<storage, read_write> dv_heads: array<f32>;
@group(0) @binding(3) var<storage, read_write> dk: array<u32>;
@group(0) @binding(4) var<storage, read_write> dv: array<u32>;

const PER_WORD: u32 = 1u + min(Y, 1u);

// Element e of dk and of dv.
fn sums(e: u32) -> vec2<f32> {
    let first = (e / p.head_dim) * p.shared_by * p.head_dim + e % p.head_dim;
    var sum = vec2<f32>();
    for (var head = 0u; head < p.shared_by; head++) {
        let at = first + head * p.head_dim;
        sum += vec2<f32>(dk_heads[at], dv_heads[at]);
    }
    return sum;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = linear_id(group, groups) * LANES + lane;
    if (PER_WORD * i >= p.n) {
        return;
    }
    var words = vec2<u32>();
    for (var j = 0u; j < PER_WORD; j++) {
        let e = PER_WORD * i + j;
        if (e < p.n) {
            let sum = sums(e);
            words = vec2<u32>(insert(Y, words.x, e, sum.x), insert(Y, words.y, e, sum.y));
        }
    }
    dk[i] = words.x;
    dv[i] = words.y;
}
