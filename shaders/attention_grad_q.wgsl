{#- After attention_grad_tile. -#}
// dq = ds k; one workgroup per tile of 64 query rows of one head.
{{- result("dq", 7) }}
@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = linear_id(group, groups);
    let head = id % p.heads;
    let own0 = id / p.heads * 64u;
    if (own0 >= p.rows) {
        return;
    }
    let kv_head = head / (p.heads / p.kv_heads);
    {{- places() }}
    {{- first_key() }}
    {%- for n in range(KEEP) %}
    let start{{ n }} = spans[2u * min(row{{ n }}, p.rows - 1u)];
    let terms{{ n }} = terms(row{{ n }}, head);
    {%- endfor %}
    {{- declare("dq") }}
    for (var other0 = begin; other0 < end; other0 += OTHERS) {
        {{- multiply("scores", "q", "head", "k", "kv_head") }}
        {{- multiply("d_weights", "d_o", "head", "v", "kv_head") }}
        let j = other0 + 4u * x;
        {%- for n in range(KEEP) %}
        scores{{ n }} = vec4<f32>(
            {%- for e in range(4) %}
            element(scores{{ n }}.{{ E[e] }}, d_weights{{ n }}.{{ E[e] }}, row{{ n }}, j + {{ e }}u, head, start{{ n }}, terms{{ n }}).y,
            {%- endfor %}
        );
        {%- endfor %}
        {{- keep_weights("scores") }}
        {{- accumulate("dq", "k", "kv_head", false) }}
    }
    {{- store("dq", "dq", "p.heads", "head", false) }}
}
