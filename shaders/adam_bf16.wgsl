// AdamW with moments in bf16, rounded stochastically; in place. Four elements per thread: those of one Philox counter.
// `counter` is that of the first element bound. clip and step as in adam.wgsl.
struct Params {
    n: u32,
    counter: u32,
    salt: u32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    lr_factor: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> m: array<u32>;
@group(0) @binding(3) var<storage, read_write> v: array<u32>;
@group(0) @binding(4) var<storage, read_write> grad: array<f32>;
@group(0) @binding(5) var<storage, read_write> clip: array<f32>;
@group(0) @binding(6) var<storage, read_write> step: array<f32>;
@group(0) @binding(9) var<uniform> rng: vec4<u32>;

// The 16 bits of x as bf16, rounded up with the probability of what is cut off; `random` has 16 bits.
fn round_bf16(x: f32, random: u32) -> u32 {
    let bits = bitcast<u32>(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) {
        return (bits >> 16u) | (u32((bits & 0x7fffffu) != 0u) << 6u);
    }
    return (bits + random) >> 16u;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = linear_id(group, groups) * LANES + lane;
    if (4u * i >= p.n || clip[1] < 0.0) {
        return;
    }
    var draws = philox(rng.xy, vec4<u32>(p.counter + i, p.salt, 1u, 0u));
    let lr = p.lr_factor * step[0];
    for (var pair = 0u; pair < 2u; pair++) {
        let at = 2u * i + pair;
        if (2u * at >= p.n) {
            break;
        }
        var m_word = m[at];
        var v_word = v[at];
        for (var half = 0u; half < 2u; half++) {
            let e = 2u * at + half;
            if (e >= p.n) {
                break;
            }
            let g = clip[1] * grad[e];
            let m1 = p.beta1 * decode(BF16, m_word, e) + (1.0 - p.beta1) * g;
            let v1 = p.beta2 * decode(BF16, v_word, e) + (1.0 - p.beta2) * g * g;
            let update = (m1 / step[1]) / (sqrt(v1 / step[2]) + p.eps);
            w[e] = w[e] - lr * p.weight_decay * w[e] - lr * update;
            let random = draws[2u * pair + half];
            let keep = select(0xffff0000u, 0xffffu, half == 1u);
            m_word = (m_word & keep) | (round_bf16(m1, random & 0xffffu) << (16u * half));
            v_word = (v_word & keep) | (round_bf16(v1, random >> 16u) << (16u * half));
        }
        m[at] = m_word;
        v[at] = v_word;
    }
}
