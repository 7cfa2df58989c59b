// o = softmax(score(q k^T)) v for rows of q with their own spans in k and v, with an online softmax over tiles of LANES
// keys; one workgroup per row and head. A thread owns one key of a tile, and two neighbouring elements of the result:
// LANES is half of the largest HEAD_DIM. X is the type of q, k and v, Y that of o, of 16 bits only if HEAD_DIM is even.
@group(0) @binding(1) var<storage, read_write> q: array<u32>;
@group(0) @binding(2) var<storage, read_write> k: array<u32>;
@group(0) @binding(3) var<storage, read_write> v: array<u32>;
@group(0) @binding(4) var<storage, read_write> spans: array<u32>;
@group(0) @binding(5) var<storage, read_write> o: array<u32>;

var<workgroup> queries: array<f32, HEAD_DIM>;
var<workgroup> weights: array<f32, LANES>;
var<workgroup> span: vec2<u32>;

fn v_at(i: u32) -> f32 {
    return decode(X, v[word_of(X, i)], i);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = linear_id(group, groups);
    let head = id % p.heads;
    let row = id / p.heads;
    if (row >= p.rows) {
        return;
    }
    let base = id * HEAD_DIM;
    for (var d = lane; d < HEAD_DIM; d += LANES) {
        queries[d] = decode(X, q[word_of(X, base + d)], base + d);
    }
    if (lane == 0u) {
        let end = min(spans[2u * row + 1u], p.parts);
        span = vec2<u32>(max(spans[2u * row], end - min(end, p.window)), end);
    }
    let keys = workgroupUniformLoad(&span);
    let width = p.kv_heads * HEAD_DIM;
    let column = head / (p.heads / p.kv_heads) * HEAD_DIM;
    let d = 2u * lane;
    var largest = UNSEEN;
    var sum = 0.0;
    var pair = vec2<f32>(0.0);
    for (var k0 = keys.x; k0 < keys.y; k0 += LANES) {
        let j = k0 + lane;
        var s = UNSEEN;
        if (j < keys.y) {
            var product = 0.0;
            for (var e = 0u; e < HEAD_DIM; e++) {
                let i = j * width + column + e;
                product += queries[e] * decode(X, k[word_of(X, i)], i);
            }
            s = score(product);
        }
        let before = largest;
        largest = max(before, max_lanes(lane, s));
        var weight = 0.0;
        if (j < keys.y) {
            weight = exp(s - largest);
        }
        weights[lane] = weight;
        let factor = select(exp(before - largest), 0.0, before <= UNSEEN);
        sum = sum * factor + sum_lanes(lane, weight);
        pair *= factor;
        if (d < HEAD_DIM) {
            let seen = min(LANES, keys.y - k0);
            for (var i = 0u; i < seen; i++) {
                let at = (k0 + i) * width + column + d;
                pair += weights[i] * vec2<f32>(v_at(at), v_at(at + min(1u, HEAD_DIM - 1u - d)));
            }
        }
        workgroupBarrier();
    }
    if (d >= HEAD_DIM) {
        return;
    }
    pair *= select(1.0 / sum, 0.0, sum == 0.0);
    if (Y != F32) {
        o[(base + d) >> 1u] = pack(Y, pair);
        return;
    }
    o[base + d] = bitcast<u32>(pair.x);
    if (d + 1u < HEAD_DIM) {
        o[base + d + 1u] = bitcast<u32>(pair.y);
    }
}
