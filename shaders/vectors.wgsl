{#- Macros of kernels that stream through tensors. VECTORS: elements of a thread's step, which are in vectors of 16 bytes: 4, or
8 where a tensor has 16 bits; 0 where a row or a tensor does not end at a vector, and a thread has one word or element. -#}
{%- set E = ["x", "y", "z", "w"] %}
{%- set PARTS = VECTORS // 4 %}
{#- A tensor. #}
{% macro bound(x, binding) %}
@group(0) @binding({{ binding }}) var<storage, read_write> {{ x }}: array<{{ "vec4<u32>" if VECTORS else "u32" }}>;
{%- endmacro %}
{#- Elements 4 `part` to 4 `part` + 3 of step `at` of a tensor. #}
{% macro four(x, type, at, part) -%}
    {%- if type -%}
decode_four({{ type }}u, {{ x }}[{{ at }}].{{ "zw" if part else "xy" }})
    {%- else -%}
bitcast<vec4<f32>>({{ x }}[({{ at }}) * {{ PARTS }}u + {{ part }}u])
    {%- endif -%}
{%- endmacro %}
{#- Element `at` of a tensor that is bound by words. #}
{% macro one(x, type, at) -%}
decode({{ type }}u, {{ x }}[word_of({{ type }}u, {{ at }})], {{ at }})
{%- endmacro %}
{#- Writes step `at` of a tensor: NAME0, NAME1, each four numbers. #}
{% macro put(y, type, at, name) %}
    {%- if type %}
        {{ y }}[{{ at }}] = vec4<u32>(pack({{ type }}u, {{ name }}0.xy), pack({{ type }}u, {{ name }}0.zw), pack({{ type }}u, {{ name }}1.xy), pack({{ type }}u, {{ name }}1.zw));
    {%- else %}
        {%- for part in range(PARTS) %}
        {{ y }}[({{ at }}) * {{ PARTS }}u + {{ part }}u] = bitcast<vec4<u32>>({{ name }}{{ part }});
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{#- A kernel on `p.n` elements of `outputs`, tensors [name, type] of one type: `result`, a function of one element of each of
`inputs`, returns theirs. An input may have a third and a fourth entry, its step at step i and its element at element e. No
thread does anything where `stop`. #}
{% macro elementwise(inputs, outputs, stop) %}
@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = linear_id(group, groups) * LANES + lane;
    {%- set step = VECTORS or (2 if outputs[0][1] else 1) %}
    if ({{ step }}u * i >= p.n{{ " || " ~ stop if stop }}) {
        return;
    }
    {%- if VECTORS %}
        {%- for part in range(PARTS) %}
            {%- for x in inputs %}
    let {{ x[0] }}_{{ part }} = {{ four(x[0], x[1], x[2] if x[2] else "i", part) }};
            {%- endfor %}
            {%- for e in E %}
    let r{{ part }}{{ e }} = result({% for x in inputs %}{{ x[0] }}_{{ part }}.{{ e }}{{ ", " if not loop.last }}{% endfor %});
            {%- endfor %}
            {%- for y in outputs %}
                {%- set of = "." ~ E[loop.index0] if outputs|length > 1 %}
    let to_{{ y[0] }}{{ part }} = vec4<f32>({% for e in E %}r{{ part }}{{ e }}{{ of }}{{ ", " if not loop.last }}{% endfor %});
            {%- endfor %}
        {%- endfor %}
        {%- for y in outputs %}
            {{- put(y[0], y[1], "i", "to_" ~ y[0]) }}
        {%- endfor %}
    {%- else %}
        {%- for y in outputs %}
    var to_{{ y[0] }} = 0u;
        {%- endfor %}
    for (var j = 0u; j < {{ step }}u; j++) {
        let e = {{ step }}u * i + j;
        if (e < p.n) {
            {%- for x in inputs %}
            let {{ x[0] }}_at = {{ x[3] if x[3] else "e" }};
            {%- endfor %}
            let r = result({% for x in inputs %}{{ one(x[0], x[1], x[0] ~ "_at") }}{{ ", " if not loop.last }}{% endfor %});
            {%- for y in outputs %}
            to_{{ y[0] }} = insert({{ y[1] }}u, to_{{ y[0] }}, e, r{{ "." ~ E[loop.index0] if outputs|length > 1 }});
            {%- endfor %}
        }
    }
        {%- for y in outputs %}
    {{ y[0] }}[i] = to_{{ y[0] }};
        {%- endfor %}
    {%- endif %}
}
{% endmacro %}
