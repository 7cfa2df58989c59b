// Comes before every kernel, after its specialisation constants: `const NAME: u32 = value;`, among them LANES, the
// threads of a workgroup.

{#- A kernel's entry point. Each "thread" of a launch, or each "workgroup", has a number; it does what is called with this,
unless `unless`. -#}
{% macro each(who, number, unless) %}
@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let {{ number }} = linear_id(group, groups){{ " * LANES + lane" if who == "thread" }};
    if ({{ unless }}) {
        return;
    }
    {{- caller() }}
}
{% endmacro %}
// Element types of tensors, which are bound as words: one f32 or two 16-bit elements each. No two threads write one word
// of a dispatch.
const F32: u32 = 0u;
const BF16: u32 = 1u;
const F16: u32 = 2u;

const IGNORED: u32 = 0xffffffffu;

// The number of a workgroup in a launch that may be folded into two dimensions.
fn linear_id(id: vec3<u32>, count: vec3<u32>) -> u32 {
    return id.y * count.x + id.x;
}

// The word that holds element i.
fn word_of(dtype: u32, i: u32) -> u32 {
    return select(i >> 1u, i, dtype == F32);
}

// Element i, from the word that holds it.
fn decode(dtype: u32, word: u32, i: u32) -> f32 {
    if (dtype == F32) {
        return bitcast<f32>(word);
    }
    let half = select(word & 0xffffu, word >> 16u, (i & 1u) == 1u);
    if (dtype == BF16) {
        return bitcast<f32>(half << 16u);
    }
    return decode_f16(half);
}

// Four 16-bit elements.
fn decode_four(dtype: u32, words: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(
        decode(dtype, words.x, 0u),
        decode(dtype, words.x, 1u),
        decode(dtype, words.y, 0u),
        decode(dtype, words.y, 1u),
    );
}

// With integers, since not every device has unpack2x16float, and those that have it may flush small numbers to zero.
fn decode_f16(half: u32) -> f32 {
    let exponent = half & 0x7c00u;
    let shifted = (half & 0x7fffu) << 13u;
    let rebiased = select(shifted + 0x38000000u, shifted | 0x7f800000u, exponent == 0x7c00u);
    let subnormal = bitcast<u32>(f32(half & 0x3ffu) * 5.9604644775390625e-8); // 2^-24
    return bitcast<f32>(((half & 0x8000u) << 16u) | select(rebiased, subnormal, exponent == 0u));
}

// The 16 bits of x as bf16, to nearest, ties to even.
fn encode_bf16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (bits >> 16u) | 0x40u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

// The 16 bits of x as f16, to nearest, ties to even; the rounding of pack2x16float is the driver's choice.
fn encode_f16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return sign | 0x7e00u;
    }
    // From 65520 on: infinity.
    if (magnitude >= 0x477ff000u) {
        return sign | 0x7c00u;
    }
    // From 2^-14 on: a normal number.
    if (magnitude >= 0x38800000u) {
        let rebiased = magnitude - 0x38000000u;
        return sign | ((rebiased + 0xfffu + ((rebiased >> 13u) & 1u)) >> 13u);
    }
    // Up to 2^-25: zero.
    if (magnitude <= 0x33000000u) {
        return sign;
    }
    let mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    let shift = 126u - (magnitude >> 23u);
    let quotient = mantissa >> shift;
    let remainder = mantissa & ((1u << shift) - 1u);
    let half = 1u << (shift - 1u);
    let up = remainder > half || (remainder == half && (quotient & 1u) == 1u);
    return sign | (quotient + u32(up));
}

fn encode(dtype: u32, x: f32) -> u32 {
    if (dtype == BF16) {
        return encode_bf16(x);
    }
    return encode_f16(x);
}

// Whether a word is an f32 NaN: by its bits, as drivers may assume that no float is NaN.
fn is_nan(bits: u32) -> bool {
    return (bits & 0x7fffffffu) > 0x7f800000u;
}

// The word with its element i replaced by x, rounded to the type.
fn insert(dtype: u32, word: u32, i: u32, x: f32) -> u32 {
    if (dtype == F32) {
        return bitcast<u32>(x);
    }
    let bits = encode(dtype, x);
    return select((word & 0xffff0000u) | bits, (word & 0xffffu) | (bits << 16u), (i & 1u) == 1u);
}

// A word of two 16-bit elements.
fn pack(dtype: u32, pair: vec2<f32>) -> u32 {
    return encode(dtype, pair.x) | (encode(dtype, pair.y) << 16u);
}

// A driver's tanh may overflow to NaN; beyond 15 the result is 1 in f32. A NaN stays a NaN, which clamping might not
// keep.
fn safe_tanh(x: f32) -> f32 {
    return select(tanh(clamp(x, -15.0, 15.0)), x, is_nan(bitcast<u32>(x)));
}

fn mul_high(a: u32, b: u32) -> u32 {
    let a_low = a & 0xffffu;
    let a_high = a >> 16u;
    let b_low = b & 0xffffu;
    let b_high = b >> 16u;
    let middle = a_high * b_low + ((a_low * b_low) >> 16u);
    return a_high * b_high + (middle >> 16u) + ((a_low * b_high + (middle & 0xffffu)) >> 16u);
}

// Philox 4x32-10 (Salmon et al. 2011).
fn philox(key: vec2<u32>, counter: vec4<u32>) -> vec4<u32> {
    var k = key;
    var c = counter;
    for (var round = 0u; round < 10u; round++) {
        let high = vec2<u32>(mul_high(0xD2511F53u, c.x), mul_high(0xCD9E8D57u, c.z));
        c = vec4<u32>(high.y ^ c.y ^ k.x, 0xCD9E8D57u * c.z, high.x ^ c.w ^ k.y, 0xD2511F53u * c.x);
        k += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}

var<workgroup> reduction: array<f32, LANES>;

// The sum over a workgroup, in a fixed order; every lane gets it.
fn sum_lanes(lane: u32, x: f32) -> f32 {
    reduction[lane] = x;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half >>= 1u) {
        if (lane < half) {
            reduction[lane] += reduction[lane + half];
        }
        workgroupBarrier();
    }
    let total = reduction[0];
    workgroupBarrier();
    return total;
}

fn max_lanes(lane: u32, x: f32) -> f32 {
    reduction[lane] = x;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half >>= 1u) {
        if (lane < half) {
            reduction[lane] = max(reduction[lane], reduction[lane + half]);
        }
        workgroupBarrier();
    }
    let total = reduction[0];
    workgroupBarrier();
    return total;
}
