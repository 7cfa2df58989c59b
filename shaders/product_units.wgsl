{#- c = op(a) op(b) in tiles on matrix units: f16 fragments, f32 sums, for kernels whose own file says where blocks of a tile
go (`begin_tile`, `write_block`). Both operands have 16 bits and are multiplied by a power of two that brings their largest
number to 2^14, so that f16 holds what bf16 does: to within 2^-39 of the largest, exactly for all that is not much smaller.
BLOCK: columns of a block. #}
{%- set T = UNITS %}
{%- set SUBGROUPS = LANES // SUBGROUP %}
{%- set SUBGROUPS_M = 1 if SUBGROUPS == 2 else 2 if SUBGROUPS <= 8 else 4 %}
{%- set SUBGROUPS_N = SUBGROUPS // SUBGROUPS_M %}
{%- set TALL = TILE // SUBGROUPS_M %}
{%- set WIDE = TILE // SUBGROUPS_N %}
{%- set PER = 4 if VECTOR_MEMORY else 1 %}
{%- set BLOCK = [WIDE, 128 // SUBGROUPS] | min %}
{#- f32 from one row of a block to the next, padded against bank conflicts where memory suffices. #}
{%- set SUMS_LINE = BLOCK + 4 if BLOCK >= 32 else BLOCK %}
{#- Tiles lie along k, [m][k] and [n][k], or as the operand is stored: [k][m] and [k][n]. #}
{%- set A_ALONG_K = TRANSPOSE or not TN %}
{%- set B_ALONG_K = TRANSPOSE or NT %}
{%- set A_LINE = DEPTH + 8 if A_ALONG_K else TILE + 8 %}
{%- set B_LINE = DEPTH + 8 if B_ALONG_K else TILE + 8 %}
alias MatrixA = coop_mat{{ T }}x{{ T }}<f16, A>;
alias MatrixB = coop_mat{{ T }}x{{ T }}<f16, B>;
alias MatrixC = coop_mat{{ T }}x{{ T }}<f32, C>;

// A workgroup makes a tile of TILE x TILE sums over a piece of k, each subgroup its fragments of it.
// Each subgroup writes its sums in blocks, through workgroup memory: rows of a block, vectors of a row, threads that write it.
const ROWS: u32 = 16u;
const WIDTH: u32 = {{ BLOCK // 4 }}u;
const WRITERS: u32 = {{ SUBGROUP }}u;

// Lines are padded by 8 against bank conflicts. TRANSPOSE: tiles lie along k, whatever the layout.
var<workgroup> a_tile: array<{{ "vec4<f16>" if VECTOR_MEMORY else "f16" }}, {{ (TILE if A_ALONG_K else DEPTH) * A_LINE // PER }}>;
var<workgroup> b_tile: array<{{ "vec4<f16>" if VECTOR_MEMORY else "f16" }}, {{ (TILE if B_ALONG_K else DEPTH) * B_LINE // PER }}>;
var<workgroup> sums: array<{{ "vec4<f32>" if VECTOR_MEMORY else "f32" }}, {{ SUBGROUPS * 16 * SUMS_LINE // PER }}>;

// The largest finite magnitudes of ranges of a and of b, from the kernel `magnitude`.
@group(0) @binding(6) var<storage, read> a_magnitudes: array<f32>;
@group(0) @binding(7) var<storage, read> b_magnitudes: array<f32>;

// A vector of a row of a block.
fn sums_at(block: u32, row: u32, column: u32) -> vec4<f32> {
    let i = block + row * {{ SUMS_LINE // 4 }}u + column;
    return {% if VECTOR_MEMORY %}sums[i]{% else %}vec4<f32>(sums[4u * i], sums[4u * i + 1u], sums[4u * i + 2u], sums[4u * i + 3u]){% endif %};
}

// What a thread loads, where k is the stored column and where it is not.
fn row_along_k(t: u32) -> u32 {
    return spread(t / 4u);
}
fn k_along_k(t: u32) -> u32 {
    return 8u * (t % 4u);
}
fn row_along_rows(t: u32) -> u32 {
    return 8u * ({{ "t / 8u" if TRANSPOSE else "t % (TILE / 8u)" }});
}
fn k_along_rows(t: u32) -> u32 {
    return {{ "4u * (t % 8u)" if TRANSPOSE else "t / (TILE / 8u)" }};
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

// Puts four neighbours into the tile.
fn {{ x }}_keep(at: u32, value: vec4<f16>) {
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

{#- Puts what was loaded in round r into the tile; where it is transposed, in groups of 4 k x 8 rows. #}
{% macro keep(x, along_k, line, r) %}
    {%- if along_k or not TRANSPOSE %}
        {%- for g in range(VECTORS_EACH) %}
            {%- if along_k %}
            let to{{ r }}_{{ g }} = (t_row{{ r }} + {{ g * ROW_STEP }}u) * {{ line }}u + t_k{{ r }};
            {%- else %}
            let to{{ r }}_{{ g }} = (t_k{{ r }} + {{ g * K_STEP }}u) * {{ line }}u + t_row{{ r }};
            {%- endif %}
            {{ x }}_keep(to{{ r }}_{{ g }}, {{ x }}_half(g{{ r }}_{{ g }}.x, g{{ r }}_{{ g }}.y, {{ x }}_scale));
            {{ x }}_keep(to{{ r }}_{{ g }} + 4u, {{ x }}_half(g{{ r }}_{{ g }}.z, g{{ r }}_{{ g }}.w, {{ x }}_scale));
        {%- endfor %}
    {%- else %}
        {%- for pair in ["x, y", "z, w"] %}
            {%- set half = loop.index0 %}
            {%- for g in range(4) %}
            let h{{ r }}_{{ half }}_{{ g }} = {{ x }}_half(g{{ r }}_{{ g }}.{{ pair[0:1] }}, g{{ r }}_{{ g }}.{{ pair[3:4] }}, {{ x }}_scale);
            {%- endfor %}
            {%- for e in ["x", "y", "z", "w"] %}
            {{ x }}_keep((t_row{{ r }} + {{ 4 * half + loop.index0 }}u) * {{ line }}u + t_k{{ r }}, vec4<f16>({% for g in range(4) %}h{{ r }}_{{ half }}_{{ g }}.{{ e }}{{ ", " if not loop.last }}{% endfor %}));
            {%- endfor %}
        {%- endfor %}
    {%- endif %}
{% endmacro %}
{% macro keep_a(r) %}{{ keep("a", not TN, A_LINE, r) }}{% endmacro %}
{% macro keep_b(r) %}{{ keep("b", NT, B_LINE, r) }}{% endmacro %}
@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup_id: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) writer: u32,
) {
    {{- begin_all() }}
    // Keeps indices within bounds where subgroups are smaller than expected.
    let subgroup = min(subgroup_id, {{ SUBGROUPS - 1 }}u);
    let first_m = subgroup / {{ SUBGROUPS_N }}u * {{ TALL }}u;
    let first_n = subgroup % {{ SUBGROUPS_N }}u * {{ WIDE }}u;
    // Each subgroup finds the largest of all candidates, without a barrier. There is room for 256; those that
    // `magnitude` has not written do not count.
    let candidate = writer % SUBGROUP;
    {%- for x in ["a", "b"] %}
    var {{ x }}_magnitude = 0.0;
        {%- for first in range(0, 256, SUBGROUP) %}
    {{ x }}_magnitude = max({{ x }}_magnitude, select(0.0, {{ x }}_magnitudes[candidate + {{ first }}u], candidate + {{ first }}u < p.{{ x }}_magnitudes));
        {%- endfor %}
    let {{ x }}_exponent = exponent_for(subgroupMax({{ x }}_magnitude), 0);
    let {{ x }}_scale = power_of_two({{ x }}_exponent);
    {%- endfor %}
    {%- for i in range(TALL // T) %}
        {%- for j in range(WIDE // T) %}
    var c{{ i }}_{{ j }}: MatrixC;
        {%- endfor %}
    {%- endfor %}
    let from_a = first_m{{ " * " ~ A_LINE ~ "u" if A_ALONG_K }} / {{ PER }}u;
    let from_b = first_n{{ " * " ~ B_LINE ~ "u" if B_ALONG_K }} / {{ PER }}u;
    let a_line = {{ A_LINE // PER }}u;
    let b_line = {{ B_LINE // PER }}u;
    {{ load_all() }}
    loop {
        {%- if ROUNDS == 1 %}
        if (loads_a) {
            {{- keep_a(0) }}
        } else if (loads_b) {
            {{- keep_b(0) }}
        }
        {%- else %}
            {%- for r in range(ROUNDS) %}
                {{- keep_a(r) if r < ROUNDS // 2 else keep_b(r) }}
            {%- endfor %}
        {%- endif %}
        workgroupBarrier();
        // The next tile comes while this one is multiplied.
        {{- advance_all() }}
        {%- for k in range(0, DEPTH, T) %}
        {
            {%- for i in range(TALL // T) %}
                {%- set at = (i * T * A_LINE + k if A_ALONG_K else k * A_LINE + i * T) // PER %}
            let a{{ i }} = {{ "coopLoadT" if A_ALONG_K else "coopLoad" }}<MatrixA>(&a_tile[from_a + {{ at }}u], a_line);
            {%- endfor %}
            {%- for j in range(WIDE // T) %}
                {%- set at = (j * T * B_LINE + k if B_ALONG_K else k * B_LINE + j * T) // PER %}
            let b{{ j }} = {{ "coopLoad" if B_ALONG_K else "coopLoadT" }}<MatrixB>(&b_tile[from_b + {{ at }}u], b_line);
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
    begin_tile(m0, n0, lane);
    // As two factors, each of which is a finite number, while their product may not be.
    let exponent = -(a_exponent + b_exponent);
    let low = power_of_two(exponent / 2);
    let high = one_if((subgroup_size == SUBGROUP) & (subgroups * SUBGROUP == LANES)) * power_of_two(exponent - exponent / 2);
    let block = subgroup * ROWS * {{ SUMS_LINE // 4 }}u;
    {%- for part_m in range(TALL // 16) %}
        {%- for part_n in range(WIDE // BLOCK) %}
    // All subgroups store at the same time: storing from only some of them is suspected to spill the sums on NVIDIA
    // cards.
    workgroupBarrier();
            {%- for i in range(16 // T) %}
                {%- for j in range(BLOCK // T) %}
    {
        let value = high * (low * c{{ part_m * 16 // T + i }}_{{ part_n * BLOCK // T + j }});
        let to = block * {{ 4 // PER }}u + {{ (i * T * SUMS_LINE + j * T) // PER }}u;
        let stride = {{ SUMS_LINE // PER }}u;
        coopStoreT(value, &sums[to], stride);
    }
                {%- endfor %}
            {%- endfor %}
    workgroupBarrier();
    write_block(piece, m0 + first_m + {{ 16 * part_m }}u, n0 + first_n + {{ BLOCK * part_n }}u, block, writer);
        {%- endfor %}
    {%- endfor %}
}
