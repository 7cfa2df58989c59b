//! Configurations of real and golden models, and everything that must be refused.

use serde_json::{Map, Value, json};
use sparta_graph::DType;
use sparta_graph::ops::Activation;
use sparta_io::decoder;
use sparta_io::weights::{Dtype, OutTensor, Weights, save};
use sparta_model::{Decoder, Family, HeadKind, Result, Rope, Scaling, check_weights};
use sparta_plugin::method::Parameter;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn parse(value: Value) -> Result<Decoder> {
    Decoder::parse(Path::new("config.json"), &object(value))
}

/// A small model of a family with the sizes that every file has, plus `more`.
fn small(family: &str, more: Value) -> Value {
    let mut map = object(json!({
        "model_type": family, "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
    }));
    map.extend(object(more));
    Value::Object(map)
}

/// The golden classifier of a family.
fn golden(family: Family) -> PathBuf {
    let name = family.model_type().trim_end_matches("_text");
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

#[test]
fn both_layouts_of_transformers_give_one_decoder() {
    for family in Family::ALL {
        let dir = golden(family);
        let read = |name: &str| {
            let map: Map<String, Value> = serde_json::from_slice(&fs::read(dir.join(name)).unwrap()).unwrap();
            // Version 4 writes no dtype here.
            Decoder { dtype: None, ..Decoder::parse(&dir.join(name), &map).unwrap() }
        };
        assert_eq!(read("config.json"), read("config.v4.json"), "{}", dir.display());
    }
}

#[test]
fn golden_checkpoints_have_exactly_our_tensors() {
    for family in Family::ALL {
        let dir = golden(family);
        let decoder = decoder::open(&dir).unwrap();
        let weights = Weights::open(&dir).unwrap();
        let parameters = check_weights(&decoder, &weights, HeadKind::Classification { classes: 3 }).unwrap();
        let ours: BTreeSet<&str> = parameters.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(ours, weights.names().collect(), "{}", dir.display());
        assert_eq!(decoder.family, family);
    }
}

#[test]
fn golden_values_are_parsed() {
    let open = |family: Family| decoder::open(&golden(family)).unwrap();
    let gemma = open(Family::Gemma);
    assert_eq!((gemma.vocab_size, gemma.hidden_size, gemma.intermediate_size), (300, 64, 128));
    assert_eq!((gemma.layers, gemma.heads, gemma.kv_heads, gemma.head_dim), (2, 4, 1, 32));
    assert_eq!((gemma.rms_norm_eps, gemma.embed_scale, gemma.norm_plus_one), (1e-6, Some(8.0), true));
    assert_eq!(gemma.labels, ["LABEL_0", "LABEL_1", "LABEL_2"]);
    assert_eq!(gemma.eos_token_ids, [1]);
    let gemma2 = open(Family::Gemma2);
    assert_eq!(gemma2.windows, [Some(8), None]);
    assert_eq!((gemma2.attn_softcap, gemma2.final_softcap), (Some(50.0), Some(30.0)));
    assert_eq!(gemma2.attention_scale, 24f64.powf(-0.5) as f32);
    let mistral = open(Family::Mistral);
    assert_eq!(mistral.windows, [Some(8), Some(8)]);
    assert_eq!((mistral.rms_norm_eps, mistral.ropes[0].theta, mistral.pad_token_id), (1e-5, 1e6, Some(2)));
    assert_eq!(open(Family::Llama).ropes[0].theta, 5e5);
    let (qwen2, qwen3) = (open(Family::Qwen2), open(Family::Qwen3));
    assert_eq!((qwen2.windows, qwen2.qkv_bias, qwen2.qk_norm), (vec![None, None], true, false));
    assert_eq!((qwen3.qkv_bias, qwen3.qk_norm, qwen3.head_dim), (false, true, 32));
    let gemma3 = open(Family::Gemma3);
    assert_eq!((gemma3.windows, gemma3.rotations), (vec![Some(8), None], vec![Some(1), Some(0)]));
    let [global, local] = &gemma3.ropes[..] else { panic!("two rotations") };
    assert_eq!((global.theta, &global.scaling), (1e6, &Scaling::Linear { factor: 8.0 }));
    assert_eq!((local.theta, &local.scaling), (1e4, &Scaling::None));
    assert_eq!(
        (gemma3.norm_plus_one, gemma3.qk_norm, gemma3.post_norms, gemma3.attn_softcap),
        (true, true, true, None)
    );
    assert_eq!(open(Family::SmolLm3).rotations, [Some(0), None]);
    let phi3 = open(Family::Phi3);
    assert_eq!((phi3.fused, phi3.windows, phi3.ropes[0].width), (true, vec![Some(8), Some(8)], 12));
    // The positions of pre-training, not the 64 that the long factors would reach.
    assert_eq!((phi3.max_position_embeddings, phi3.rms_norm_eps), (32, 1e-5));
}

#[test]
fn real_indexes_list_exactly_our_tensors() {
    for model in ["gemma-2b-it", "mistral-7b-instruct-v0.3"] {
        let Some(dir) = sparta_test_data::find(&format!("data/tokenizers/{model}")) else { return };
        let index: Value =
            serde_json::from_slice(&fs::read(dir.join("model.safetensors.index.json")).unwrap()).unwrap();
        let theirs: BTreeSet<&str> = index["weight_map"].as_object().unwrap().keys().map(String::as_str).collect();
        let decoder = decoder::open(&dir).unwrap();
        let parameters = decoder.parameters(HeadKind::CausalLm);
        assert_eq!(parameters.iter().map(|p| p.name.as_str()).collect::<BTreeSet<_>>(), theirs);
        let bytes = index["metadata"]["total_size"].as_u64().unwrap();
        assert_eq!(decoder.numel() * 2, bytes, "{model} is stored in bf16");
    }
}

/// The published parameter counts, from config.json alone.
#[test]
fn parameter_counts_are_the_published_ones() {
    #[rustfmt::skip]
    let models = [
        ("gemma", [256_000, 2048, 16_384, 18, 8, 1, 256], true, 2_506_172_416),
        ("gemma2", [256_000, 2304, 9216, 26, 8, 4, 256], true, 2_614_341_888),
        ("mistral", [32_768, 4096, 14_336, 32, 32, 8, 128], false, 7_248_023_552),
        ("llama", [32_000, 2048, 5632, 22, 32, 4, 64], false, 1_100_048_384),
        ("llama", [128_256, 2048, 8192, 16, 32, 8, 64], true, 1_235_814_400),
        ("qwen2", [151_936, 896, 4864, 24, 14, 2, 64], true, 494_032_768),
        ("qwen3", [151_936, 1024, 3072, 28, 16, 8, 128], true, 596_049_920),
        ("gemma3_text", [262_144, 1152, 6912, 26, 4, 1, 256], true, 999_885_952),
        ("smollm3", [128_256, 2048, 11_008, 36, 16, 4, 128], true, 3_075_098_624),
        ("phi3", [32_064, 3072, 8192, 32, 32, 32, 96], false, 3_821_079_552),
        ("phi3", [200_064, 3072, 8192, 32, 24, 8, 128], true, 3_836_021_760),
    ];
    for (family, [vocab, hidden, inner, layers, heads, kv_heads, head_dim], tied, count) in models {
        let config = json!({
            "model_type": family, "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "head_dim": head_dim, "tie_word_embeddings": tied,
        });
        assert_eq!(parse(config).unwrap().numel(), count, "{family}");
    }
}

#[test]
fn missing_keys_have_the_family_default() {
    let bare = |family: &str| {
        let mut map = object(small(family, json!({})));
        map.remove("head_dim");
        map.remove("num_key_value_heads");
        map["num_attention_heads"] = 4.into();
        map
    };
    let open = |map: Map<String, Value>| Decoder::parse(Path::new("config.json"), &map);
    let mut gemma = bare("gemma");
    gemma["num_attention_heads"] = 16.into();
    let gemma = open(gemma).unwrap();
    assert_eq!((gemma.head_dim, gemma.kv_heads, gemma.tied_embeddings), (256, 16, true));
    assert_eq!((gemma.activation, gemma.pad_token_id), (Activation::GeluTanh, Some(0)));
    let rope = Rope { width: 256, theta: 1e4, scaling: Scaling::None };
    assert_eq!((gemma.ropes, gemma.rms_norm_eps), (vec![rope], 1e-6));
    let gemma2 = open(bare("gemma2")).unwrap();
    assert_eq!((gemma2.head_dim, gemma2.kv_heads, gemma2.attention_scale), (256, 4, 0.0625));
    assert_eq!(gemma2.windows, [Some(4096), None, Some(4096)]);
    let llama = open(bare("llama")).unwrap();
    assert_eq!((llama.head_dim, llama.kv_heads, llama.tied_embeddings), (2, 4, false));
    assert_eq!((llama.activation, llama.pad_token_id), (Activation::Silu, None));
    assert_eq!((llama.bos_token_id, llama.eos_token_ids), (Some(1), vec![2]));
    assert_eq!(llama.labels, ["LABEL_0", "LABEL_1"]);
    // Mistral without the key slides; with null it does not.
    let mistral = parse(small("mistral", json!({}))).unwrap();
    assert_eq!(mistral.windows, [Some(4096); 3]);
    assert_eq!(parse(small("mistral", json!({"sliding_window": null}))).unwrap().windows, [None; 3]);
    let mut qwen3 = bare("qwen3");
    qwen3["num_attention_heads"] = 32.into();
    assert_eq!(open(qwen3).unwrap().head_dim, 128);
    let heads = json!({"num_key_value_heads": null});
    assert_eq!(parse(small("qwen2", heads)).unwrap().kv_heads, 4);
}

#[test]
fn the_first_gemma_files_mean_tanh() {
    let gate = |more| parse(small("gemma", more)).map(|d| d.activation);
    assert_eq!(gate(json!({"hidden_act": "gelu"})).unwrap(), Activation::GeluTanh);
    assert_eq!(gate(json!({"hidden_act": "gelu", "hidden_activation": null})).unwrap(), Activation::GeluTanh);
    assert!(gate(json!({"hidden_act": "gelu", "hidden_activation": "silu"})).is_err());
    // Gemma 2 reads the other key only.
    let gemma2 = json!({"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"});
    assert_eq!(parse(small("gemma2", gemma2)).unwrap().activation, Activation::GeluTanh);
}

#[test]
fn qwen_windows_need_the_switch() {
    let windows = |more| parse(small("qwen2", more)).unwrap().windows;
    assert_eq!(windows(json!({"sliding_window": 5, "max_window_layers": 1})), [None; 3]);
    let on = json!({"use_sliding_window": true, "sliding_window": 5, "max_window_layers": 1});
    assert_eq!(windows(on), [None, Some(5), Some(5)]);
    let types = json!({"use_sliding_window": true, "sliding_window": 5,
                       "layer_types": ["sliding_attention", "full_attention", "full_attention"]});
    assert_eq!(windows(types), [Some(5), None, None]);
}

#[test]
fn rope_is_read_in_every_layout() {
    let rope = |more| parse(small("llama", more)).unwrap().ropes.remove(0);
    let linear = Rope { width: 6, theta: 5e5, scaling: Scaling::Linear { factor: 2.0 } };
    let inner = |kind: &str| json!({kind: "linear", "factor": 2.0, "rope_theta": 500000});
    assert_eq!(rope(json!({"rope_parameters": inner("rope_type")})), linear);
    assert_eq!(rope(json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}})), linear);
    assert_eq!(rope(json!({"rope_theta": 7.0, "rope_scaling": inner("type")})), linear);
    assert_eq!(rope(json!({"rope_theta": 7.0, "rope_scaling": null})).theta, 7.0);
    let llama3 = json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 32.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}});
    let scaling = Scaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(rope(llama3), Rope { width: 6, theta: 5e5, scaling });
}

#[test]
fn harmless_keys_are_accepted() {
    parse(small("llama", json!({"pretraining_tp": 4, "use_cache": true, "pad_token_id": -1, "attention_dropout": 0})))
        .unwrap();
    parse(small("llama", json!({"partial_rotary_factor": 1, "architectures": ["LlamaModel"]}))).unwrap();
    // transformers reads neither key in these families.
    parse(small("mistral", json!({"attention_bias": true}))).unwrap();
    parse(small("qwen2", json!({"attention_bias": false, "eos_token_id": [1, 2]}))).unwrap();
    let labels = parse(small("llama", json!({"id2label": {"1": "b", "0": "a"}}))).unwrap().labels;
    assert_eq!(labels, ["a", "b"]);
}

/// Keys of a Phi-3 with these parameters of longrope.
fn longrope(more: Value) -> Value {
    let mut scaling = object(json!({"type": "longrope", "long_factor": [1, 2, 3]}));
    scaling.extend(object(more));
    json!({"pad_token_id": 0, "original_max_position_embeddings": 64, "max_position_embeddings": 128, "rope_scaling": scaling})
}

/// The factors of short texts and the factor of cosine and sine, as transformers 5.23 computes it.
#[test]
fn longrope_is_that_of_short_texts() {
    let phi3 = parse(small("phi3", longrope(json!({"short_factor": [1, 1.5, 2]})))).unwrap();
    assert_eq!(phi3.max_position_embeddings, 64);
    let rope = &phi3.ropes[0];
    let Scaling::Long { attention_factor, .. } = &rope.scaling else { panic!("{rope:?}") };
    assert_eq!(*attention_factor as f32, 1.0801234);
    assert_eq!(rope.inv_freq(), [1.0, 0.03094392, 0.0010772172]);
    let given = parse(small("phi3", longrope(json!({"short_factor": [1, 1.5, 2], "attention_factor": 1.25})))).unwrap();
    assert_eq!(given.ropes[0].table(1), [1.25, 1.25, 1.25, 0.0, 0.0, 0.0]);
}

/// As published: most of the text's sizes are the defaults of transformers.
#[test]
fn the_text_part_of_a_model_with_images_is_read() {
    let config = |more: Value| {
        let mut map = object(json!({
            "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "eos_token_id": [1, 106],
            "torch_dtype": "bfloat16", "vision_config": {"hidden_size": 1152}, "initializer_range": 0.02,
            "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
                "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
        }));
        map.extend(object(more));
        Value::Object(map)
    };
    let decoder = parse(config(json!({}))).unwrap();
    assert_eq!((decoder.family, decoder.reads_images), (Family::Gemma3, true));
    assert_eq!((decoder.heads, decoder.kv_heads, decoder.head_dim, decoder.vocab_size), (8, 4, 256, 262_208));
    // The published total also has the 416,866,032 parameters of the image encoder.
    assert_eq!(decoder.numel(), 3_880_263_168);
    assert_eq!((decoder.dtype, &decoder.eos_token_ids[..]), (Some(DType::BF16), &[1, 106][..]));
    assert_eq!(decoder.windows[4..7], [Some(1024), None, Some(1024)]);
    assert_eq!(decoder.rotations[4..7], [Some(1), Some(0), Some(1)]);
    assert_eq!(decoder.ropes[0].scaling, Scaling::Linear { factor: 8.0 });
    assert_eq!(parse(config(json!({"architectures": ["Gemma3ForSequenceClassification"]}))).unwrap(), decoder);
    let quantized = parse(config(json!({"quantization_config": {"bits": 4}}))).unwrap_err().to_string();
    assert!(quantized.contains("quantization_config"), "{quantized}");
}

/// Each line: family, keys, and what the message must say besides the file's name.
#[test]
fn what_is_not_supported_is_refused() {
    let cases = [
        (
            "gpt2",
            json!({}),
            vec!["`model_type`", "\"gpt2\"", "gemma, gemma2, gemma3_text, mistral, llama, smollm3, phi3, qwen2"],
        ),
        (
            "llama",
            json!({"architectures": ["LlamaForTokenClassification"]}),
            vec!["`architectures`", "LlamaForCausalLM"],
        ),
        ("llama", json!({"model_type": null}), vec!["no `model_type`"]),
        ("llama", json!({"hidden_size": null}), vec!["no `hidden_size`"]),
        ("llama", json!({"attention_bias": true}), vec!["`attention_bias` is true", "expected false"]),
        ("gemma", json!({"attention_bias": true}), vec!["`attention_bias`"]),
        ("qwen3", json!({"attention_bias": true}), vec!["`attention_bias`"]),
        ("llama", json!({"mlp_bias": true}), vec!["`mlp_bias`"]),
        ("gemma2", json!({"use_bidirectional_attention": true}), vec!["`use_bidirectional_attention`"]),
        ("qwen2", json!({"is_causal": false}), vec!["`is_causal`"]),
        ("llama", json!({"quantization_config": {"bits": 4}}), vec!["`quantization_config`", "unquantized"]),
        ("llama", json!({"problem_type": "ranking"}), vec!["`problem_type`", "regression"]),
        ("llama", json!({"attention_dropout": 0.1}), vec!["`attention_dropout` is 0.1"]),
        ("llama", json!({"hidden_act": "gelu"}), vec!["`hidden_act` is \"gelu\"", "gelu_pytorch_tanh"]),
        ("gemma2", json!({"hidden_activation": "gelu"}), vec!["`hidden_activation`"]),
        ("llama", json!({"partial_rotary_factor": 0.5}), vec!["`partial_rotary_factor` is 0.5"]),
        (
            "llama",
            json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
            vec!["`rope_parameters.partial_rotary_factor`"],
        ),
        (
            "llama",
            json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}),
            vec!["`rope_scaling.type` is \"yarn\"", "llama3"],
        ),
        (
            "qwen3",
            json!({"rope_parameters": {"rope_type": "dynamic"}}),
            vec!["`rope_parameters.rope_type` is \"dynamic\""],
        ),
        ("llama", json!({"rope_scaling": {"type": "linear"}}), vec!["`rope_scaling.factor` is nothing"]),
        ("llama", json!({"rope_scaling": "linear"}), vec!["`rope_scaling`", "an object"]),
        (
            "llama",
            json!({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_theta": 5.0}}),
            vec!["both"],
        ),
        ("llama", json!({"rope_parameters": {"full_attention": {}}}), vec!["`rope_parameters.full_attention`"]),
        (
            "llama",
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}}),
            vec!["`rope_scaling.high_freq_factor`", "more than"],
        ),
        ("llama", json!({"rope_theta": -1.0}), vec!["`rope_theta` is -1.0"]),
        ("llama", json!({"rope_theta": 1e300}), vec!["`rope_theta`", "finite"]),
        ("llama", json!({"rms_norm_eps": -1e-6}), vec!["`rms_norm_eps`"]),
        ("llama", json!({"rms_norm_eps": "small"}), vec!["`rms_norm_eps` is \"small\""]),
        ("llama", json!({"num_key_value_heads": 3}), vec!["`num_attention_heads` is 4", "multiple", "3"]),
        ("llama", json!({"head_dim": 5}), vec!["5 elements", "even"]),
        ("llama", json!({"head_dim": null, "hidden_size": 9}), vec!["`hidden_size` is 9", "multiple"]),
        ("llama", json!({"vocab_size": 0}), vec!["`vocab_size` is 0", "from 1 to"]),
        ("llama", json!({"hidden_size": 1u64 << 40}), vec!["`hidden_size` is 1099511627776"]),
        ("llama", json!({"num_hidden_layers": 1e9}), vec!["`num_hidden_layers`"]),
        ("llama", json!({"intermediate_size": 12.5}), vec!["`intermediate_size` is 12.5"]),
        ("llama", json!({"tie_word_embeddings": "yes"}), vec!["`tie_word_embeddings`", "true or false"]),
        ("llama", json!({"pad_token_id": 11}), vec!["`pad_token_id` is 11", "below `vocab_size`, 11"]),
        ("llama", json!({"id2label": {"0": "a", "2": "b"}}), vec!["`id2label`", "without gaps"]),
        ("llama", json!({"id2label": ["a", "b"]}), vec!["`id2label`"]),
        ("llama", json!({"torch_dtype": "int8"}), vec!["`torch_dtype` is \"int8\""]),
        (
            "llama",
            json!({"layer_types": ["sliding_attention", "full_attention", "full_attention"]}),
            vec!["`layer_types`"],
        ),
        ("gemma2", json!({"layer_types": ["full_attention"]}), vec!["`layer_types`", "3 entries"]),
        ("gemma2", json!({"layer_types": ["full_attention", "mamba", "full_attention"]}), vec!["`layer_types`"]),
        ("gemma2", json!({"sliding_window": null}), vec!["no sliding window"]),
        ("gemma2", json!({"query_pre_attn_scalar": 0}), vec!["`query_pre_attn_scalar` is 0"]),
        ("gemma2", json!({"attn_logit_softcapping": -50.0}), vec!["`attn_logit_softcapping`"]),
        ("mistral", json!({"sliding_window": 0}), vec!["`sliding_window` is 0"]),
        (
            "mistral",
            json!({"layer_types": ["sliding_attention", "full_attention", "full_attention"]}),
            vec!["`layer_types`"],
        ),
        ("qwen2", json!({"max_window_layers": -1, "use_sliding_window": true}), vec!["`max_window_layers`"]),
        ("mixtral", json!({"num_local_experts": 8}), vec!["`model_type` is \"mixtral\"", "mixture of experts"]),
        ("llama", json!({"num_experts": 8}), vec!["`num_experts` is 8", "mixtures of experts"]),
        ("phi3_v", json!({"img_processor": {}}), vec!["`model_type` is \"phi3_v\"", "reads images"]),
        ("gemma3", json!({}), vec!["no `text_config`"]),
        ("gemma3", json!({"text_config": {"model_type": "gemma2"}}), vec!["`text_config.model_type` is \"gemma2\""]),
        (
            "gemma3",
            json!({"text_config": {}, "architectures": ["Gemma3ForTokenClassification"]}),
            vec!["`architectures`", "Gemma3ForConditionalGeneration"],
        ),
        ("gemma3_text", json!({"attn_logit_softcapping": 50.0}), vec!["`attn_logit_softcapping` is 50.0"]),
        ("gemma3_text", json!({"sliding_window": null}), vec!["no sliding window"]),
        (
            "gemma3_text",
            json!({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}),
            vec!["`rope_parameters`", "sliding_attention"],
        ),
        (
            "gemma3_text",
            json!({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}),
            vec!["`rope_parameters.full_attention.rope_type` is \"yarn\""],
        ),
        (
            "smollm3",
            json!({"pad_token_id": 0, "no_rope_layers": [1, 0]}),
            vec!["`no_rope_layers` is [1,0]", "3 numbers"],
        ),
        ("smollm3", json!({"pad_token_id": 0, "no_rope_layers": [1, 0, 2]}), vec!["each 0 or 1"]),
        ("smollm3", json!({"pad_token_id": 0, "mlp_bias": true}), vec!["`mlp_bias`"]),
        ("phi3", json!({"pad_token_id": 0, "intermediate_size": 13}), vec!["`intermediate_size` is 13", "even"]),
        ("phi3", json!({"pad_token_id": 0, "resid_pdrop": 0.1}), vec!["`resid_pdrop` is 0.1"]),
        ("phi3", json!({"pad_token_id": 0, "lm_head_bias": true}), vec!["`lm_head_bias`"]),
        (
            "phi3",
            json!({"pad_token_id": 0, "partial_rotary_factor": 0.5}),
            vec!["`partial_rotary_factor` is 0.5", "6 elements"],
        ),
        ("phi3", longrope(json!({"short_factor": [1.0, 2.0]})), vec!["`rope_scaling.short_factor`", "3 numbers"]),
        ("phi3", longrope(json!({"short_factor": [1.0, 2.0, 0.0]})), vec!["`rope_scaling.short_factor`", "above 0"]),
        (
            "phi3",
            json!({"pad_token_id": 0, "rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1]}}),
            vec!["`original_max_position_embeddings` is nothing"],
        ),
    ];
    for (family, more, parts) in cases {
        let text = match parse(small(family, more.clone())) {
            Ok(_) => panic!("{family} {more} was accepted"),
            Err(error) => error.to_string(),
        };
        for part in ["config.json"].into_iter().chain(parts) {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }
}

#[test]
fn unreadable_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = decoder::open(dir.path()).unwrap_err().to_string();
    assert!(text.contains("config.json"), "{text}");
    for broken in ["{", "[]", "{\"rms_norm_eps\": NaN}"] {
        fs::write(dir.path().join("config.json"), broken).unwrap();
        let text = decoder::open(dir.path()).unwrap_err().to_string();
        assert!(text.contains("config.json") && text.contains("not a JSON object"), "{text}");
    }
}

/// Names and shapes.
type Tensors = Vec<(String, Vec<usize>)>;

/// Writes the tensors of `decoder` with zeros, changed by `edit`, and checks them.
fn check(decoder: &Decoder, head: HeadKind, edit: impl Fn(&mut Tensors)) -> Result<Vec<Parameter>> {
    let mut tensors: Tensors = decoder.parameters(head).into_iter().map(|p| (p.name, p.shape)).collect();
    edit(&mut tensors);
    let out: Vec<_> = tensors
        .into_iter()
        .map(|(name, shape)| {
            let bytes = vec![u8::from(name == "lm_head.weight"); shape.iter().product::<usize>() * 2].into();
            OutTensor { name, dtype: Dtype::BF16, shape, bytes }
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    save(&dir.path().join("model.safetensors"), &out, &BTreeMap::new()).unwrap();
    check_weights(decoder, &Weights::open(dir.path()).unwrap(), head)
}

#[test]
fn a_checkpoint_must_have_exactly_the_tensors() {
    let decoder = parse(small("qwen2", json!({}))).unwrap();
    let classes = HeadKind::Classification { classes: 2 };
    let extra = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| (name.to_string(), vec![1])).collect();
        move |t: &mut Tensors| t.extend(names.clone())
    };
    let message = |edit: &dyn Fn(&mut Tensors)| check(&decoder, classes, edit).unwrap_err().to_string();

    check(&decoder, classes, extra(&["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"])).unwrap();
    check(&decoder, HeadKind::CausalLm, extra(&["score.weight"])).unwrap();
    // A new head is in f32, whatever the body's dtype.
    let new_head = check(&decoder, classes, |t| t.retain(|(name, _)| name != "score.weight")).unwrap();
    let dtypes: Vec<_> = new_head.iter().rev().take(2).map(|p| (p.name.as_str(), p.dtype)).collect();
    assert_eq!(dtypes, [("score.weight", DType::F32), ("model.norm.weight", DType::BF16)]);
    // A bare backbone has no prefix.
    check(&decoder, classes, |t| t.iter_mut().for_each(|(name, _)| *name = name.replace("model.", ""))).unwrap();

    let text = message(&|t| t.retain(|(name, _)| !name.ends_with("bias")));
    assert!(
        text.contains("9 tensors missing: model.layers.0.self_attn.q_proj.bias") && text.contains(", ..."),
        "{text}"
    );
    let text = message(&extra(&["model.layers.3.input_layernorm.weight"]));
    assert!(text.contains("not part of this architecture: model.layers.3") && text.contains("3 layers"), "{text}");
    let text = message(&|t| t[1].1 = vec![7]);
    assert!(text.contains("model.layers.0.input_layernorm.weight is [7], expected [8]"), "{text}");
    let text = check(&decoder, HeadKind::CausalLm, |t| t.truncate(t.len() - 1)).unwrap_err().to_string();
    assert!(text.contains("missing: lm_head.weight"), "{text}");
}

#[test]
fn a_tied_head_has_no_values_of_its_own() {
    let decoder = parse(small("gemma", json!({}))).unwrap();
    let head = |t: &mut Tensors| t.push(("lm_head.weight".into(), vec![11, 8]));
    check(&decoder, HeadKind::Classification { classes: 2 }, head).unwrap();
    let text = check(&decoder, HeadKind::CausalLm, head).unwrap_err().to_string();
    assert!(text.contains("tie_word_embeddings"), "{text}");
}
