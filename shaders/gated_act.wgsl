// y = act(gate) * up, all of type X; one thread per word.
struct Params {
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> gate: array<u32>;
@group(0) @binding(2) var<storage, read_write> up: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

const PER_WORD: u32 = 1u + min(X, 1u);

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
    let words = vec2<u32>(gate[i], up[i]);
    var word = 0u;
    for (var j = 0u; j < PER_WORD; j++) {
        word = insert(X, word, j, activate(decode(X, words.x, j)).x * decode(X, words.y, j));
    }
    y[i] = word;
}
