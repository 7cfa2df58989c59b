{#- Comes before kernels that add up rows. A workgroup has 32 steps of columns and a chunk of `p.chunk` rows; what it adds up
becomes a row of `to`, [chunks, sums] in f32, or is added to the one row there if `p.accumulate`. -#}
{%- set WIDE = VECTORS or 1 %}
{%- set COUNT = PARTS or 1 %}
{%- set NUMBERS = "vec4<f32>" if VECTORS else "f32" %}
var<workgroup> chunk_sums: array<{{ NUMBERS }}, {{ 256 * COUNT }}>;
{#- The columns of a thread, `sums` columns in all. #}
{% macro columns(sums) %}
    let id = linear_id(group, groups);
    let blocks = ({{ sums }} + {{ 32 * WIDE - 1 }}u) / {{ 32 * WIDE }}u;
    let chunk = id / blocks;
    // The step of columns, and the steps of a row.
    let e = id % blocks * 32u + lane % 32u;
    let steps = {{ sums }} / {{ WIDE }}u;
    if (chunk * p.chunk >= max(p.rows, 1u)) {
        return;
    }
    let end = min(p.rows, (chunk + 1u) * p.chunk);
    {%- for part in range(COUNT) %}
    var sum{{ part }} = {{ NUMBERS }}();
    {%- endfor %}
{%- endmacro %}
{#- Adds up the threads of each column. #}
{% macro write(to) %}
    {%- for part in range(COUNT) %}
    chunk_sums[{{ part }}u * 256u + lane] = sum{{ part }};
    {%- endfor %}
    workgroupBarrier();
    if (lane < 32u && e < steps) {
        {%- for part in range(COUNT) %}
        let at{{ part }} = (chunk * steps + e) * {{ COUNT }}u + {{ part }}u;
        var total{{ part }} = {{ NUMBERS }}();
        if (p.accumulate == 1u) {
            total{{ part }} = {{ to }}[at{{ part }}];
        }
        for (var i = 0u; i < 8u; i++) {
            total{{ part }} += chunk_sums[{{ part }}u * 256u + i * 32u + lane];
        }
        {{ to }}[at{{ part }}] = total{{ part }};
        {%- endfor %}
    }
{%- endmacro %}
