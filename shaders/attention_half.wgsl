{#- q, k, v and, for gradients, do as f16 for attention on matrix units: head by head, rows and columns padded with zeros,
each tile of 64 rows of a head times a power of two of its own that brings its largest number to 2^14. #}
{%- set ALIGNED = HEAD_DIM % 4 == 0 %}
struct Params {
    rows: u32,
    heads: u32,
    kv_heads: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
{%- set TENSORS = ["q", "k", "v", "d_o"] if D_O == 1 else ["q", "k", "v"] %}
{%- for x in TENSORS %}
@group(0) @binding({{ loop.index }}) var<storage, read_write> {{ x }}: array<{{ "vec2<u32>" if ALIGNED else "u32" }}>;
{%- endfor %}
// [heads of q, of k, of v, of do][rows][DIM]
@group(0) @binding({{ 4 + D_O }}) var<storage, read_write> halves: array<vec4<f16>>;
// The exponent of the power of two: [heads][tiles].
@group(0) @binding({{ 5 + D_O }}) var<storage, read_write> exponents: array<i32>;

const DIM: u32 = (HEAD_DIM + 31u) / 32u * 32u;
const TILE: u32 = 64u;

// Elements d to d + 3 of the head that begins at `base`; past its end, any elements.
{%- for x in TENSORS %}
fn {{ x }}_at(base: u32, d: u32) -> vec4<f32> {
    {%- if ALIGNED %}
    let words = {{ x }}[(base + d) / 4u];
    return vec4<f32>(decode(X, words.x, 0u), decode(X, words.x, 1u), decode(X, words.y, 0u), decode(X, words.y, 1u));
    {%- else %}
    let at = vec4<u32>(base) + min(vec4<u32>(d, d + 1u, d + 2u, d + 3u), vec4<u32>(HEAD_DIM - 1u));
    return vec4<f32>({% for e in "xyzw" %}decode(X, {{ x }}[at.{{ e }} >> 1u], at.{{ e }}){{ ", " if not loop.last }}{% endfor %});
    {%- endif %}
}
{%- endfor %}

// Elements d to d + 3 of a row of a head, counted over all tensors.
fn elements(row: u32, head: u32, d: u32) -> vec4<f32> {
    if (row >= p.rows || d >= HEAD_DIM) {
        return vec4<f32>();
    }
    var values: vec4<f32>;
    let kv = head - p.heads;
    if (head < p.heads) {
        values = q_at((row * p.heads + head) * HEAD_DIM, d);
    } else if (kv < p.kv_heads) {
        values = k_at((row * p.kv_heads + kv) * HEAD_DIM, d);
    } else if (kv < 2u * p.kv_heads) {
        values = v_at((row * p.kv_heads + kv - p.kv_heads) * HEAD_DIM, d);
    }
    {%- if D_O == 1 %} else {
        values = d_o_at((row * p.heads + kv - 2u * p.kv_heads) * HEAD_DIM, d);
    }
    {%- endif %}
    {%- if not ALIGNED %}
    return select(values, vec4<f32>(), vec4<u32>(d, d + 1u, d + 2u, d + 3u) >= vec4<u32>(HEAD_DIM));
    {%- else %}
    return values;
    {%- endif %}
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = linear_id(group, groups);
    let tiles = (p.rows + TILE - 1u) / TILE;
    let head = id / tiles;
    let row0 = id % tiles * TILE;
    if (head >= {{ 1 + D_O }}u * p.heads + 2u * p.kv_heads) {
        return;
    }
    var largest = vec4<u32>();
    for (var i = lane; i < TILE * DIM / 4u; i += LANES) {
        let values = elements(row0 + i / (DIM / 4u), head, i % (DIM / 4u) * 4u);
        // Read as whole numbers, the bits of non-negative floats sort like the floats.
        let bits = bitcast<vec4<u32>>(values) & vec4<u32>(0x7fffffffu);
        largest = max(largest, select(bits, vec4<u32>(), bits >= vec4<u32>(0x7f800000u)));
    }
    let both = max(largest.xy, largest.zw);
    let exponent = exponent_for(max_lanes(lane, bitcast<f32>(max(both.x, both.y))), 126);
    let scale = power_of_two(exponent);
    for (var i = lane; i < TILE * DIM / 4u; i += LANES) {
        let values = elements(row0 + i / (DIM / 4u), head, i % (DIM / 4u) * 4u);
        halves[(head * tiles * TILE + row0) * (DIM / 4u) + i] = vec4<f16>(scale * values);
    }
    if (lane == 0u) {
        exponents[head * tiles + row0 / TILE] = exponent;
    }
}
