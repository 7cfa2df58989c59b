fn result(e: u32) -> f32 {
    return first(e) / second(e);
}
