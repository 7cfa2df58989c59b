// Comes before kernels that define `result(e)`, element e of the output `y`, which has `p.n` elements of type Y. One
// thread per word.
const PER_WORD: u32 = 1u + min(Y, 1u);

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
    var word = 0u;
    for (var j = 0u; j < PER_WORD; j++) {
        let e = PER_WORD * i + j;
        if (e < p.n) {
            word = insert(Y, word, e, result(e));
        }
    }
    y[i] = word;
}
