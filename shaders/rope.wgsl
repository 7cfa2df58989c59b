// Rotation of the pairs (i, i + rotated / 2) of each head. `row` is the number of the first row bound.
struct Params {
    n: u32,
    row: u32,
    width: u32,
    head_dim: u32,
    rotated: u32,
    positions: u32,
    direction: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> spans: array<u32>;
@group(0) @binding(3) var<storage, read_write> table: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<u32>;

fn result(e: u32) -> f32 {
    let half = p.rotated / 2u;
    let t = e / p.width;
    let d = e % p.head_dim;
    let own = decode(X, x[word_of(X, e)], e);
    if (d >= p.rotated) {
        return own;
    }
    let second = d >= half;
    let partner = select(e + half, e - half, second);
    let position = min(p.row + t - spans[2u * t], p.positions - 1u);
    let at = position * p.rotated + select(d, d - half, second);
    let sine = p.direction * table[at + half];
    return own * table[at] + decode(X, x[word_of(X, partner)], partner) * select(-sine, sine, second);
}
