//! Makes the embedded data set and the text that the embedded model is pre-trained on. `cli/assets/make.sh` calls it:
//!
//! ```text
//! cargo run --release -p sparta-cli --example default_data -- OUT
//! ```
//!
//! writes `OUT/data/{train,dev,test}.jsonl` (labelled sentences), `OUT/corpus.txt` (one unlabelled review per line) and
//! `OUT/model/{config,tokenizer,tokenizer_config}.json`. The output is the same every time, byte for byte.
//!
//! The splits share no sentence. A quarter of the words with sentiment and a quarter of the templates occur only in the
//! test split, of which a third has held-out words, a third held-out templates, and a third both. The unlabelled text
//! has all of them: each review keeps one opinion throughout, so that a language model learns which words go together.

mod grammar;
mod lexicon;
mod random;

use grammar::{Sentence, Share};
use random::Random;
use serde_json::json;
use std::collections::HashSet;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::utils::Lowercase;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

const TRAIN: usize = 2_000;
const DEV: usize = 500;
const TEST: usize = 999;
const REVIEWS: usize = 60_000;
const VOCABULARY: usize = 1_280;
const PAD: &str = "<pad>";
const BOS: &str = "<bos>";
const EOS: &str = "<eos>";

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let out = std::env::args_os().nth(1).ok_or("usage: default_data OUT")?;
    let out = Path::new(&out);
    fs::create_dir_all(out.join("data"))?;
    fs::create_dir_all(out.join("model"))?;

    let mut random = Random::new(2);
    let mut known = HashSet::new();
    let mut split = |name: &str, count: usize, shares: &[(Share, Share)]| {
        fs::write(out.join("data").join(name), labelled(&mut random, count, shares, &mut known))
    };
    split(
        "test.jsonl",
        TEST,
        &[(Share::HeldOut, Share::Seen), (Share::Seen, Share::HeldOut), (Share::HeldOut, Share::HeldOut)],
    )?;
    split("dev.jsonl", DEV, &[(Share::Seen, Share::Seen)])?;
    split("train.jsonl", TRAIN, &[(Share::Seen, Share::Seen)])?;

    let reviews: Vec<String> = (0..REVIEWS).map(|_| review(&mut random)).collect();
    fs::write(out.join("corpus.txt"), reviews.join("\n") + "\n")?;
    write_model(&out.join("model"), &reviews)
}

/// `count` sentences that are not in `known`, as JSONL, labels in turn.
fn labelled(random: &mut Random, count: usize, shares: &[(Share, Share)], known: &mut HashSet<String>) -> String {
    let mut lines = String::new();
    let mut made = 0;
    while made < count {
        let topic = grammar::topic(random);
        let (words, templates) = shares[made / 2 % shares.len()];
        let positive = made % 2 == 0;
        let sentence = Sentence { topic, thing: random.choose(topic.things), positive, words, templates };
        let text = sentence.text(random) + ending(random, 8);
        if known.insert(text.clone()) {
            writeln!(lines, "{}", json!({"text": text, "label": u8::from(positive)})).expect("a String takes any text");
            made += 1;
        }
    }
    lines
}

/// A full stop for most sentences; one in `bare` has no final mark.
fn ending(random: &mut Random, bare: usize) -> &'static str {
    match random.below(bare) {
        0 => "",
        1 => "!",
        _ => ".",
    }
}

/// Three to seven sentences on one thing, all of one polarity.
fn review(random: &mut Random) -> String {
    let topic = grammar::topic(random);
    let thing = random.choose(topic.things);
    let positive = random.below(2) == 0;
    let sentence = Sentence { topic, thing, positive, words: Share::All, templates: Share::All };
    let sentences: Vec<String> = (0..3 + random.below(5))
        .map(|_| sentence.text(random) + if random.below(8) == 0 { "!" } else { "." })
        .collect();
    sentences.join(" ")
}

/// A byte-level BPE trained on the text, and the configuration of a small Llama.
fn write_model(dir: &Path, reviews: &[String]) -> Result<(), Box<dyn Error + Send + Sync>> {
    let special = [PAD, BOS, EOS];
    let bytes = ByteLevel::new(true, true, true);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(Some(Lowercase))
        .with_pre_tokenizer(Some(bytes))
        .with_post_processor(Some(bytes))
        .with_decoder(Some(bytes))
        .build()?;
    let mut trainer = BpeTrainer::builder()
        .vocab_size(VOCABULARY)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special.map(|token| AddedToken::from(token, true)).to_vec())
        .build();
    tokenizer.train(&mut trainer, reviews.iter().map(String::as_str))?;
    let mut tokenizer = Tokenizer::from(tokenizer);
    let first =
        TemplateProcessing::builder().try_single(format!("{BOS} $A"))?.special_tokens(vec![(BOS, 1)]).build()?;
    tokenizer.with_post_processor(Some(first));
    tokenizer.save(dir.join("tokenizer.json"), false)?;

    let pretty = |value| serde_json::to_string_pretty(&value).map(|text| text + "\n");
    let settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD, "bos_token": BOS, "eos_token": EOS,
        "add_bos_token": true,
        "model_max_length": 256,
    });
    fs::write(dir.join("tokenizer_config.json"), pretty(settings)?)?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(true),
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "initializer_range": 0.02,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    });
    Ok(fs::write(dir.join("config.json"), pretty(config)?)?)
}
