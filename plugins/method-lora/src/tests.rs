use super::*;
use sparta_backend_cpu::Reference;
use sparta_plugin::graph::DType;
use sparta_plugin::testing;
use std::collections::HashSet;

/// The linear layers of a decoder, one embedding, one head.
struct Shape {
    layers: usize,
    hidden: usize,
    queries: usize,
    keys: usize,
    mlp: usize,
}

const GEMMA_2B: Shape = Shape { layers: 18, hidden: 2048, queries: 2048, keys: 256, mlp: 16384 };
const MISTRAL_7B: Shape = Shape { layers: 32, hidden: 4096, queries: 4096, keys: 1024, mlp: 14336 };
const TINY: Shape = Shape { layers: 2, hidden: 8, queries: 12, keys: 4, mlp: 16 };

fn model(shape: Shape) -> Vec<Parameter> {
    let Shape { layers, hidden, queries, keys, mlp } = shape;
    let parameter = |name: String, shape, role, layer| Parameter { name, shape, dtype: DType::BF16, role, layer };
    let mut parameters = vec![parameter("model.embed_tokens.weight".into(), vec![99, hidden], Role::Embedding, None)];
    for layer in 0..layers {
        for (target, role) in TARGETS {
            let (out, input) = match target {
                "q" => (queries, hidden),
                "k" | "v" => (keys, hidden),
                "o" => (hidden, queries),
                "down" => (hidden, mlp),
                _ => (mlp, hidden),
            };
            parameters.push(parameter(
                format!("model.layers.{layer}.{target}_proj.weight"),
                vec![out, input],
                role,
                Some(layer),
            ));
        }
    }
    parameters.push(parameter("score.weight".into(), vec![2, hidden], Role::Head, None));
    parameters
}

fn options(targets: &str, dropout: f64) -> Options {
    let option = |name: &str, value: serde_json::Value| (name.to_owned(), value);
    Options::from([
        option("lora-r", 8.into()),
        option("lora-alpha", 16.0.into()),
        option("lora-dropout", dropout.into()),
        option("lora-targets", targets.into()),
        option("lora-plus-ratio", 16.0.into()),
        option("lora-rs", false.into()),
    ])
}

fn added(shape: Shape, targets: &str) -> usize {
    let selections = Lora.select(&model(shape), &options(targets, 0.0)).unwrap();
    let tensors = selections.iter().filter_map(|selection| match selection {
        Selection::Reparam { tensors } => Some(tensors),
        _ => None,
    });
    tensors.flatten().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
}

/// The paper's counts: 0.037 % and 0.048 % of the models.
#[test]
fn trainable_counts_of_the_paper() {
    assert_eq!(added(GEMMA_2B, "q,v"), 921_600);
    assert_eq!(added(MISTRAL_7B, "q,v"), 3_407_872);
}

#[test]
fn targets() {
    assert_eq!(added(TINY, "q"), 2 * 8 * (8 + 12));
    assert_eq!(added(TINY, " q , down"), 2 * 8 * (8 + 12 + 16 + 8));
    assert_eq!(added(TINY, "all-linear"), added(TINY, "q,k,v,o,gate,up,down"));
    for bad in ["x", "q,", "", "q_proj", "all-linear,q"] {
        let message = Lora.select(&model(TINY), &options(bad, 0.0)).unwrap_err().0;
        assert!(message.contains("unknown target") && message.contains("gate"), "{message}");
    }
    let no_layers = model(Shape { layers: 0, ..TINY });
    assert!(Lora.select(&no_layers, &options("q", 0.0)).unwrap_err().0.contains("match no linear layer"));
}

/// A projection that shares its layer with others stands for that layer; fused layers have different salts.
#[test]
fn layers_of_several_projections() {
    let mut parameters = model(TINY);
    parameters.retain(|p| !matches!(p.role, Role::KProj | Role::VProj | Role::UpProj));
    for p in &mut parameters {
        p.role = match p.role {
            Role::QProj => Role::QkvProj,
            Role::GateProj => Role::GateUpProj,
            other => other,
        };
    }
    let chosen = |targets: &str| {
        let selections = Lora.select(&parameters, &options(targets, 0.0)).unwrap();
        let pairs = parameters.iter().zip(selections);
        let roles = pairs.filter(|(_, selection)| matches!(selection, Selection::Reparam { .. })).map(|(p, _)| p.role);
        roles.collect::<HashSet<_>>()
    };
    assert_eq!(chosen("q,v"), HashSet::from([Role::QkvProj]));
    assert_eq!(chosen("up,o"), HashSet::from([Role::GateUpProj, Role::OProj]));
    assert_eq!(chosen("all-linear").len(), 4);
    let salts: HashSet<u32> = parameters.iter().filter(|p| p.role.is_projection()).map(salt).collect();
    assert_eq!(salts.len(), 4 * TINY.layers);
}

#[test]
fn selections_of_one_layer() {
    let selections = Lora.select(&model(TINY), &options("v", 0.0)).unwrap();
    assert_eq!(selections[0], Selection::Frozen);
    assert_eq!(selections[1], Selection::Frozen);
    assert_eq!(selections.last(), Some(&Selection::Dense));
    let bound = 1.0 / 8f64.sqrt();
    let a = ExtraTensor::new("lora_A", [8, 8], Init::Uniform { bound });
    let plus = Rates { lr_factor: 16.0, weight_decay: None };
    let b = ExtraTensor::new("lora_B", [4, 8], Init::Zeros).rated(plus);
    assert_eq!(selections[3], Selection::Reparam { tensors: vec![a, b] });
}

fn layer(options: &Options) -> testing::Layer<'_> {
    testing::layers(&Lora, options).unwrap().remove(0)
}

#[test]
fn layers_have_the_right_gradients_and_merge() {
    let mut backend = Reference::new(None).unwrap();
    for layer in testing::layers(&Lora, &options("all-linear", 0.1)).unwrap() {
        assert_eq!(layer.check_gradients(&mut backend).unwrap(), testing::Gradients::Agree);
        layer.check_merge(&mut backend).unwrap();
        assert_eq!(layer.change_at_start(&mut backend).unwrap(), 0.0);
    }
}

#[test]
fn dropout_only_while_training() {
    let (without, with) = (options("q", 0.0), options("q", 0.1));
    assert_eq!(layer(&without).operations(true).unwrap(), ["linear"; 3]);
    assert_eq!(layer(&with).operations(true).unwrap(), ["linear", "dropout", "linear", "linear"]);
    assert_eq!(layer(&with).operations(false).unwrap(), ["linear"; 3]);
}

#[test]
fn salts_differ() {
    let salts: HashSet<u32> = model(MISTRAL_7B).iter().filter(|p| p.role.is_projection()).map(salt).collect();
    assert_eq!(salts.len(), 7 * 32);
}
