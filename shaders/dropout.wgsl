// Four elements of type X per thread: those of one Philox counter. `counter` is that of the first element bound.
struct Params {
    n: u32,
    elements: u32,
    counter: u32,
    salt: u32,
    threshold: u32,
    keep: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
@group(0) @binding(9) var<uniform> rng: vec4<u32>;

const PER_WORD: u32 = 1u + min(X, 1u);

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = linear_id(group, groups) * LANES + lane;
    if (i >= p.n) {
        return;
    }
    var draws = philox(rng.xy, vec4<u32>(p.counter + i, p.salt, 0u, 0u));
    for (var first = 0u; first < 4u; first += PER_WORD) {
        let at = word_of(X, 4u * i + first);
        if (4u * i + first >= p.elements) {
            return;
        }
        var word = 0u;
        for (var j = first; j < first + PER_WORD; j++) {
            word = insert(X, word, j, select(p.keep * decode(X, x[at], j), 0.0, draws[j] < p.threshold));
        }
        y[at] = word;
    }
}
