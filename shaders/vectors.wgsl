{#- Macros of kernels that stream through tensors. VECTORS: elements of a thread's step, which are in vectors of 16 bytes: 4, or
8 where a tensor has 16 bits; 0 where a row or a tensor does not end at a vector, and a thread has one word or element. -#}
{%- set E = ["x", "y", "z", "w"] %}
{%- set PARTS = (VECTORS or 0) // 4 %}
{#- What a step loads from a tensor in f32, and its elements. #}
{%- set NUMBERS = "vec4<f32>" if VECTORS else "f32" %}
{%- set EACH = [".x", ".y", ".z", ".w"] if VECTORS else [""] %}
{#- A tensor that is only read, and one that is written. #}
{% macro bound(x, binding, access="read") %}
@group(0) @binding({{ binding }}) var<storage, {{ access }}> {{ x }}: array<{{ "vec4<u32>" if VECTORS else "u32" }}>;
{%- endmacro %}
{% macro written(x, binding) -%}
{{ bound(x, binding, "read_write") }}
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
{#- A kernel on `p.n` elements of `outputs`, tensors [name, type], those of f32 first: `result`, a function of one element of each
of `inputs`, returns theirs. An input may have a third and a fourth entry, its step at step i and its element at element e; an
output a third one, its step at step i. [name, function] is an input of which the function returns elements 4 `at` to 4 `at` + 3.
No thread does anything where `stop`. #}
{% macro elementwise(inputs, outputs, stop) %}
{%- set step = VECTORS or (2 if (outputs|last)[1] else 1) %}
{% call each("thread", "i", step ~ "u * i >= p.n" ~ (" || " ~ stop if stop else "")) %}
    {%- if VECTORS %}
        {%- for part in range(PARTS) %}
            {%- for x in inputs %}
    let {{ x[0] }}_{{ part }} = {% if x[1] is string %}{{ x[1] }}({{ PARTS }}u * i + {{ part }}u){% else %}{{ four(x[0], x[1], x[2] or "i", part) }}{% endif %};
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
            {{- put(y[0], y[1], y[2] or "i", "to_" ~ y[0]) }}
        {%- endfor %}
    {%- else %}
        {%- for y in outputs if y[1] %}
    var to_{{ y[0] }} = 0u;
        {%- endfor %}
    for (var e = {{ step }}u * i; e < min({{ step }}u * (i + 1u), p.n); e++) {
        {%- for x in inputs if x[1] is not string %}
        let {{ x[0] }}_at = {{ x[3] or "e" }};
        {%- endfor %}
        let r = result({% for x in inputs %}{% if x[1] is string %}{{ x[1] }}(e / 4u)[e % 4u]{% else %}{{ one(x[0], x[1], x[0] ~ "_at") }}{% endif %}{{ ", " if not loop.last }}{% endfor %});
        {%- for y in outputs %}
            {%- set number = "r" ~ ("." ~ E[loop.index0] if outputs|length > 1 else "") %}
            {%- if y[1] %}
        to_{{ y[0] }} = insert({{ y[1] }}u, to_{{ y[0] }}, e, {{ number }});
            {%- else %}
        {{ y[0] }}[{{ y[2] or "e" }}] = bitcast<u32>({{ number }});
            {%- endif %}
        {%- endfor %}
    }
        {%- for y in outputs if y[1] %}
    {{ y[0] }}[{{ y[2] or "i" }}] = to_{{ y[0] }};
        {%- endfor %}
    {%- endif %}
{% endcall %}
{% endmacro %}
