{#- c = op(a) op(b) in tiles, for kernels whose own file says where rows of a tile go (`write_rows`). Sums, and what is loaded
ahead, are named variables: a compiler that does not unroll would put an array into memory. #}
{%- set TILE = 64 * BLOCKS %}
{%- set DEPTH = 32 // BLOCKS %}
{%- set NT = LAYOUT == 0 %}
{%- set TN = LAYOUT == 2 %}
// A workgroup of 16 x 16 threads makes a tile of TILE x TILE sums over a piece of k, a thread BLOCKS x BLOCKS blocks of
// 4 x 4. A and B are the operands' types, LAYOUT is 0 NT, 1 NN, 2 TN. VECTORS: ranges of columns of both operands begin and
// end at multiples of 4, as stored rows do; then they are bound as vectors of 4 elements.
const TILE: u32 = {{ TILE }}u;
const DEPTH: u32 = {{ DEPTH }}u;
// Vectors of a row.
const WIDTH: u32 = TILE / 4u;
// Rows that workgroup memory holds at a time at the end.
const ROWS: u32 = 1024u / WIDTH;

// In the loop a: [k][m / 4] and b: [k][n / 4], of which the last index is exclusive-or 2 (k / 4) against bank conflicts;
// at the end rows of sums.
var<workgroup> tile: array<vec4<f32>, 1024>;

{% macro operand(x, binding, type, along_k, rows) %}
{%- set unit = 4 if VECTORS else 1 %}
@group(0) @binding({{ binding }}) var<storage, read_write> {{ x }}: array<{% if not VECTORS %}u32{% elif type %}vec2<u32>{% else %}vec4<u32>{% endif %}>;

// The position of an element in the binding, in units of what is bound.
fn {{ x }}_start(row: u32, k: u32) -> u32 {
    let stride = p.{{ x }}_stride / {{ unit }}u;
    let start = {% if along_k %}row * stride + k / {{ unit }}u{% else %}k * stride + row / {{ unit }}u{% endif %};
    return start{% if x == "a" %} + p.a_column / {{ unit }}u{% endif %};
}

{% if VECTORS -%}
// Four elements at index i, of which none or all count.
fn {{ x }}_load(i: u32, count: u32) -> vec4<u32> {
    if (count == 0u) {
        return vec4<u32>();
    }
    return {% if type %}vec4<u32>({{ x }}[i], 0u, 0u){% else %}{{ x }}[i]{% endif %};
}
{%- else -%}
// The first elements of four from index i on, in f32.
fn {{ x }}_load(i: u32, count: u32) -> vec4<u32> {
    var bits = vec4<u32>();
    for (var e = 0u; e < count; e++) {
        bits[e] = bitcast<u32>(decode({{ type }}u, {{ x }}[word_of({{ type }}u, i + e)], i + e));
    }
    return bits;
}
{%- endif %}

fn {{ x }}_decode(bits: vec4<u32>) -> vec4<f32> {
{%- if type == 0 or not VECTORS %}
    return bitcast<vec4<f32>>(bits);
{%- elif type == 1 %}
    return bitcast<vec4<f32>>(vec4<u32>(bits.x << 16u, bits.x & 0xffff0000u, bits.y << 16u, bits.y & 0xffff0000u));
{%- else %}
    return vec4<f32>(
        decode_f16(bits.x & 0xffffu), decode_f16(bits.x >> 16u), decode_f16(bits.y & 0xffffu), decode_f16(bits.y >> 16u)
    );
{%- endif %}
}
{% endmacro %}
{{ operand("a", 1, A, not TN) }}
{{ operand("b", 2, B, NT) }}

// How many of four places from `at` on lie before `end`.
fn count_of(at: u32, end: u32) -> u32 {
    return min(end - min(at, end), 4u);
}

{#- The four loads of a thread for the k tile at k0. Interior: no bounds are checked. #}
{% macro loads(x, along_k, first, rows, interior) %}
    {%- for g in range(4) %}
        {%- if interior %}
            g{{ g }} = {{ x }}_load(at + {{ g }}u * step, 4u);
        {%- elif along_k %}
            g{{ g }} = {{ x }}_load(at + {{ g }}u * step, select(0u, count_of(k0 + t_k, k_end), {{ first }} + t_row + {{ g }}u < p.{{ rows }}));
        {%- else %}
            g{{ g }} = {{ x }}_load(at + {{ g }}u * step, select(0u, count_of({{ first }} + t_row, p.{{ rows }}), k0 + t_k + {{ g * 128 * 4 // TILE }}u < k_end));
        {%- endif %}
    {%- endfor %}
{% endmacro %}
{% macro load(x, along_k, first, rows) %}
    {%- if VECTORS %}
        if (interior && k0 + DEPTH <= k_end) {
            {{- loads(x, along_k, first, rows, true) }}
        } else {
            {{- loads(x, along_k, first, rows, false) }}
        }
    {%- else %}
        {{- loads(x, along_k, first, rows, false) }}
    {%- endif %}
{% endmacro %}
{#- Puts what was loaded into the tile; where k is the stored column, blocks of 4 x 4 are turned. #}
{% macro keep(x, along_k, base) %}
    {%- for g in range(4) %}
            let f{{ g }} = {{ x }}_decode(g{{ g }});
    {%- endfor %}
    {%- if along_k %}
            let to = {{ base }}u + t_k * WIDTH + ((t_row / 4u) ^ (t_k / 2u));
        {%- for e in ["x", "y", "z", "w"] %}
            tile[to + {{ loop.index0 }}u * WIDTH] = vec4<f32>(f0.{{ e }}, f1.{{ e }}, f2.{{ e }}, f3.{{ e }});
        {%- endfor %}
    {%- else %}
        {%- for g in range(4) %}
            let k_{{ g }} = t_k + {{ g * 128 * 4 // TILE }}u;
            tile[{{ base }}u + k_{{ g }} * WIDTH + ((t_row / 4u) ^ (2u * (k_{{ g }} / 4u)))] = f{{ g }};
        {%- endfor %}
    {%- endif %}
{% endmacro %}
{% macro load_both() %}
        if (loads_a) {
            {{- load("a", not TN, "m0", "m") }}
        } else {
            {{- load("b", NT, "n0", "n") }}
        }
{% endmacro %}
{% macro begin(x, along_k, first, rows) %}
        interior = {{ first }} + TILE <= p.{{ rows }};
    {%- if along_k %}
        t_row = 4u * (t / (DEPTH / 4u));
        t_k = 4u * (t % (DEPTH / 4u));
        step = {{ x }}_start(1u, 0u) - {{ x }}_start(0u, 0u);
    {%- else %}
        t_row = 4u * (t % WIDTH);
        t_k = t / WIDTH;
        step = {{ x }}_start(0u, 128u / WIDTH) - {{ x }}_start(0u, 0u);
    {%- endif %}
        advance = {{ x }}_start(0u, DEPTH) - {{ x }}_start(0u, 0u);
        at = {{ x }}_start({{ first }} + t_row, k0 + t_k);
{% endmacro %}
@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Tiles in bands of 8, so that tiles that are made at a time share rows of a and b in the cache.
    let tiles_m = (p.m + TILE - 1u) / TILE;
    let tiles_n = (p.n + TILE - 1u) / TILE;
    let number = linear_id(group, groups);
    let piece = number / (tiles_m * tiles_n);
    if (piece >= p.pieces) {
        return;
    }
    let in_piece = number % (tiles_m * tiles_n);
    let band = in_piece / (8u * tiles_n);
    let height = min(8u, tiles_m - 8u * band);
    let m0 = (8u * band + in_piece % (8u * tiles_n) % height) * TILE;
    let n0 = (in_piece % (8u * tiles_n) / height) * TILE;
    var k0 = piece * p.piece;
    let k_end = min(p.k, k0 + p.piece);
    // 32 threads are a block of 8 x 4.
    let x = (lane / 32u % 2u) * 8u + lane % 8u;
    let y = (lane / 64u) * 4u + lane % 32u / 8u;
    // Half of the threads load a, the others b: each the same four vectors of every k tile.
    let loads_a = lane < 128u;
    let t = lane % 128u;
    var interior = false;
    var t_row = 0u;
    var t_k = 0u;
    var at = 0u;
    var step = 0u;
    var advance = 0u;
    if (loads_a) {
        {{- begin("a", not TN, "m0", "m") }}
    } else {
        {{- begin("b", NT, "n0", "n") }}
    }
    {%- for g in range(4) %}
    var g{{ g }}: vec4<u32>;
    {%- endfor %}
    {%- for i in range(4 * BLOCKS) %}
        {%- for j in range(BLOCKS) %}
    var s{{ i }}_{{ j }}: vec4<f32>;
        {%- endfor %}
    {%- endfor %}
    {{ load_both() }}
    loop {
        if (loads_a) {
            {{- keep("a", not TN, 0) }}
        } else {
            {{- keep("b", NT, 512) }}
        }
        workgroupBarrier();
        // The next tile comes while this one is multiplied.
        k0 += DEPTH;
        at += advance;
        if (k0 < k_end) {
            {{- load_both() }}
        }
        for (var k = 0u; k < DEPTH; k++) {
            let twist = 2u * (k / 4u);
            let from_a = k * WIDTH + (y ^ twist);
            let from_b = k * WIDTH + (x ^ twist) + 512u;
            {%- for i in range(BLOCKS) %}
            let rows{{ i }} = tile[from_a + {{ 16 * i }}u];
            {%- endfor %}
            {%- for j in range(BLOCKS) %}
            let columns{{ j }} = tile[from_b + {{ 16 * j }}u];
            {%- endfor %}
            {%- for i in range(4 * BLOCKS) %}
                {%- for j in range(BLOCKS) %}
            s{{ i }}_{{ j }} = fma(vec4<f32>(rows{{ i // 4 }}.{{ ["x", "y", "z", "w"][i % 4] }}), columns{{ j }}, s{{ i }}_{{ j }});
                {%- endfor %}
            {%- endfor %}
        }
        if (k0 >= k_end) {
            break;
        }
        workgroupBarrier();
    }
    {%- for part in range(BLOCKS * BLOCKS) %}
    workgroupBarrier();
    if (y / {{ 16 // BLOCKS }}u == {{ part % BLOCKS }}u) {
        let to = 4u * (y % {{ 16 // BLOCKS }}u) * WIDTH + x;
        {%- for r in range(4) %}
            {%- for j in range(BLOCKS) %}
        tile[to + {{ r }}u * WIDTH + {{ 16 * j }}u] = s{{ 4 * (part // BLOCKS) + r }}_{{ j }};
            {%- endfor %}
        {%- endfor %}
    }
    workgroupBarrier();
    write_rows(piece, m0 + {{ part }}u * ROWS, n0, lane);
    {%- endfor %}
}
