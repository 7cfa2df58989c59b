// dw = sum over norms of dy * x * rate; 32 columns per workgroup. CHOSEN: 0 or 1, whether the columns are those at `index`.
struct Params {
    rows: u32,
    width: u32,
    accumulate: u32,
    // The norm of the first row bound, in `rate`.
    first: u32,
    // Elements of dw.
    sums: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> dy: array<u32>;
@group(0) @binding(3) var<storage, read_write> rate: array<f32>;
@group(0) @binding(4) var<storage, read_write> index: array<u32>;
@group(0) @binding(5) var<storage, read_write> dw: array<f32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let e = group.x * 32u + lane % 32u;
    var column = e;
    if (CHOSEN == 1u && e < p.sums) {
        column = index[e];
    }
    var sum = 0.0;
    if (e < p.sums && column < p.width) {
        for (var t = lane / 32u; t < p.rows; t += LANES / 32u) {
            let i = t * p.width + column;
            sum += decode(DY, dy[word_of(DY, i)], i) * decode(X, x[word_of(X, i)], i) * rate[p.first + t];
        }
    }
    reduction[lane] = sum;
    workgroupBarrier();
    if (lane < 32u && e < p.sums) {
        var total = select(0.0, dw[e], p.accumulate == 1u);
        for (var part = 0u; part < LANES / 32u; part++) {
            total += reduction[part * 32u + lane];
        }
        dw[e] = total;
    }
}
