{#- After attention_tile. -#}
// o = softmax(score(q k^T)) v with an online softmax over key tiles (Dao et al. 2022); one workgroup per tile of 64
// query rows of one head. Keeps the log-sum-exp.
{{- result("o", 5) }}
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;

// What the sums of each row are multiplied by.
var<workgroup> factors: array<f32, 64>;

// Scores of query row t with key rows j to j + 3, given the first row of t's segment.
fn masked(products: vec4<f32>, t: u32, j: u32, start: u32) -> vec4<f32> {
    return vec4<f32>(
    {%- for e in range(4) %}
        select(UNSEEN, score(products.{{ E[e] }}), sees(t, j + {{ e }}u, start)),
    {%- endfor %}
    );
}

fn largest(s: vec4<f32>) -> f32 {
    return max(max(s.x, s.y), max(s.z, s.w));
}

// exp(s - most), or 0 for a key that is not seen: compared by its bits, since a NaN counts as seen.
fn weight(s: f32, most: f32) -> f32 {
    return select(exp(s - most), 0.0, bitcast<u32>(s) == bitcast<u32>(UNSEEN));
}

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
    // For each row: the largest score of all threads, and the thread's own sum.
    {%- for n in range(KEEP) %}
    let start{{ n }} = spans[2u * min(row{{ n }}, p.rows - 1u)];
    var most{{ n }} = UNSEEN;
    var sum{{ n }} = 0.0;
    {%- endfor %}
    {{- declare("o") }}
    for (var other0 = begin; other0 < end; other0 += OTHERS) {
        {{- multiply("scores", "q", "head", "k", "kv_head") }}
        let j = other0 + 4u * x;
        {%- for n in range(KEEP) %}
        scores{{ n }} = masked(scores{{ n }}, row{{ n }}, j, start{{ n }});
        {%- endfor %}
        tile[ROOM_AT + lane] = vec4<f32>({% for n in range(4) %}{{ "largest(scores" ~ n ~ ")" if n < KEEP else "UNSEEN" }}{{ ", " if n < 3 }}{% endfor %});
        workgroupBarrier();
        var found = tile[ROOM_AT + lane - x];
        {%- for i in range(1, ACROSS) %}
        found = max(found, tile[ROOM_AT + lane - x + {{ i }}u]);
        {%- endfor %}
        {%- for n in range(KEEP) %}
        {
            let most = max(found.{{ E[n] }}, most{{ n }});
            let factor = select(exp(most{{ n }} - most), 0.0, most{{ n }} <= UNSEEN);
            most{{ n }} = most;
            scores{{ n }} = vec4<f32>(
            {%- for e in range(4) %}
                weight(scores{{ n }}.{{ E[e] }}, most),
            {%- endfor %}
            );
            sum{{ n }} = sum{{ n }} * factor + ((scores{{ n }}.x + scores{{ n }}.y) + (scores{{ n }}.z + scores{{ n }}.w));
            {%- if DROPOUT %}
            scores{{ n }} *= vec4<f32>(
                {%- for e in range(4) %}
                kept(j + {{ e }}u, row{{ n }}, head),
                {%- endfor %}
            );
            {%- endif %}
            if (x == 0u) {
                factors[row{{ n }} - own0] = factor;
            }
        }
        {%- endfor %}
        {{- keep_weights("scores") }}
        {{- accumulate("o", "v", "kv_head", true) }}
    }
    tile[lane] = vec4<f32>({% for n in range(4) %}{{ "sum" ~ n if n < KEEP else "0.0" }}{{ ", " if n < 3 }}{% endfor %});
    workgroupBarrier();
    if (x == 0u) {
        var total = tile[lane];
        for (var i = 1u; i < {{ ACROSS }}u; i++) {
            total += tile[lane + i];
        }
        {%- for n in range(KEEP) %}
        factors[row{{ n }} - own0] = select(1.0 / total.{{ E[n] }}, 0.0, total.{{ E[n] }} == 0.0);
        if (row{{ n }} < p.rows) {
            lse[row{{ n }} * p.heads + head] = most{{ n }} + log(total.{{ E[n] }});
        }
        {%- endfor %}
    }
    workgroupBarrier();
    {{- store("o", "o", "p.heads", "head", true) }}
}
