{#- c = op(a) op(b) in tiles on matrix units: f16 fragments, f32 sums, for kernels whose own file says where rows of a tile
go (`write_rows`). Both operands have 16 bits and are multiplied by a power of two that brings their largest number to 2^14,
so that f16 holds what bf16 does: to within 2^-39 of the largest, exactly for all that is not much smaller. #}
{%- set T = UNITS %}
{%- set SUBGROUPS = 256 // SUBGROUP %}
{%- set SUBGROUPS_M = 1 if SUBGROUPS == 2 else 2 if SUBGROUPS <= 8 else 4 %}
{%- set SUBGROUPS_N = SUBGROUPS // SUBGROUPS_M %}
{%- set TALL = TILE // SUBGROUPS_M %}
{%- set WIDE = TILE // SUBGROUPS_N %}
{%- set PER = 4 if VECTOR_MEMORY else 1 %}
alias MatrixA = coop_mat{{ T }}x{{ T }}<f16, A>;
alias MatrixB = coop_mat{{ T }}x{{ T }}<f16, B>;
alias MatrixC = coop_mat{{ T }}x{{ T }}<f32, C>;

// A workgroup makes a tile of TILE x TILE sums over a piece of k, each subgroup its fragments of it.
// Rows that workgroup memory holds at a time at the end.
const ROWS: u32 = 16u;
// f16 from one row of an operand's tile to the next: padded against bank conflicts.
const LINE: u32 = DEPTH + 8u;

// [m][k] and [n][k], so that what a thread has of a fragment lies together; then rows of sums.
var<workgroup> a_tile: array<{{ "vec4<f16>" if VECTOR_MEMORY else "f16" }}, TILE * LINE / {{ PER }}u>;
var<workgroup> b_tile: array<{{ "vec4<f16>" if VECTOR_MEMORY else "f16" }}, TILE * LINE / {{ PER }}u>;
var<workgroup> sums: array<{{ "vec4<f32>" if VECTOR_MEMORY else "f32" }}, ROWS * TILE / {{ PER }}u>;

// The largest finite magnitudes of ranges of a and of b, from the kernel `magnitude`.
@group(0) @binding(6) var<storage, read_write> a_magnitudes: array<f32>;
@group(0) @binding(7) var<storage, read_write> b_magnitudes: array<f32>;

// Vector i of the rows.
fn sums_at(i: u32) -> vec4<f32> {
    return {% if VECTOR_MEMORY %}sums[i]{% else %}vec4<f32>(sums[4u * i], sums[4u * i + 1u], sums[4u * i + 2u], sums[4u * i + 3u]){% endif %};
}

// What a thread loads, where k is the stored column and where it is not.
fn row_along_k(t: u32) -> u32 {
    return t / 4u;
}
fn k_along_k(t: u32) -> u32 {
    return 8u * (t % 4u);
}
fn row_along_rows(t: u32) -> u32 {
    return 8u * (t / 8u);
}
fn k_along_rows(t: u32) -> u32 {
    return 4u * (t % 8u);
}

{% macro stage(x, type) %}
// Four elements as scaled f16.
fn {{ x }}_half(x: u32, y: u32, scale: f32) -> vec4<f16> {
{%- if type == 1 %}
    return vec4<f16>(scale * bitcast<vec4<f32>>(vec4<u32>(x << 16u, x & 0xffff0000u, y << 16u, y & 0xffff0000u)));
{%- else %}
    let values = vec4<f32>(decode_f16(x & 0xffffu), decode_f16(x >> 16u), decode_f16(y & 0xffffu), decode_f16(y >> 16u));
    return vec4<f16>(scale * values);
{%- endif %}
}

// Puts four neighbours along k into the tile.
fn {{ x }}_keep(row: u32, k: u32, value: vec4<f16>) {
    let at = row * LINE + k;
{%- if VECTOR_MEMORY %}
    {{ x }}_tile[at / 4u] = value;
{%- else %}
    {%- for e in range(4) %}
    {{ x }}_tile[at + {{ e }}u] = value[{{ e }}];
    {%- endfor %}
{%- endif %}
}
{% endmacro %}
{{ stage("a", TYPE_A) }}
{{ stage("b", TYPE_B) }}

{#- Puts what was loaded into the tile; where k is not the stored column, blocks of 4 k x 8 rows are turned. #}
{% macro keep(x, along_k) %}
    {%- if along_k %}
        {%- for g in range(4) %}
            {{ x }}_keep(t_row + {{ g * ROW_STEP }}u, t_k, {{ x }}_half(g{{ g }}.x, g{{ g }}.y, scale));
            {{ x }}_keep(t_row + {{ g * ROW_STEP }}u, t_k + 4u, {{ x }}_half(g{{ g }}.z, g{{ g }}.w, scale));
        {%- endfor %}
    {%- else %}
        {%- for pair in ["x, y", "z, w"] %}
            {%- set half = loop.index0 %}
            {%- for g in range(4) %}
            let h{{ half }}_{{ g }} = {{ x }}_half(g{{ g }}.{{ pair[0:1] }}, g{{ g }}.{{ pair[3:4] }}, scale);
            {%- endfor %}
            {%- for e in ["x", "y", "z", "w"] %}
            {{ x }}_keep(t_row + {{ 4 * half + loop.index0 }}u, t_k, vec4<f16>({% for g in range(4) %}h{{ half }}_{{ g }}.{{ e }}{{ ", " if not loop.last }}{% endfor %}));
            {%- endfor %}
        {%- endfor %}
    {%- endif %}
{% endmacro %}
@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup_id: u32,
) {
    {{- begin_both() }}
    // On a device whose subgroups are smaller than expected results are wrong, which the test at its opening sees; no index
    // goes astray.
    let subgroup = min(subgroup_id, {{ SUBGROUPS - 1 }}u);
    let first_m = subgroup / {{ SUBGROUPS_N }}u * {{ TALL }}u;
    let first_n = subgroup % {{ SUBGROUPS_N }}u * {{ WIDE }}u;
    var a_magnitude = 0.0;
    if (lane < p.a_magnitudes) {
        a_magnitude = a_magnitudes[lane];
    }
    var b_magnitude = 0.0;
    if (lane < p.b_magnitudes) {
        b_magnitude = b_magnitudes[lane];
    }
    let a_exponent = exponent_for(max_lanes(lane, a_magnitude), 0);
    let b_exponent = exponent_for(max_lanes(lane, b_magnitude), 0);
    let scale = power_of_two(select(b_exponent, a_exponent, loads_a));
    {%- for i in range(TALL // T) %}
        {%- for j in range(WIDE // T) %}
    var c{{ i }}_{{ j }}: MatrixC;
        {%- endfor %}
    {%- endfor %}
    let from_a = first_m * LINE / {{ PER }}u;
    let from_b = first_n * LINE / {{ PER }}u;
    let line = LINE / {{ PER }}u;
    {{ load_both() }}
    loop {
        if (loads_a) {
            {{- keep("a", not TN) }}
        } else if (loads_b) {
            {{- keep("b", NT) }}
        }
        workgroupBarrier();
        // The next tile comes while this one is multiplied.
        k0 += DEPTH;
        at += advance;
        if (k0 < k_end) {
            {{- load_both() }}
        }
        {%- for k in range(0, DEPTH, T) %}
        {
            {%- for i in range(TALL // T) %}
            let a{{ i }} = coopLoadT<MatrixA>(&a_tile[from_a + {{ (i * T * (DEPTH + 8) + k) // PER }}u], line);
            {%- endfor %}
            {%- for j in range(WIDE // T) %}
            let b{{ j }} = coopLoad<MatrixB>(&b_tile[from_b + {{ (j * T * (DEPTH + 8) + k) // PER }}u], line);
                {%- for i in range(TALL // T) %}
            c{{ i }}_{{ j }} = coopMultiplyAdd(a{{ i }}, b{{ j }}, c{{ i }}_{{ j }});
                {%- endfor %}
            {%- endfor %}
        }
        {%- endfor %}
        if (k0 >= k_end) {
            break;
        }
        workgroupBarrier();
    }
    // In two factors, each of which is a number; what they make together may be none.
    let exponent = -(a_exponent + b_exponent);
    let low = power_of_two(exponent / 2);
    let high = power_of_two(exponent - exponent / 2);
    {%- for part in range(TILE // 16) %}
    workgroupBarrier();
    if (subgroup / {{ SUBGROUPS_N }}u == {{ 16 * part // TALL }}u) {
        {%- for i in range(16 // T) %}
            {%- for j in range(WIDE // T) %}
        {
            let value = high * (low * c{{ 16 * part % TALL // T + i }}_{{ j }});
            let to = (first_n + {{ i * T * TILE + j * T }}u) / {{ PER }}u;
            let stride = TILE / {{ PER }}u;
            coopStoreT(value, &sums[to], stride);
        }
            {%- endfor %}
        {%- endfor %}
    }
    workgroupBarrier();
    write_rows(piece, m0 + {{ 16 * part }}u, n0, lane);
    {%- endfor %}
}
