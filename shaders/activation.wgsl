// Comes before the gated activations. ACTIVATION: 0 SiLU, 1 GELU with tanh.

// The activation of x and its derivative.
fn activate(x: f32) -> vec2<f32> {
    if (ACTIVATION == 0u) {
        let s = 1.0 / (1.0 + exp(-x));
        return vec2<f32>(x * s, s * (1.0 + x * (1.0 - s)));
    }
    let c = 0.7978845608028654; // sqrt(2 / pi)
    let t = safe_tanh(c * (x + 0.044715 * x * x * x));
    let slope = 0.5 * x * (1.0 - t * t) * c * (1.0 + 0.134145 * x * x);
    return vec2<f32>(0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + slope);
}
