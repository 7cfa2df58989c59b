{#- c = op(a) op(b) in tiles, in f32, for kernels whose own file says where blocks of a tile go (`begin_tile`,
`write_block`). Sums, and what is loaded ahead, are named variables: a compiler that does not unroll would put an array into
memory. UNROLL: the unroll factor of the k loop. #}
{%- set STEP = UNROLL or 1 %}
// A workgroup of 16 x 16 threads makes a tile of TILE x TILE sums over a piece of k, a thread BLOCKS x BLOCKS blocks of
// 4 x 4.
// The tile is written in blocks, through workgroup memory: rows of a block, vectors of a row, threads that write it.
const ROWS: u32 = 1024u / WIDTH;
const WIDTH: u32 = TILE / 4u;
const WRITERS: u32 = LANES;

// In the loop a: [k][m / 4] and b: [k][n / 4], of which the last index is exclusive-or 2 (k / 4) against bank conflicts;
// at the end rows of sums.
var<workgroup> tile: array<vec4<f32>, 1024>;

// A vector of a row of a block.
fn sums_at(block: u32, row: u32, column: u32) -> vec4<f32> {
    return tile[block + row * WIDTH + column];
}

// What a thread loads, where k is the stored column and where it is not.
fn row_along_k(t: u32) -> u32 {
    return 4u * (t / (DEPTH / 4u));
}
fn k_along_k(t: u32) -> u32 {
    return 4u * (t % (DEPTH / 4u));
}
fn row_along_rows(t: u32) -> u32 {
    return 4u * (t % WIDTH);
}
fn k_along_rows(t: u32) -> u32 {
    return t / WIDTH;
}

{% macro decoder(x, type) %}
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
{{ decoder("a", TYPE_A) }}
{{ decoder("b", TYPE_B) }}

{#- Puts what was loaded into the tile; where k is the stored column, blocks of 4 x 4 are turned. #}
{% macro keep(x, along_k, base) %}
    {%- for g in range(4) %}
            let f{{ g }} = {{ x }}_decode(g0_{{ g }});
    {%- endfor %}
    {%- if along_k %}
            let to = {{ base }}u + t_k0 * WIDTH + ((t_row0 / 4u) ^ (t_k0 / 2u));
        {%- for e in ["x", "y", "z", "w"] %}
            tile[to + {{ loop.index0 }}u * WIDTH] = vec4<f32>(f0.{{ e }}, f1.{{ e }}, f2.{{ e }}, f3.{{ e }});
        {%- endfor %}
    {%- else %}
        {%- for g in range(4) %}
            let k_{{ g }} = t_k0 + {{ g * K_STEP }}u;
            tile[{{ base }}u + k_{{ g }} * WIDTH + ((t_row0 / 4u) ^ (2u * (k_{{ g }} / 4u)))] = f{{ g }};
        {%- endfor %}
    {%- endif %}
{% endmacro %}
@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    {{- begin_all() }}
    // 32 threads are a block of 8 x 4.
    let x = (lane / 32u % 2u) * 8u + lane % 8u;
    let y = (lane / 64u) * 4u + lane % 32u / 8u;
    {%- for i in range(4 * BLOCKS) %}
        {%- for j in range(BLOCKS) %}
    var s{{ i }}_{{ j }}: vec4<f32>;
        {%- endfor %}
    {%- endfor %}
    {{ load_all() }}
    loop {
        if (loads_a) {
            {{- keep("a", not TN, 0) }}
        } else {
            {{- keep("b", NT, 512) }}
        }
        workgroupBarrier();
        // The next tile comes while this one is multiplied.
        {{- advance_all() }}
        for (var step = 0u; step < DEPTH; step += {{ STEP }}u) {
            {%- for u in range(STEP) %}
            {
                let k = step + {{ u }}u;
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
            {%- endfor %}
        }
        if (k0 >= k_end) {
            break;
        }
        workgroupBarrier();
    }
    begin_tile(m0, n0, lane);
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
    write_block(piece, m0 + {{ part }}u * ROWS, n0, 0u, lane);
    {%- endfor %}
}
