use super::*;
use sparta_plugin::graph::{DType, Graph};
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

/// A projection that shares its layer with others stands for that layer; both have salts of their own.
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

/// A graph without the host's dropout and merge rules.
struct Builder {
    graph: Graph,
    rng: Value,
}

impl GraphBuilder for Builder {
    fn apply(&mut self, op: sparta_plugin::graph::Op, inputs: &[Value]) -> Result<Vec<Value>, Error> {
        self.graph.apply(op, inputs).map_err(|e| Error(e.to_string()))
    }

    fn shape(&self, value: Value) -> Result<Vec<usize>, Error> {
        self.graph.shape(value).map(<[usize]>::to_vec).map_err(|e| Error(e.to_string()))
    }

    fn rng(&mut self) -> Result<Value, Error> {
        Ok(self.rng)
    }
}

/// Ops and output shapes of forward and merge of TINY's first q projection.
fn build(dropout: f64, training: bool) -> (Vec<&'static str>, Vec<usize>, Vec<usize>) {
    let mut graph = Graph::new();
    let x = graph.external("x", DType::F32, [5, 8]);
    let w = graph.external("w", DType::BF16, [12, 8]);
    let w_f32 = graph.external("w_f32", DType::F32, [12, 8]);
    let extra = [graph.external("lora_A", DType::F32, [8, 8]), graph.external("lora_B", DType::F32, [12, 8])];
    let rng = graph.external("rng", DType::U32, [4]);
    let site = Site { parameter: model(TINY).remove(1), options: options("q", dropout), training };
    let mut builder = Builder { graph, rng };
    let y = Lora.forward(&site, &mut builder, x, w, &extra).unwrap();
    let names = builder.graph.nodes().iter().map(|node| node.op.name()).collect();
    let merged = Lora.merge(&site, &mut builder, w_f32, &extra).unwrap();
    (names, builder.shape(y).unwrap(), builder.shape(merged).unwrap())
}

#[test]
fn forward_and_merge_have_the_layer_s_shapes() {
    let (ops, y, merged) = build(0.0, true);
    assert_eq!((y, merged), (vec![5, 12], vec![12, 8]));
    assert_eq!(ops, ["linear"; 3]);
}

#[test]
fn dropout_only_while_training() {
    assert_eq!(build(0.1, true).0, ["linear", "dropout", "linear", "linear"]);
    assert_eq!(build(0.1, false).0, ["linear"; 3]);
}

#[test]
fn salts_differ() {
    let salts: HashSet<u32> = model(MISTRAL_7B).iter().filter(|p| p.role.is_projection()).map(salt).collect();
    assert_eq!(salts.len(), 7 * 32);
}
