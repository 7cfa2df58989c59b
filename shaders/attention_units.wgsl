{#- Attention on matrix units: f16 fragments, f32 sums, operands from `attention_half`. A workgroup owns 64 rows of one head,
of queries or of keys (KIND), and goes over the tiles of OTHERS rows of the other kind. Scores go through workgroup memory,
where they become weights; these times the other tile are added up in fragments:

    KIND  0  1  2  3   4
    sum   -  o  dq dk  dv       0: the log-sum-exp, which the others read
    rows  q  q  q  k   k

As the log-sum-exp is known before, no sum is ever scaled by rows, which fragments cannot be. A weight is two f16, high and
low: 22 bits, so that a sum is as near as one in f32. -#}
{%- set T = UNITS %}
{%- set OWN_KEYS = KIND >= 3 %}
{%- set GRADS = KIND == 2 or KIND == 3 %}
{%- set DIM = (HEAD_DIM + 31) // 32 * 32 %}
{%- set PER = 4 if VECTOR_MEMORY else 1 %}
{%- set SUBGROUPS = LANES // SUBGROUP %}
{#- How subgroups share out the scores, and the sums. #}
{%- set SCORES_M = 8 if SUBGROUPS == 32 else 4 if SUBGROUPS >= 8 else 2 %}
{%- set SCORES_N = SUBGROUPS // SCORES_M %}
{%- set SUMS_M = 2 if SUBGROUPS == 8 and DIM % (4 * T) == 0 else SCORES_M %}
{%- set SUMS_N = SUBGROUPS // SUMS_M %}
{%- set TALL = 64 // SCORES_M %}
{%- set WIDE = OTHERS // SCORES_N %}
{%- set SUM_TALL = 64 // SUMS_M %}
{%- set SUM_WIDE = DIM // SUMS_N %}
{#- f16 from one row of a tile to the next, padded against bank conflicts. #}
{%- set LINE = DEPTH + 8 %}
{%- set DIM_LINE = DIM + 8 %}
{%- set WEIGHTS_LINE = OTHERS + 8 %}
{%- set SCORES_LINE = OTHERS + 8 %}
{#- Rows of the other tile that are there at a time when weights are multiplied by it. #}
{%- set ROOM = (64 + OTHERS) * LINE %}
{%- set ROWS = OTHERS if OTHERS * DIM_LINE <= ROOM else 32 if OTHERS > 32 and 32 * DIM_LINE <= ROOM else 16 %}
{%- set OPERANDS = ROOM if ROOM > ROWS * DIM_LINE else ROWS * DIM_LINE %}
{#- Vectors of 8 that a thread loads of a slice of the scores' operands, and of rows of the other tile. #}
{%- set SLICE_LOADS = ((64 + OTHERS) * DEPTH // 8 + LANES - 1) // LANES %}
{%- set ROW_LOADS = (ROWS * DIM // 8 + LANES - 1) // LANES %}
{#- Vectors of 4 scores of a thread, and the threads of a row. #}
{%- set QUADS = 64 * OTHERS // 4 // LANES %}
{%- set ROW_LANES = LANES // 64 %}
alias MatrixA = coop_mat{{ T }}x{{ T }}<f16, A>;
alias MatrixB = coop_mat{{ T }}x{{ T }}<f16, B>;
alias MatrixC = coop_mat{{ T }}x{{ T }}<f32, C>;

@group(0) @binding(1) var<storage, read_write> halves: array<vec4<f16>>;
@group(0) @binding(2) var<storage, read_write> exponents: array<i32>;
@group(0) @binding(3) var<storage, read_write> spans: array<u32>;
// The log-sum-exp for o, (log-sum-exp, o . do) for gradients.
@group(0) @binding(4) var<storage, read_write> ld: array<f32>;
{%- if KIND > 0 %}
@group(0) @binding(5) var<storage, read_write> result: array<u32>;
{%- endif %}

const DIM: u32 = {{ DIM }}u;

var<workgroup> operands: array<{{ "vec4<f16>" if VECTOR_MEMORY else "f16" }}, {{ OPERANDS // PER }}>;
var<workgroup> scores: array<{{ "vec4<f32>" if VECTOR_MEMORY else "f32" }}, {{ 64 * SCORES_LINE // PER }}>;
{%- if KIND > 0 %}
var<workgroup> high: array<{{ "vec4<f16>" if VECTOR_MEMORY else "f16" }}, {{ 64 * WEIGHTS_LINE // PER }}>;
var<workgroup> low: array<{{ "vec4<f16>" if VECTOR_MEMORY else "f16" }}, {{ 64 * WEIGHTS_LINE // PER }}>;
{%- else %}
// Largest score and sum of what each thread has seen.
var<workgroup> seen: array<vec2<f32>, LANES>;
{%- endif %}
{%- if OWN_KEYS %}
var<workgroup> starts: array<u32, OTHERS>;
var<workgroup> terms: array<vec2<f32>, OTHERS>;
{%- endif %}
{%- if GRADS %}
var<workgroup> largest: array<f32, {{ SUBGROUPS }}>;
{%- endif %}
var<workgroup> bound: u32;

// Vector i of the scores.
fn scores_at(i: u32) -> vec4<f32> {
    return {% if VECTOR_MEMORY %}scores[i]{% else %}vec4<f32>(scores[4u * i], scores[4u * i + 1u], scores[4u * i + 2u], scores[4u * i + 3u]){% endif %};
}

{% macro memory(name) %}
fn keep_{{ name }}(at: u32, value: vec4<f16>) {
{%- if VECTOR_MEMORY %}
    {{ name }}[at / 4u] = value;
{%- else %}
    {%- for e in range(4) %}
    {{ name }}[at + {{ e }}u] = value[{{ e }}];
    {%- endfor %}
{%- endif %}
}
{% endmacro %}
{{- memory("operands") }}
{%- if KIND > 0 %}
{{- memory("high") }}
{{- memory("low") }}
{%- endif %}

fn tiles() -> u32 {
    return (p.rows + 63u) / 64u;
}

// Vector of 4 at which a row of a head, counted over all tensors, begins.
fn row_at(head: u32, row: u32) -> u32 {
    return (head * tiles() * 64u + row) * (DIM / 4u);
}

fn exponent_of(head: u32, row: u32) -> i32 {
    return exponents[head * tiles() + row / 64u];
}

// 2^exponent as two factors, each of which is a finite number, while their product may not be.
fn first_factor(exponent: i32) -> f32 {
    return power_of_two(clamp(exponent / 2, -126, 126));
}

fn second_factor(exponent: i32) -> f32 {
    return power_of_two(clamp(exponent - exponent / 2, -126, 126));
}

fn magnitude(x: f32) -> f32 {
    let bits = bitcast<u32>(x) & 0x7fffffffu;
    return bitcast<f32>(select(bits, 0u, bits >= 0x7f800000u));
}

{#- Own rows of head `own` times other rows of head `other`, transposed, into `scores`. Workgroup memory is free before and
after, and a barrier has passed since scores were written. #}
{% macro multiply(own, other) %}
        {
            {%- for n in range(SLICE_LOADS) %}
                {%- set first = n * LANES // (DEPTH // 8) %}
            let from{{ n }} = row_at({{ own if first < 64 else other }}, {{ "own0 + slice_row" if first < 64 else "other0 + min(slice_row, OTHERS - 1u)" }} + {{ first if first < 64 else first - 64 }}u) + 2u * (lane % {{ DEPTH // 8 }}u);
            var x{{ n }} = halves[from{{ n }}];
            var y{{ n }} = halves[from{{ n }} + 1u];
            {%- endfor %}
            {%- for i in range(TALL // T) %}
                {%- for j in range(WIDE // T) %}
            var c{{ i }}_{{ j }} = MatrixC();
                {%- endfor %}
            {%- endfor %}
            for (var d = 0u; d < DIM; d += {{ DEPTH }}u) {
                {%- for n in range(SLICE_LOADS) %}
                    {%- set first = n * LANES // (DEPTH // 8) %}
                {{ "if (slice_row < " ~ (64 + OTHERS - first) ~ "u) " if first + LANES // (DEPTH // 8) > 64 + OTHERS }}{
                    keep_operands(to_slice + {{ first * LINE }}u, x{{ n }});
                    keep_operands(to_slice + {{ first * LINE + 4 }}u, y{{ n }});
                }
                {%- endfor %}
                workgroupBarrier();
                // The next slice is loaded while this one is multiplied.
                if (d + {{ DEPTH }}u < DIM) {
                    {%- for n in range(SLICE_LOADS) %}
                    x{{ n }} = halves[from{{ n }} + (d + {{ DEPTH }}u) / 4u];
                    y{{ n }} = halves[from{{ n }} + (d + {{ DEPTH }}u) / 4u + 1u];
                    {%- endfor %}
                }
                {%- for k in range(0, DEPTH, T) %}
                {
                    let line = {{ LINE // PER }}u;
                    {%- for i in range(TALL // T) %}
                    let a{{ i }} = coopLoadT<MatrixA>(&operands[from_own + {{ (i * T * LINE + k) // PER }}u], line);
                    {%- endfor %}
                    {%- for j in range(WIDE // T) %}
                    let b{{ j }} = coopLoad<MatrixB>(&operands[from_other + {{ (j * T * LINE + k) // PER }}u], line);
                        {%- for i in range(TALL // T) %}
                    c{{ i }}_{{ j }} = coopMultiplyAdd(a{{ i }}, b{{ j }}, c{{ i }}_{{ j }});
                        {%- endfor %}
                    {%- endfor %}
                }
                {%- endfor %}
                workgroupBarrier();
            }
            let exponent = -(exponent_of({{ own }}, own0) + exponent_of({{ other }}, other0));
            {%- for i in range(TALL // T) %}
                {%- for j in range(WIDE // T) %}
            {
                let value = first_factor(exponent) * (second_factor(exponent) * c{{ i }}_{{ j }});
                let line = {{ SCORES_LINE // PER }}u;
                let to = to_scores + {{ (i * T * SCORES_LINE + j * T) // PER }}u;
                coopStoreT(value, &scores[to], line);
            }
                {%- endfor %}
            {%- endfor %}
            workgroupBarrier();
        }
{% endmacro %}

{#- Adds the weights times the other rows at `from_x` to the sums. Workgroup memory is free before and after. #}
{% macro accumulate() %}
        {
            {%- for n in range(ROW_LOADS) %}
                {%- set part = ROWS * DIM // 8 < (n + 1) * LANES %}
            let slot{{ n }} = {{ "min(lane + " ~ n * LANES ~ "u, " ~ (ROWS * DIM // 8 - 1) ~ "u)" if part else "lane + " ~ n * LANES ~ "u" }};
            let to{{ n }} = slot{{ n }} / {{ DIM // 8 }}u * {{ DIM_LINE }}u + 8u * (slot{{ n }} % {{ DIM // 8 }}u);
            var x{{ n }} = halves[from_x + 2u * slot{{ n }}];
            var y{{ n }} = halves[from_x + 2u * slot{{ n }} + 1u];
            {%- endfor %}
            for (var k = 0u; k < OTHERS; k += {{ ROWS }}u) {
                {%- for n in range(ROW_LOADS) %}
                    {%- set part = ROWS * DIM // 8 < (n + 1) * LANES %}
                {{ "if (lane + " ~ n * LANES ~ "u < " ~ ROWS * DIM // 8 ~ "u) " if part }}{
                    keep_operands(to{{ n }}, x{{ n }});
                    keep_operands(to{{ n }} + 4u, y{{ n }});
                }
                {%- endfor %}
                workgroupBarrier();
                if (k + {{ ROWS }}u < OTHERS) {
                    {%- for n in range(ROW_LOADS) %}
                    x{{ n }} = halves[from_x + (k + {{ ROWS }}u) * (DIM / 4u) + 2u * slot{{ n }}];
                    y{{ n }} = halves[from_x + (k + {{ ROWS }}u) * (DIM / 4u) + 2u * slot{{ n }} + 1u];
                    {%- endfor %}
                }
                {%- for kk in range(0, ROWS, T) %}
                {
                    let line = {{ WEIGHTS_LINE // PER }}u;
                    let at = from_weights + k / {{ PER }}u;
                    {%- for i in range(SUM_TALL // T) %}
                    let h{{ i }} = coopLoadT<MatrixA>(&high[at + {{ (i * T * WEIGHTS_LINE + kk) // PER }}u], line);
                    let l{{ i }} = coopLoadT<MatrixA>(&low[at + {{ (i * T * WEIGHTS_LINE + kk) // PER }}u], line);
                    {%- endfor %}
                    let other_line = {{ DIM_LINE // PER }}u;
                    {%- for j in range(SUM_WIDE // T) %}
                    let b{{ j }} = coopLoadT<MatrixB>(&operands[from_columns + {{ (kk * DIM_LINE + j * T) // PER }}u], other_line);
                        {%- for i in range(SUM_TALL // T) %}
                    s{{ i }}_{{ j }} = coopMultiplyAdd(l{{ i }}, b{{ j }}, coopMultiplyAdd(h{{ i }}, b{{ j }}, s{{ i }}_{{ j }}));
                        {%- endfor %}
                    {%- endfor %}
                }
                {%- endfor %}
                workgroupBarrier();
            }
        }
{% endmacro %}

{#- Names for component e of vector i of the weights of a thread. #}
{% macro each(i, e) %}
    {%- set column = "4u * part + " ~ (4 * ROW_LANES * i + e) ~ "u" %}
    {%- if OWN_KEYS %}
            let t = other0 + {{ column }};
            let start = starts[{{ column }}];
            let term = terms[{{ column }}];
    {%- else %}
            let j = other0 + {{ column }};
    {%- endif %}
{%- endmacro %}
@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup_id: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    // Not by a function: the WGSL front end assumes that what a function returns differs between threads.
    let id = group.y * groups.x + group.x;
    {%- if OWN_KEYS %}
    let count = p.kv_heads * p.parts;
    {%- else %}
    let count = p.heads;
    {%- endif %}
    let own0 = id / count * 64u;
    if (own0 >= p.rows) {
        return;
    }
    let group_heads = p.heads / p.kv_heads;
    {%- if OWN_KEYS %}
    let kv_head = id % count / p.parts;
    let first_head = id % count * (group_heads / p.parts);
    let end_head = first_head + group_heads / p.parts;
    {%- else %}
    let head = id % count;
    let kv_head = head / group_heads;
    {%- endif %}
    let valid = one_if((subgroup_size == SUBGROUP) & (subgroups * SUBGROUP == LANES));
    // Keeps indices within bounds where subgroups are smaller than expected.
    let subgroup = min(subgroup_id, {{ SUBGROUPS - 1 }}u);
    let from_own = subgroup / {{ SCORES_N }}u * {{ TALL * LINE // PER }}u;
    let from_other = {{ 64 * LINE // PER }}u + subgroup % {{ SCORES_N }}u * {{ WIDE * LINE // PER }}u;
    let to_scores = subgroup / {{ SCORES_N }}u * {{ TALL * SCORES_LINE // PER }}u + subgroup % {{ SCORES_N }}u * {{ WIDE // PER }}u;
    // What a thread loads of a slice of operands: own rows first, then the others.
    let slice_row = spread(lane / {{ DEPTH // 8 }}u);
    let to_slice = slice_row * {{ LINE }}u + 8u * (lane % {{ DEPTH // 8 }}u);
    // The row and the first vector of four columns of a tile that a thread weighs.
    let row = lane / {{ ROW_LANES }}u;
    let part = lane % {{ ROW_LANES }}u;
    if (lane == 0u) {
    {%- if OWN_KEYS %}
        let last = min(own0 + 63u, p.rows - 1u);
        bound = min(end_of_seeing(last, spans[2u * last + 1u]), p.rows);
    {%- else %}
        bound = first_seen(own0, spans[2u * own0]) / OTHERS * OTHERS;
    {%- endif %}
    }
    {%- if OWN_KEYS %}
    let begin = own0;
    let end = workgroupUniformLoad(&bound);
    let j = own0 + row;
    {%- else %}
    let begin = workgroupUniformLoad(&bound);
    let end = min(own0 + 64u, p.rows);
    let t = own0 + row;
    let seeing = min(t, p.rows - 1u);
    let start = spans[2u * seeing];
        {%- if GRADS %}
    let term = vec2<f32>(ld[2u * (seeing * p.heads + head)], ld[2u * (seeing * p.heads + head) + 1u]);
        {%- elif KIND == 1 %}
    let term = vec2<f32>(ld[seeing * p.heads + head], 0.0);
        {%- endif %}
    {%- endif %}
    {%- if KIND > 0 %}
    let from_weights = subgroup / {{ SUMS_N }}u * {{ SUM_TALL * WEIGHTS_LINE // PER }}u;
    let first_column = subgroup % {{ SUMS_N }}u * {{ SUM_WIDE }}u;
    let from_columns = first_column / {{ PER }}u;
        {%- for i in range(SUM_TALL // T) %}
            {%- for j in range(SUM_WIDE // T) %}
    var s{{ i }}_{{ j }}: MatrixC;
            {%- endfor %}
        {%- endfor %}
    // The sums are those of the result times 2^sum_exponent, which is lowered when larger terms come.
    var sum_exponent = 252;
    {%- else %}
    var most = UNSEEN;
    var sum = 0.0;
    {%- endif %}
    {%- if OWN_KEYS %}
    for (var head = first_head; head < end_head; head++) {
    {%- else %}
    {
    {%- endif %}
    {%- set Q, K = "head", "p.heads + kv_head" %}
    {%- set V, D_O = "p.heads + p.kv_heads + kv_head", "p.heads + 2u * p.kv_heads + head" %}
    for (var other0 = begin; other0 < end; other0 += OTHERS) {
        {%- if OWN_KEYS %}
        if (lane < OTHERS) {
            let seeing = min(other0 + lane, p.rows - 1u);
            starts[lane] = spans[2u * seeing];
            let at = 2u * (seeing * p.heads + head);
            terms[lane] = vec2<f32>(ld[at], ld[at + 1u]);
        }
        {%- endif %}
        {{- multiply(K, Q) if OWN_KEYS else multiply(Q, K) }}
        {%- for i in range(QUADS) %}
        let products{{ i }} = scores_at((row * {{ SCORES_LINE }}u + 4u * part) / 4u + {{ ROW_LANES * i }}u);
        {%- endfor %}
        {%- if KIND == 0 %}
        var tile_most = most;
            {%- for i in range(QUADS) %}
        var scores{{ i }}: vec4<f32>;
                {%- for e in range(4) %}
        {
            {{- each(i, e) }}
            scores{{ i }}[{{ e }}] = select(UNSEEN, score(products{{ i }}[{{ e }}]), sees(t, j, start));
            tile_most = max(tile_most, scores{{ i }}[{{ e }}]);
        }
                {%- endfor %}
            {%- endfor %}
        sum *= exp(most - tile_most);
        most = tile_most;
            {%- for i in range(QUADS) %}
                {%- for e in range(4) %}
        // Compared by its bits: a NaN counts as seen.
        sum += select(exp(scores{{ i }}[{{ e }}] - most), 0.0, bitcast<u32>(scores{{ i }}[{{ e }}]) == bitcast<u32>(UNSEEN));
                {%- endfor %}
            {%- endfor %}
        {%- else %}
            {%- for i in range(QUADS) %}
        var weights{{ i }}: vec4<f32>;
                {%- for e in range(4) %}
        {
            {{- each(i, e) }}
            let s = score(products{{ i }}[{{ e }}]);
            let probability = select(0.0, exp(s - term.x), sees(t, j, start));
                    {%- if GRADS %}
            weights{{ i }}[{{ e }}] = p.scale * probability * slope(s);
                    {%- else %}
            weights{{ i }}[{{ e }}] = select(0.0, probability, kept(j, t, head) > 0.0);
                    {%- endif %}
        }
                {%- endfor %}
            {%- endfor %}
            {%- if GRADS %}
            {{- multiply(V, D_O) if OWN_KEYS else multiply(D_O, V) }}
        var tile_most = 0.0;
                {%- for i in range(QUADS) %}
        let d_weights{{ i }} = scores_at((row * {{ SCORES_LINE }}u + 4u * part) / 4u + {{ ROW_LANES * i }}u);
                    {%- for e in range(4) %}
        {
            {{- each(i, e) }}
            let d_weight = kept(j, t, head) * d_weights{{ i }}[{{ e }}] - term.y;
            weights{{ i }}[{{ e }}] = select(0.0, weights{{ i }}[{{ e }}] * d_weight, sees(t, j, start));
            tile_most = max(tile_most, magnitude(weights{{ i }}[{{ e }}]));
        }
                    {%- endfor %}
                {%- endfor %}
        largest[subgroup] = subgroupMax(tile_most);
        workgroupBarrier();
        tile_most = largest[0];
                {%- for i in range(1, SUBGROUPS) %}
        tile_most = max(tile_most, largest[{{ i }}]);
                {%- endfor %}
        let own_exponent = exponent_for(tile_most, 126);
            {%- else %}
        let own_exponent = 14;
            {%- endif %}
            {%- set X = {1: V, 2: K, 3: Q, 4: D_O}[KIND] %}
        let other_exponent = exponent_of({{ X }}, other0);
        let exponent = min(sum_exponent, own_exponent + other_exponent);
        let factor = power_of_two(clamp(exponent - other_exponent, -126, 126));
            {%- for i in range(QUADS) %}
        {
            let at = row * {{ WEIGHTS_LINE }}u + 4u * part + {{ 4 * ROW_LANES * i }}u;
            let weight = factor * weights{{ i }};
            // By bits: a driver may assume that rounding to f16 and back changes nothing.
            let rounded = bitcast<vec4<f32>>((bitcast<vec4<u32>>(weight) + vec4<u32>(0x1000u)) & vec4<u32>(0xffffe000u));
            keep_high(at, vec4<f16>(rounded));
            keep_low(at, vec4<f16>(weight - rounded));
        }
            {%- endfor %}
        let fall = power_of_two(clamp(exponent - sum_exponent, -126, 0));
            {%- for i in range(SUM_TALL // T) %}
                {%- for j in range(SUM_WIDE // T) %}
        s{{ i }}_{{ j }} = fall * s{{ i }}_{{ j }};
                {%- endfor %}
            {%- endfor %}
        sum_exponent = exponent;
        let from_x = row_at({{ X }}, other0);
        {{- accumulate() }}
        {%- endif %}
    }
    }
    {%- if KIND == 0 %}
    seen[lane] = vec2<f32>(most, sum);
    workgroupBarrier();
    if (part == 0u && t < p.rows) {
        for (var i = 1u; i < {{ ROW_LANES }}u; i++) {
            most = max(most, seen[lane + i].x);
        }
        sum = 0.0;
        for (var i = 0u; i < {{ ROW_LANES }}u; i++) {
            sum += seen[lane + i].y * exp(seen[lane + i].x - most);
        }
        ld[t * p.heads + head] = valid * (most + log(sum));
    }
    {%- else %}
        {%- if OWN_KEYS %}
    let base = id % count * HEAD_DIM;
        {%- else %}
    let base = head * HEAD_DIM;
        {%- endif %}
    // As many columns at a time as there is room for.
    for (var column0 = 0u; column0 < DIM; column0 += OTHERS) {
        {%- for i in range(SUM_TALL // T) %}
            {%- for j in range(SUM_WIDE // T) %}
        if ((first_column + {{ j * T }}u) / OTHERS * OTHERS == column0) {
            let value = {{ "valid" if GRADS else "valid * p.keep" }} * (first_factor(-sum_exponent) * (second_factor(-sum_exponent) * s{{ i }}_{{ j }}));
            let line = {{ SCORES_LINE // PER }}u;
            let row = subgroup / {{ SUMS_N }}u * {{ SUM_TALL }}u + {{ i * T }}u;
            let to = (row * {{ SCORES_LINE }}u + first_column + {{ j * T }}u - column0) / {{ PER }}u;
            coopStoreT(value, &scores[to], line);
        }
            {%- endfor %}
        {%- endfor %}
        workgroupBarrier();
        for (var i = lane; i < 64u * OTHERS / 4u; i += LANES) {
            let row = own0 + i / (OTHERS / 4u);
            let d = column0 + i % (OTHERS / 4u) * 4u;
            let values = scores_at(i / (OTHERS / 4u) * {{ SCORES_LINE // 4 }}u + i % (OTHERS / 4u));
            if (row < p.rows) {
                store(row * count * HEAD_DIM + base, d, values.xy);
                store(row * count * HEAD_DIM + base, d + 2u, values.zw);
            }
        }
        workgroupBarrier();
    }
    {%- endif %}
}
{%- if KIND > 0 %}

// Elements d and d + 1 of the head that begins at `base`.
fn store(base: u32, d: u32, pair: vec2<f32>) {
    if (d >= HEAD_DIM) {
        return;
    }
    if (Y != F32) {
        result[(base + d) >> 1u] = pack(Y, pair);
        return;
    }
    result[base + d] = bitcast<u32>(pair.x);
    if (d + 1u < HEAD_DIM) {
        result[base + d + 1u] = bitcast<u32>(pair.y);
    }
}
{%- endif %}
