fn derivative(x: f32, y: f32) -> f32 {
    return 2.0 * (x - y);
}
