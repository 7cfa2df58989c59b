// Four elements per thread: those of one Philox counter. `counter` is that of the first element bound.
struct Params {
    n: u32,
    elements: u32,
    counter: u32,
    salt: u32,
    threshold: u32,
    keep: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(9) var<uniform> rng: vec4<u32>;

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
    for (var j = 0u; j < 4u; j++) {
        let e = 4u * i + j;
        if (e < p.elements) {
            y[e] = select(p.keep * x[e], 0.0, draws[j] < p.threshold);
        }
    }
}
