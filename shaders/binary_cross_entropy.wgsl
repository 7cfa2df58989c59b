// ln(1 + e^x) - y x, which never overflows.
fn term(x: f32, y: f32) -> f32 {
    return max(x, 0.0) - y * x + log(1.0 + exp(-abs(x)));
}
