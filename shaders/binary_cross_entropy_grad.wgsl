// sigmoid(x) - y
fn derivative(x: f32, y: f32) -> f32 {
    return 1.0 / (1.0 + exp(-clamp(x, -88.0, 88.0))) - y;
}
