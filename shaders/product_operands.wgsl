{#- What the kernels of matrix products in tiles share: how operands are bound and loaded, and where a tile lies. UNIT:
elements of a vector. A thread loads groups of VECTORS_EACH vectors, GROUPS of which are one operand's tile; ROW_STEP, K_STEP:
from one vector of a group to the next, where k is the stored column and where it is not. ROUNDS: groups that each thread
loads, first a's and then b's; where it is 1, half of the threads load a and half load b. #}
{%- set TILE = 64 * BLOCKS %}
{%- set DEPTH = 32 if UNITS else 32 // BLOCKS %}
{%- set UNIT = 8 if UNITS else 4 %}
{%- set VECTORS_EACH = 2 if UNITS and not TRANSPOSE and 2 * TILE == LANES else 4 %}
{%- set GROUPS = 4 * TILE // VECTORS_EACH if UNITS else 128 %}
{%- set ROUNDS = [1, 2 * GROUPS // LANES] | max %}
{%- set ROW_STEP = GROUPS // 4 if UNITS else 1 %}
{%- set K_STEP = (1 if TRANSPOSE else 8 * GROUPS // TILE) if UNITS else 512 // TILE %}
{%- set UNCHECKED = VECTORS and WHOLE %}
{%- set CLAMPED = UNCHECKED and EDGES %}
{%- set NT = LAYOUT == 0 %}
{%- set TN = LAYOUT == 2 %}
// TYPE_A and TYPE_B are the operands' types, LAYOUT is 0 NT, 1 NN, 2 TN. VECTORS: ranges of columns of both operands begin and
// end at whole loads, as stored rows do; then they are bound as vectors. WHOLE: every piece of k is a multiple of DEPTH. EDGES:
// m or n is not a multiple of TILE.
const TILE: u32 = {{ TILE }}u;
const DEPTH: u32 = {{ DEPTH }}u;

{% macro operand(x, binding, type, along_k) %}
@group(0) @binding({{ binding }}) var<storage, read> {{ x }}: array<{% if not VECTORS %}u32{% elif type and UNIT == 4 %}vec2<u32>{% else %}vec4<u32>{% endif %}>;

// The position of an element in the binding, in units of what is bound.
fn {{ x }}_start(row: u32, k: u32) -> u32 {
    {%- set unit = UNIT if VECTORS else 1 %}
    let stride = p.{{ x }}_stride / {{ unit }}u;
    let start = {% if along_k %}row * stride + k / {{ unit }}u{% else %}k * stride + row / {{ unit }}u{% endif %};
    return start{% if x == "a" %} + p.a_column / {{ unit }}u{% endif %};
}

{% if VECTORS -%}
// A vector of elements, of which none or all count.
fn {{ x }}_load(i: u32, count: u32) -> vec4<u32> {
    if (count == 0u) {
        return vec4<u32>();
    }
    return {% if type and UNIT == 4 %}vec4<u32>({{ x }}[i], 0u, 0u){% else %}{{ x }}[i]{% endif %};
}
{%- else -%}
// The first elements of four from index i on, in f32.
fn {{ x }}_load(i: u32, count: u32) -> vec4<u32> {
    var bits = vec4<u32>();
    for (var e = 0u; e < count; e++) {
        bits[e] = bitcast<u32>(decode({{ type }}u, {{ x }}[word_of({{ type }}u, i + e)], i + e));
    }
    return bits;
}
{%- endif %}
{% endmacro %}
{{ operand("a", 1, TYPE_A, not TN) }}
{{ operand("b", 2, TYPE_B, NT) }}

// How many elements of a vector at `at` lie before `end`.
fn count_of(at: u32, end: u32) -> u32 {
    return min(end - min(at, end), {{ UNIT }}u);
}

{#- The loads of a thread in round r for the k tile at k0. Unchecked loads stand in no branch of their own:
NVIDIA's compiler seems to wait for loads where control flow merges. #}
{% macro load(x, along_k, first, rows, r) %}
    {%- for g in range(VECTORS_EACH) %}
        {%- set at = "at" ~ r ~ (" + o" ~ r ~ "_" ~ g if CLAMPED else " + " ~ g ~ "u * step" ~ r) %}
        {%- if UNCHECKED %}
        g{{ r }}_{{ g }} = {{ x }}_load({{ at }}, {{ UNIT }}u);
        {%- elif along_k %}
        g{{ r }}_{{ g }} = {{ x }}_load({{ at }}, select(0u, count_of(k0 + t_k{{ r }}, k_end), {{ first }} + t_row{{ r }} + {{ g * ROW_STEP }}u < p.{{ rows }}));
        {%- else %}
        g{{ r }}_{{ g }} = {{ x }}_load({{ at }}, select(0u, count_of({{ first }} + t_row{{ r }}, p.{{ rows }}), k0 + t_k{{ r }} + {{ g * K_STEP }}u < k_end));
        {%- endif %}
    {%- endfor %}
{% endmacro %}
{% macro load_a(r) %}{{ load("a", not TN, "m0", "m", r) }}{% endmacro %}
{% macro load_b(r) %}{{ load("b", NT, "n0", "n", r) }}{% endmacro %}
{% macro load_all() %}
    {%- if ROUNDS == 1 %}
        if (loads_a) {
            {{- load_a(0) }}
        } else if (loads_b) {
            {{- load_b(0) }}
        }
    {%- else %}
        {%- for r in range(ROUNDS) %}
            {{- load_a(r) if r < ROUNDS // 2 else load_b(r) }}
        {%- endfor %}
    {%- endif %}
{% endmacro %}
{#- Clamped: past the end, the last row is loaded again; the sums that it gives are not written. #}
{% macro begin(x, along_k, first, rows, r) %}
        t_row{{ r }} = {{ "row_along_k" if along_k else "row_along_rows" }}(t{{ r }});
        t_k{{ r }} = {{ "k_along_k" if along_k else "k_along_rows" }}(t{{ r }});
        advance{{ r }} = {{ x }}_start(0u, DEPTH) - {{ x }}_start(0u, 0u);
    {%- if CLAMPED %}
        at{{ r }} = {{ x }}_start(0u, k0);
        {%- for g in range(VECTORS_EACH) %}
            {%- if along_k %}
        o{{ r }}_{{ g }} = {{ x }}_start(min({{ first }} + t_row{{ r }} + {{ g * ROW_STEP }}u, p.{{ rows }} - 1u), t_k{{ r }}) - {{ x }}_start(0u, 0u);
            {%- else %}
        o{{ r }}_{{ g }} = {{ x }}_start(min({{ first }} + t_row{{ r }}, p.{{ rows }} - {{ UNIT }}u), t_k{{ r }} + {{ g * K_STEP }}u) - {{ x }}_start(0u, 0u);
            {%- endif %}
        {%- endfor %}
    {%- else %}
        at{{ r }} = {{ x }}_start({{ first }} + t_row{{ r }}, k0 + t_k{{ r }});
        step{{ r }} = {{ x }}_start({{ ROW_STEP if along_k else 0 }}u, {{ 0 if along_k else K_STEP }}u) - {{ x }}_start(0u, 0u);
    {%- endif %}
{% endmacro %}
{% macro begin_a(r) %}{{ begin("a", not TN, "m0", "m", r) }}{% endmacro %}
{% macro begin_b(r) %}{{ begin("b", NT, "n0", "n", r) }}{% endmacro %}
{#- What a thread knows before its first load: its piece of k, its tile, what it loads. #}
{% macro begin_all() %}
    // Tiles in bands of 8, so that tiles made at the same time share rows of a and b in the cache.
    let tiles_m = (p.m + TILE - 1u) / TILE;
    let tiles_n = (p.n + TILE - 1u) / TILE;
    // Not by a function: the WGSL front end assumes that what a function returns differs between threads.
    let number = group.y * groups.x + group.x;
    let piece = number / (tiles_m * tiles_n);
    if (piece >= p.pieces) {
        return;
    }
    let in_piece = number % (tiles_m * tiles_n);
    let band = in_piece / (8u * tiles_n);
    let height = min(8u, tiles_m - 8u * band);
    let m0 = (8u * band + in_piece % (8u * tiles_n) % height) * TILE;
    let n0 = (in_piece % (8u * tiles_n) / height) * TILE;
    var k0 = piece * p.piece;
    let k_end = min(p.k, k0 + p.piece);
    {%- for r in range(ROUNDS) %}
    let t{{ r }} = {{ "lane" if ROUNDS == 1 else "(lane + " ~ r * LANES ~ "u)" }} % {{ GROUPS }}u;
    var t_row{{ r }} = 0u;
    var t_k{{ r }} = 0u;
    var at{{ r }} = 0u;
    var advance{{ r }} = 0u;
        {%- if not CLAMPED %}
    var step{{ r }} = 0u;
        {%- endif %}
        {%- for g in range(VECTORS_EACH) %}
            {%- if CLAMPED %}
    var o{{ r }}_{{ g }} = 0u;
            {%- endif %}
    var g{{ r }}_{{ g }}: vec4<u32>;
        {%- endfor %}
    {%- endfor %}
    {%- if ROUNDS == 1 %}
    let loads_a = lane < {{ GROUPS }}u;
    let loads_b = lane >= {{ GROUPS }}u && lane < {{ 2 * GROUPS }}u;
    if (loads_a) {
        {{- begin_a(0) }}
    } else {
        {{- begin_b(0) }}
    }
    {%- else %}
        {%- for r in range(ROUNDS) %}
            {{- begin_a(r) if r < ROUNDS // 2 else begin_b(r) }}
        {%- endfor %}
    {%- endif %}
{% endmacro %}
{#- Goes on to the next tile of k. #}
{% macro advance_all() %}
        k0 += DEPTH;
        {%- for r in range(ROUNDS) %}
        at{{ r }} += advance{{ r }};
        {%- endfor %}
        if (k0 < k_end) {
            {{- load_all() }}
        }
{% endmacro %}
