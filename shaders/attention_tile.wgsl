{#- What the attention kernels in f32 share. A workgroup owns 64 rows of one head, of queries or of keys, and goes over the
tiles of OTHERS rows of the other kind: 32, or 64 where a workgroup may take 25 KiB of memory. Scores are made in blocks of
4 x 4 from slices of 32 columns of both tiles, and go through workgroup memory as weights of the other tile's rows. With 32
other rows there are twice as many threads as blocks: each half of the threads multiplies half of a slice. Everything that is
indexed is workgroup memory; sums are named variables.

DIM: columns of a head, padded. KEEP: rows of a block whose scores a thread ends up with. ACROSS: threads next to each other
in a row of scores. R, C: rows and vectors of the sums of a thread, COLUMNS: threads next to each other in a row of sums. ROWS:
rows of the other tile that are in memory at a time when weights are multiplied by them. -#}
{%- set DIM = (HEAD_DIM + 31) // 32 * 32 %}
{%- set HALVES = 64 // OTHERS %}
{%- set KEEP = 4 // HALVES %}
{%- set ACROSS = OTHERS // 4 %}
{%- set R = 8 if DIM % 128 == 0 else 4 if DIM % 64 == 0 else 2 %}
{%- set C = DIM // 16 // R %}
{%- set COLUMNS = DIM // 4 // C %}
{%- set WEIGHTS = 64 * ACROSS %}
{%- set ROOM = 8 * OTHERS %}
{%- set FIT = 4 * ROOM // DIM %}
{%- set ROWS = 32 if FIT >= 32 else 16 if FIT >= 16 else 8 if FIT >= 8 else 4 %}
{%- set ROW_VECTORS = ROWS * DIM // 4 %}
{%- set ROW_LOADS = (ROW_VECTORS + LANES - 1) // LANES %}
{%- set VECTORS = HEAD_DIM % 4 == 0 %}
{%- set E = ["x", "y", "z", "w"] %}
@group(0) @binding(4) var<storage, read_write> spans: array<u32>;

const DIM: u32 = {{ DIM }}u;
// Where rows of the other tile begin in memory.
const ROOM_AT: u32 = {{ WEIGHTS }}u;

// Slices of both tiles, [row][d / 4], of which the last index is exclusive-or the row against bank conflicts; or weights,
// [own row][other row / 4], and rows of the other tile.
var<workgroup> tile: array<vec4<f32>, {{ WEIGHTS + ROOM }}>;
var<workgroup> bound: u32;

{#- An operand: rows of HEAD_DIM elements of `heads` heads. #}
{% macro operand(x, binding, heads) %}
@group(0) @binding({{ binding }}) var<storage, read_write> {{ x }}: array<{{ "u32" if not VECTORS else "vec2<u32>" if X else "vec4<u32>" }}>;

// Elements d to d + 3, zero past the end of a row; of the last row where `row` is past it.
fn {{ x }}_load(row: u32, head: u32, d: u32) -> vec4<f32> {
    let base = (min(row, p.rows - 1u) * p.{{ heads }} + head) * HEAD_DIM;
{%- if VECTORS %}
    let bits = {{ x }}[(base + min(d, HEAD_DIM - 4u)) / 4u];
    let values = {{ "decode_four(X, bits)" if X else "bitcast<vec4<f32>>(bits)" }};
    return {{ "values" if HEAD_DIM == DIM else "select(vec4<f32>(), values, d < HEAD_DIM)" }};
{%- else %}
    {%- for e in range(4) %}
    let i{{ e }} = base + min(d + {{ e }}u, HEAD_DIM - 1u);
    {%- endfor %}
    return vec4<f32>(
    {%- for e in range(4) %}
        select(0.0, decode(X, {{ x }}[word_of(X, i{{ e }})], i{{ e }}), d + {{ e }}u < HEAD_DIM),
    {%- endfor %}
    );
{%- endif %}
}
{% endmacro %}
{{- operand("q", 1, "heads") }}
{{- operand("k", 2, "kv_heads") }}
{{- operand("v", 3, "kv_heads") }}

{#- A result, of type Y, which has 16 bits only if HEAD_DIM is even. #}
{% macro result(x, binding) %}
@group(0) @binding({{ binding }}) var<storage, read_write> {{ x }}: array<{{ "u32" if not VECTORS else "vec2<u32>" if Y else "vec4<u32>" }}>;

// Elements d to d + 3 of the head that begins at `base`.
fn {{ x }}_store(base: u32, d: u32, values: vec4<f32>) {
{%- if VECTORS %}
    {%- if HEAD_DIM != DIM %}
    if (d >= HEAD_DIM) {
        return;
    }
    {%- endif %}
    {{ x }}[(base + d) / 4u] = {% if Y %}vec2<u32>(pack(Y, values.xy), pack(Y, values.zw)){% else %}bitcast<vec4<u32>>(values){% endif %};
{%- elif Y %}
    if (d < HEAD_DIM) {
        {{ x }}[(base + d) / 2u] = pack(Y, values.xy);
    }
    if (d + 2u < HEAD_DIM) {
        {{ x }}[(base + d) / 2u + 1u] = pack(Y, values.zw);
    }
{%- else %}
    {%- for e in range(4) %}
    if (d + {{ e }}u < HEAD_DIM) {
        {{ x }}[base + d + {{ e }}u] = bitcast<u32>(values.{{ E[e] }});
    }
    {%- endfor %}
{%- endif %}
}
{% endmacro %}
{#- What a thread works on: its block of scores, and its part of the sums. #}
{% macro places() %}
    let half = lane / {{ 16 * ACROSS }}u;
    let x = lane % {{ ACROSS }}u;
    let y = lane / {{ ACROSS }}u % 16u;
    {%- for n in range(KEEP) %}
    let row{{ n }} = own0 + y + 16u * (half * {{ KEEP }}u + {{ n }}u);
    {%- endfor %}
    let column = lane % {{ COLUMNS }}u;
    let first_row = lane / {{ COLUMNS }}u * {{ R }}u;
    // From a slice, a thread loads vector `slot_d` of every 32nd row. The other tile's rows are taken four at a time.
    let slot_row = lane / 8u;
    let slot_d = 4u * (lane % 8u);
    let own_slot = slot_row * 8u + ((lane % 8u) ^ (slot_row % 8u));
    let other_slot = 512u + (slot_row % 4u * {{ ACROSS }}u + slot_row / 4u) * 8u + ((lane % 8u) ^ (slot_row / 4u % 8u));
{%- endmacro %}
{#- SUMS0 to SUMS of KEEP - 1: products of the thread's own rows with rows 4 x to 4 x + 3 of the other tile. Memory is free
before and after. #}
{% macro multiply(sums, own, own_head, other, other_head) %}
    {%- for n in range(KEEP) %}
        var {{ sums }}{{ n }}: vec4<f32>;
    {%- endfor %}
        {
            {%- for n in range(2) %}
            var g{{ n }} = {{ own }}_load(own0 + slot_row + {{ 32 * n }}u, {{ own_head }}, slot_d);
            {%- endfor %}
            {%- for n in range(OTHERS // 32) %}
            var h{{ n }} = {{ other }}_load(other0 + slot_row + {{ 32 * n }}u, {{ other_head }}, slot_d);
            {%- endfor %}
            {%- for i in range(4) %}
                {%- for j in range(4) %}
            var s{{ i }}_{{ j }} = 0.0;
                {%- endfor %}
            {%- endfor %}
            for (var d = 0u; d < DIM; d += 32u) {
                {%- for n in range(2) %}
                tile[own_slot + {{ 256 * n }}u] = g{{ n }};
                {%- endfor %}
                {%- for n in range(OTHERS // 32) %}
                tile[other_slot + {{ 64 * n }}u] = h{{ n }};
                {%- endfor %}
                workgroupBarrier();
                // The next slice comes while this one is multiplied.
                if (d + 32u < DIM) {
                    {%- for n in range(2) %}
                    g{{ n }} = {{ own }}_load(own0 + slot_row + {{ 32 * n }}u, {{ own_head }}, d + 32u + slot_d);
                    {%- endfor %}
                    {%- for n in range(OTHERS // 32) %}
                    h{{ n }} = {{ other }}_load(other0 + slot_row + {{ 32 * n }}u, {{ other_head }}, d + 32u + slot_d);
                    {%- endfor %}
                }
                // Not a constant number of steps: compilers would unroll the loop and load ahead until registers run
                // out.
                for (var at = half * p.steps; at < (half + 1u) * p.steps; at++) {
                    {%- for i in range(4) %}
                    let a{{ i }} = tile[y * 8u + {{ 128 * i }}u + (at ^ (y % 8u))];
                    {%- endfor %}
                    {%- for j in range(4) %}
                    let b{{ j }} = tile[512u + x * 8u + {{ 8 * ACROSS * j }}u + (at ^ (x % 8u))];
                        {%- for i in range(4) %}
                    s{{ i }}_{{ j }} = s{{ i }}_{{ j }} + a{{ i }}.x * b{{ j }}.x + a{{ i }}.y * b{{ j }}.y + a{{ i }}.z * b{{ j }}.z + a{{ i }}.w * b{{ j }}.w;
                        {%- endfor %}
                    {%- endfor %}
                }
                workgroupBarrier();
            }
            {%- for i in range(4) %}
            let s{{ i }} = vec4<f32>(s{{ i }}_0, s{{ i }}_1, s{{ i }}_2, s{{ i }}_3);
            {%- endfor %}
            {%- if HALVES == 1 %}
                {%- for n in range(4) %}
            {{ sums }}{{ n }} = s{{ n }};
                {%- endfor %}
            {%- else %}
            // Each half gives the other what it has of the other's rows.
            tile[lane] = select(s0, s2, half == 0u);
            tile[lane + 256u] = select(s1, s3, half == 0u);
            workgroupBarrier();
            {{ sums }}0 = select(s2, s0, half == 0u) + tile[lane ^ 128u];
            {{ sums }}1 = select(s3, s1, half == 0u) + tile[(lane ^ 128u) + 256u];
            workgroupBarrier();
            {%- endif %}
        }
{% endmacro %}
{#- Keeps four weights of each of the thread's own rows. #}
{% macro keep_weights(weights) %}
    {%- for n in range(KEEP) %}
        tile[(row{{ n }} - own0) * {{ ACROSS }}u + x] = {{ weights }}{{ n }};
    {%- endfor %}
{% endmacro %}
{#- Adds the weights times the rows of `other` to the sums. Memory but for the weights is free before, all of it after. SCALED:
the sums are first multiplied by the factors of their rows. #}
{% macro accumulate(sums, other, other_head, scaled) %}
        {
            {%- for n in range(ROW_LOADS) %}
            let slot{{ n }} = lane + {{ n * LANES }}u;
            var g{{ n }} = {{ other }}_load(other0 + slot{{ n }} / {{ DIM // 4 }}u, {{ other_head }}, 4u * (slot{{ n }} % {{ DIM // 4 }}u));
            {%- endfor %}
            workgroupBarrier();
            {%- if scaled %}
                {%- for r in range(R) %}
            let factor{{ r }} = factors[first_row + {{ r }}u];
                    {%- for c in range(C) %}
            {{ sums }}{{ r }}_{{ c }} *= factor{{ r }};
                    {%- endfor %}
                {%- endfor %}
            {%- endif %}
            for (var k = 0u; k < OTHERS; k += {{ ROWS }}u) {
                {%- for n in range(ROW_LOADS) %}
                {{ "if (slot" ~ n ~ " < " ~ ROW_VECTORS ~ "u) " if (n + 1) * LANES > ROW_VECTORS }}{
                    tile[ROOM_AT + slot{{ n }}] = g{{ n }};
                }
                {%- endfor %}
                workgroupBarrier();
                if (k + {{ ROWS }}u < OTHERS) {
                    {%- for n in range(ROW_LOADS) %}
                    g{{ n }} = {{ other }}_load(other0 + k + {{ ROWS }}u + slot{{ n }} / {{ DIM // 4 }}u, {{ other_head }}, 4u * (slot{{ n }} % {{ DIM // 4 }}u));
                    {%- endfor %}
                }
                for (var j = 0u; j < {{ ROWS }}u; j += 4u) {
                    let from_weights = first_row * {{ ACROSS }}u + (k + j) / 4u;
                    let from_rows = ROOM_AT + j * {{ DIM // 4 }}u + column;
                    {%- for r in range(R) %}
                    let w{{ r }} = tile[from_weights + {{ r * ACROSS }}u];
                    {%- endfor %}
                    {%- for e in range(4) %}
                        {%- for c in range(C) %}
                    let x{{ e }}_{{ c }} = tile[from_rows + {{ e * DIM // 4 + c * COLUMNS }}u];
                            {%- for r in range(R) %}
                    {{ sums }}{{ r }}_{{ c }} += w{{ r }}.{{ E[e] }} * x{{ e }}_{{ c }};
                            {%- endfor %}
                        {%- endfor %}
                    {%- endfor %}
                }
                workgroupBarrier();
            }
        }
{% endmacro %}
{% macro declare(sums) %}
    {%- for r in range(R) %}
        {%- for c in range(C) %}
    var {{ sums }}{{ r }}_{{ c }}: vec4<f32>;
        {%- endfor %}
    {%- endfor %}
{% endmacro %}
{#- Writes the sums as rows of head `head` of `heads`. SCALED: multiplied by the factors of their rows. #}
{% macro store(x, sums, heads, head, scaled) %}
    {%- for r in range(R) %}
    if (own0 + first_row + {{ r }}u < p.rows) {
        let base = ((own0 + first_row + {{ r }}u) * {{ heads }} + {{ head }}) * HEAD_DIM;
        {%- for c in range(C) %}
        {{ x }}_store(base, 4u * (column + {{ c * COLUMNS }}u), {{ "factors[first_row + " ~ r ~ "u] * " if scaled }}{{ sums }}{{ r }}_{{ c }});
        {%- endfor %}
    }
    {%- endfor %}
{% endmacro %}
{#- The first key row that the 64 query rows from own0 on see. #}
{% macro first_key() %}
    if (lane == 0u) {
        bound = first_seen(own0, spans[2u * own0]);
    }
    let begin = workgroupUniformLoad(&bound);
    let end = min(own0 + 64u, p.rows);
{%- endmacro %}
