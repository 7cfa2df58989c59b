//! Names of tensors: `blk.N.attn_q.weight` is `model.layers.N.self_attn.q_proj.weight`.

use super::architecture::Architecture;
use super::file::Entry;
use sparta_model::Arrangement;

/// Rows of a head of q and of k.
pub struct Heads {
    pub queries: u64,
    pub keys: u64,
}

const OUTSIDE: [(&str, &str); 5] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
    ("cls.output.weight", "score.weight"),
    ("cls.output.bias", "score.bias"),
];

const INSIDE: [(&str, &str); 14] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// The name of a tensor in the Hugging Face layout, and the arrangement of its values. An unknown tensor keeps its own
/// name, to be reported by the check against the architecture; `None` for rotations, which the configuration describes.
pub(super) fn of(
    architecture: &Architecture,
    name: &str,
    entry: &Entry,
    heads: &Heads,
) -> Option<(String, Arrangement)> {
    if is_rotation(name) {
        return None;
    }
    let canonical = canonical(architecture, name).unwrap_or_else(|| name.to_owned());
    let rows = entry.shape.first().copied().unwrap_or_default();
    let arrangement = arrangement(architecture, &canonical, rows, heads);
    Some((canonical, arrangement))
}

/// Whether a tensor holds frequency factors.
pub(super) fn is_rotation(name: &str) -> bool {
    matches!(name, "rope_freqs.weight" | "rope_factors_short.weight" | "rope_factors_long.weight")
}

fn arrangement(architecture: &Architecture, canonical: &str, rows: usize, heads: &Heads) -> Arrangement {
    let pairs = |heads: u64| match usize::try_from(heads) {
        Ok(heads) if heads > 0 && rows.is_multiple_of(2 * heads) => {
            Arrangement::RotatedPairs { head_rows: rows / heads }
        }
        _ => Arrangement::None,
    };
    match canonical.rsplit('.').nth(1) {
        Some("q_proj") if architecture.rotated_pairs => pairs(heads.queries),
        Some("k_proj") if architecture.rotated_pairs => pairs(heads.keys),
        Some(module) if architecture.norms_plus_one && module.ends_with("norm") => Arrangement::PlusOne,
        _ => Arrangement::None,
    }
}

/// The inverse: a tensor's name in a file of this architecture, and the arrangement of its values. `None`: it has no
/// such tensor.
pub fn to_gguf(architecture: &Architecture, name: &str, rows: usize, heads: &Heads) -> Option<(String, Arrangement)> {
    let found = match OUTSIDE.iter().find(|(_, known)| *known == name) {
        Some((own, _)) => (*own).to_owned(),
        None => {
            let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
            let (_, part) = rest.rsplit_once('.')?;
            let same = |own: &&str| {
                let known = canonical(architecture, &format!("blk.{layer}.{own}.{part}"));
                known.as_deref() == Some(name)
            };
            let own = INSIDE.iter().map(|(own, _)| *own).find(same)?;
            format!("blk.{layer}.{own}.{part}")
        }
    };
    Some((found, arrangement(architecture, name, rows, heads)))
}

fn canonical(architecture: &Architecture, name: &str) -> Option<String> {
    if let Some((_, known)) = OUTSIDE.iter().find(|(own, _)| *own == name) {
        return Some((*known).to_owned());
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (module, part) = rest.rsplit_once('.')?;
    let four_norms = matches!(architecture.name, "gemma2" | "gemma3");
    let known = match module {
        // With norms after attention and MLP, those before have different names.
        "ffn_norm" if four_norms => "pre_feedforward_layernorm",
        "post_attention_norm" | "post_ffw_norm" if !four_norms => return None,
        "ffn_up" if architecture.name == "phi3" => "mlp.gate_up_proj",
        _ => INSIDE.iter().find(|(own, _)| *own == module)?.1,
    };
    Some(format!("model.layers.{layer}.{known}.{part}"))
}
