{#- After attention_grad_tile. DK, DV: whether each of the gradients is made. -#}
// dk = ds^T q, dv = p^T do, added up over the query heads of each part of those that share a key head: [rows, kv_heads *
// parts, head_dim]. One workgroup per tile of 64 key rows and part.
{%- if DK %}
{{- result("dk", 7) }}
{%- endif %}
{%- if DV %}
{{- result("dv", 8 if DK else 7) }}
{%- endif %}
@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = linear_id(group, groups);
    let count = p.kv_heads * p.parts;
    let own0 = id / count * 64u;
    if (own0 >= p.rows) {
        return;
    }
    let kv_head = id % count / p.parts;
    let heads = p.heads / count;
    {{- places() }}
    if (lane == 0u) {
        let last = min(own0 + 63u, p.rows - 1u);
        bound = min(end_of_seeing(last, spans[2u * last + 1u]), p.rows);
    }
    let end = workgroupUniformLoad(&bound);
    {%- if DK %}
    {{- declare("dk") }}
    {%- endif %}
    {%- if DV %}
    {{- declare("dv") }}
    {%- endif %}
    for (var i = 0u; i < heads; i++) {
        let head = id % count * heads + i;
        for (var other0 = own0; other0 < end; other0 += OTHERS) {
            {{- multiply("scores", "k", "kv_head", "q", "head") }}
            {%- if DK %}
            {{- multiply("d_weights", "v", "kv_head", "d_o", "head") }}
            {%- else %}
                {%- for n in range(KEEP) %}
            let d_weights{{ n }} = vec4<f32>();
                {%- endfor %}
            {%- endif %}
            {%- for e in range(4) %}
            let t{{ e }} = other0 + 4u * x + {{ e }}u;
            let start{{ e }} = spans[2u * min(t{{ e }}, p.rows - 1u)];
            let terms{{ e }} = terms(t{{ e }}, head);
                {%- for n in range(KEEP) %}
            let element{{ n }}_{{ e }} = element(scores{{ n }}.{{ E[e] }}, d_weights{{ n }}.{{ E[e] }}, t{{ e }}, row{{ n }}, head, start{{ e }}, terms{{ e }});
                {%- endfor %}
            {%- endfor %}
            {%- for n in range(KEEP) %}
            let weights{{ n }} = vec4<f32>({% for e in range(4) %}element{{ n }}_{{ e }}.x{{ ", " if e < 3 }}{% endfor %});
            let d_scores{{ n }} = vec4<f32>({% for e in range(4) %}element{{ n }}_{{ e }}.y{{ ", " if e < 3 }}{% endfor %});
            {%- endfor %}
            {%- if DV %}
            {{- keep_weights("weights") }}
            {{- accumulate("dv", "d_o", "head", false) }}
            {%- endif %}
            {%- if DK %}
            {{- keep_weights("d_scores") }}
            {{- accumulate("dk", "q", "head", false) }}
            {%- endif %}
        }
    }
    {%- if DK %}
    {{- store("dk", "dk", "count", "id % count", false) }}
    {%- endif %}
    {%- if DV %}
    {{- store("dv", "dv", "count", "id % count", false) }}
    {%- endif %}
}
