use super::*;
use sparta_plugin::graph::DType;

/// Two layers; 1,000 embedding values of 2,048 in the body.
fn model() -> Vec<Parameter> {
    let mut parameters = Vec::new();
    let mut add = |name: &str, shape: &[usize], role, layer| {
        parameters.push(Parameter { name: name.into(), shape: shape.into(), dtype: DType::BF16, role, layer });
    };
    add("model.embed_tokens.weight", &[100, 10], Role::Embedding, None);
    for layer in 0..2 {
        let projections = [
            ("self_attn.q_proj", Role::QProj),
            ("self_attn.k_proj", Role::KProj),
            ("self_attn.v_proj", Role::VProj),
            ("self_attn.o_proj", Role::OProj),
            ("mlp.gate_proj", Role::GateProj),
        ];
        for (name, role) in projections {
            add(&format!("model.layers.{layer}.{name}.weight"), &[10, 10], role, Some(layer));
        }
        add(&format!("model.layers.{layer}.self_attn.v_proj.bias"), &[10], Role::Bias, Some(layer));
        add(&format!("model.layers.{layer}.input_layernorm.weight"), &[10], Role::Norm, Some(layer));
    }
    add("model.norm.weight", &[8], Role::Norm, None);
    add("lm_head.weight", &[100, 10], Role::LmHead, None);
    add("score.weight", &[2, 10], Role::Head, None);
    parameters
}

fn select(density: f64, targets: &str) -> Result<Vec<Selection>, Error> {
    let options = Options::from([("density".into(), density.into()), ("targets".into(), targets.into())]);
    Sparta.select(&model(), &options)
}

/// The expected number of chosen scalars of the body, and the names of the targets.
fn expected(density: f64, targets: &str) -> (f64, Vec<String>) {
    let (mut scalars, mut names) = (0.0, Vec::new());
    for (parameter, selection) in model().iter().zip(select(density, targets).unwrap()) {
        if let Selection::Sparse { probability } = selection {
            scalars += probability * parameter.numel() as f64;
            names.push(parameter.name.clone());
        }
    }
    (scalars, names)
}

#[test]
fn the_density_is_of_the_whole_body() {
    for targets in ["all", "attn", "vo", "mlp", "layernorm|norm"] {
        let density = 0.01;
        assert!((expected(density, targets).0 - density * 2048.0).abs() < 1e-9, "{targets}");
    }
}

#[test]
fn heads_are_dense_or_replaced_and_embeddings_frozen() {
    for targets in ["all", "."] {
        let selections = select(0.05, targets).unwrap();
        assert_eq!(selections[0], Selection::Frozen);
        assert_eq!(selections[selections.len() - 2..], [Selection::Frozen, Selection::Dense]);
        assert_eq!(expected(0.05, targets).1.len(), 15);
    }
}

#[test]
fn named_targets() {
    let names = |targets| expected(0.01, targets).1;
    assert_eq!(names("attn").len(), 10);
    assert!(names("vo").iter().all(|name| name.contains(".v_proj.") || name.contains(".o_proj.")));
    assert_eq!(names("vo").len(), 6);
    assert!(names("mlp").iter().all(|name| name.contains("gate_proj")));
    assert_eq!(names(r"layers\.1\..*q_proj"), ["model.layers.1.self_attn.q_proj.weight"]);
}

/// Values cannot be selected alone in a tensor that also has queries and keys.
#[test]
fn one_tensor_for_q_k_and_v() {
    let mut parameters = model();
    parameters.retain(|p| !matches!(p.role, Role::KProj | Role::VProj | Role::Bias));
    parameters.iter_mut().filter(|p| p.role == Role::QProj).for_each(|p| p.role = Role::QkvProj);
    let select = |targets: &str| {
        let options = Options::from([("density".into(), 0.01.into()), ("targets".into(), targets.into())]);
        Sparta.select(&parameters, &options)
    };
    let sparse = select("attn").unwrap().iter().filter(|s| matches!(s, Selection::Sparse { .. })).count();
    assert_eq!(sparse, 4);
    assert!(select("vo").unwrap_err().0.contains("q, k and v in one tensor"));
}

#[test]
fn too_large_a_density_names_the_largest() {
    // v and o with biases: 420 of 2,048.
    let message = select(0.5, "vo").unwrap_err().0;
    assert!(message.contains("420 of the model's 2048") && message.contains("at most 0.205078"), "{message}");
    select(0.205078, "vo").unwrap();
    select(420.0 / 2048.0, "vo").unwrap();
    assert_eq!(expected(1048.0 / 2048.0, "all").0, 1048.0);
}

#[test]
fn bad_densities_are_refused() {
    for density in [0.0, -0.5, 1.5] {
        assert!(select(density, "all").unwrap_err().0.contains("(0, 1]"));
    }
    // JSON has no NaN: it arrives as null.
    assert!(select(f64::NAN, "all").unwrap_err().0.contains("expected a number"));
    assert!(probability(f64::NAN, 10, 5, "all").unwrap_err().0.contains("(0, 1]"));
}

#[test]
fn targets_that_match_nothing_show_names() {
    let message = select(0.05, "decoder").unwrap_err().0;
    assert!(message.contains("`decoder`") && message.contains("model.layers.0.self_attn.q_proj.weight"), "{message}");
    assert!(select(0.05, "embed_tokens").unwrap_err().0.contains("match no tensor"));
    assert!(select(0.05, "v_proj(").unwrap_err().0.contains("regular expression"));
}
