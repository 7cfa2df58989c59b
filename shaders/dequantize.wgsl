// Values of rows that are stored in blocks of the format FORMAT, four neighbours for each thread: of all rows, or with LOOKUP
// of the rows of tokens that are among the bound ones [first, last).
struct Params {
    // Groups of four elements in the output, and in a row.
    n: u32,
    width: u32,
    first: u32,
    last: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> blocks: array<u32>;
@group(0) @binding(2) var<storage, read> tokens: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<{{ "vec2<u32>" if Y else "vec4<u32>" }}>;

const Q4_0: u32 = 0u;
const Q4_1: u32 = 1u;
const Q5_0: u32 = 2u;
const Q5_1: u32 = 3u;
const Q8_0: u32 = 4u;
const Q4_K: u32 = 5u;
const Q5_K: u32 = 6u;
const Q6_K: u32 = 7u;

// Four bytes from an even byte on.
fn bytes_at(at: u32) -> u32 {
    let word = blocks[at >> 2u];
    if ((at & 2u) == 0u) {
        return word;
    }
    return (word >> 16u) | (blocks[(at >> 2u) + 1u] << 16u);
}

fn byte_at(at: u32) -> u32 {
    return (blocks[at >> 2u] >> (8u * (at & 3u))) & 0xffu;
}

// The f16 at an even byte.
fn half_at(at: u32) -> f32 {
    return decode_f16((blocks[at >> 2u] >> (8u * (at & 2u))) & 0xffffu);
}

// Four bytes as numbers.
fn numbers(bytes: u32) -> vec4<f32> {
    return vec4<f32>(f32(bytes & 255u), f32((bytes >> 8u) & 255u), f32((bytes >> 16u) & 255u), f32(bytes >> 24u));
}

// The low or the high halves of four bytes.
fn halves(bytes: u32, shift: u32) -> u32 {
    return (bytes >> shift) & 0x0f0f0f0fu;
}

// Bits i .. i + 4 of a word, each as the fifth bit of a byte.
fn fifth_bits(word: u32, i: u32) -> u32 {
    let bits = word >> i;
    return ((bits & 1u) << 4u) | ((bits & 2u) << 11u) | ((bits & 4u) << 18u) | ((bits & 8u) << 25u);
}

// Elements i .. i + 4 of a block of 32 that begins at a byte.
fn of_32(at: u32, i: u32) -> vec4<f32> {
    let d = half_at(at);
    if (FORMAT == Q8_0) {
        return d * (numbers(bytes_at(at + 2u + i) ^ 0x80808080u) - 128.0);
    }
    // Elements from 16 on are the upper halves of the bytes.
    let shift = 4u * (i >> 4u);
    let within = i & 15u;
    if (FORMAT == Q4_0) {
        return d * (numbers(halves(bytes_at(at + 2u + within), shift)) - 8.0);
    }
    if (FORMAT == Q4_1) {
        return d * numbers(halves(bytes_at(at + 4u + within), shift)) + half_at(at + 2u);
    }
    if (FORMAT == Q5_0) {
        let low = halves(bytes_at(at + 6u + within), shift);
        return d * (numbers(low | fifth_bits(bytes_at(at + 2u), i)) - 16.0);
    }
    let low = halves(bytes_at(at + 8u + within), shift);
    return d * numbers(low | fifth_bits(bytes_at(at + 4u), i)) + half_at(at + 2u);
}

// Elements i .. i + 4 of a block of 256 that begins at a byte.
fn of_256(at: u32, i: u32) -> vec4<f32> {
    if (FORMAT == Q6_K) {
        let part = i >> 7u;
        let run = (i >> 5u) & 3u;
        let within = i & 31u;
        let low = halves(bytes_at(at + 64u * part + 32u * (run & 1u) + within), 4u * (run >> 1u));
        let high = (bytes_at(at + 128u + 32u * part + within) >> (2u * run)) & 0x03030303u;
        let factor = half_at(at + 208u) * (f32(byte_at(at + 192u + (i >> 4u)) ^ 128u) - 128.0);
        return factor * (numbers(low | (high << 4u)) - 32.0);
    }
    let group = i >> 5u;
    let within = i & 31u;
    // Six bits each of scale and offset: see `affine` in the graph crate.
    var scale = byte_at(at + 4u + (group & 3u));
    var offset = byte_at(at + 8u + (group & 3u));
    if (group >= 4u) {
        let low = byte_at(at + 8u + group);
        scale = (low & 15u) | ((scale >> 6u) << 4u);
        offset = (low >> 4u) | ((offset >> 6u) << 4u);
    }
    let d = half_at(at) * f32(scale & 63u);
    let m = half_at(at + 2u) * f32(offset & 63u);
    let shift = 4u * (group & 1u);
    if (FORMAT == Q4_K) {
        return d * numbers(halves(bytes_at(at + 16u + 32u * (group >> 1u) + within), shift)) - m;
    }
    let low = halves(bytes_at(at + 48u + 32u * (group >> 1u) + within), shift);
    let fifth = (bytes_at(at + 16u + within) >> group) & 0x01010101u;
    return d * numbers(low | (fifth << 4u)) - m;
}

// Elements i .. i + 4 of a row.
fn values(row: u32, i: u32) -> vec4<f32> {
    if (FORMAT >= Q4_K) {
        return of_256((row * (p.width / 64u) + i / 256u) * BYTES, i % 256u);
    }
    return of_32((row * (p.width / 8u) + i / 32u) * BYTES, i % 32u);
}

{% call each("thread", "at", "at >= p.n") %}
    var row = at / p.width;
    if (LOOKUP == 1u) {
        let token = tokens[row];
        if (token < p.first || token >= p.last) {
            return;
        }
        row = token - p.first;
    }
    let x = values(row, 4u * (at % p.width));
    y[at] = {{ "vec2<u32>(pack(Y, x.xy), pack(Y, x.zw))" if Y else "bitcast<vec4<u32>>(x)" }};
{% endcall %}
