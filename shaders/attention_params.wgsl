// What all attention kernels share. SOFT_CAP and DROPOUT: 0 or 1.
struct Params {
    rows: u32,
    heads: u32,
    kv_heads: u32,
    // Key rows that a query row sees, itself included.
    window: u32,
    salt: u32,
    // A draw below drops; what stays is multiplied by `keep`.
    threshold: u32,
    keep: f32,
    scale: f32,
    cap: f32,
    // On matrix units: workgroups that share the query heads of one key head and one tile of keys. Where keys are kept: rows
    // of k and v.
    parts: u32,
    // In f32: vectors of a slice of the operands of scores that a thread multiplies.
    steps: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(9) var<uniform> rng: vec4<u32>;

// Below any score: a key that is not seen.
const UNSEEN: f32 = -3.0e38;

// The score of a product, scaled and capped.
fn score(product: f32) -> f32 {
    let s = p.scale * product;
    if (SOFT_CAP == 1u) {
        return p.cap * safe_tanh(s / p.cap);
    }
    return s;
}

// The derivative of the soft-cap where the score is s.
fn slope(s: f32) -> f32 {
    if (SOFT_CAP == 1u) {
        return 1.0 - (s / p.cap) * (s / p.cap);
    }
    return 1.0;
}

// Whether query row t sees key row j, given the first row of t's segment. Without short circuits: SwiftShader's cost of
// compiling a loop doubles with every branch in it.
fn sees(t: u32, j: u32, start: u32) -> bool {
    return (t < p.rows) & (j >= start) & (j <= t) & (t - j < p.window);
}

// What dropout multiplies a probability by.
fn kept(j: u32, t: u32, head: u32) -> f32 {
    if (DROPOUT == 0u) {
        return 1.0;
    }
    return select(p.keep, 0.0, philox(rng.xy, vec4<u32>(j, t, head, p.salt)).x < p.threshold);
}

// The first key row that query row t sees, given the first row of its segment. It never decreases from row to row.
fn first_seen(t: u32, start: u32) -> u32 {
    return max(start, select(0u, t + 1u - p.window, t >= p.window));
}

// The row after the last query row that sees key row j, given the end of its segment. It never decreases from row to
// row.
fn end_of_seeing(j: u32, end: u32) -> u32 {
    return min(end, select(p.rows, j + p.window, p.window < p.rows - j));
}
