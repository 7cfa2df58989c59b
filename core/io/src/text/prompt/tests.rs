use super::*;
use serde_json::json;
use sparta_plugin::task;
use tempfile::TempDir;

const NONE: Padding = Padding::Is(None);

fn info(pair: bool, prompt: Option<&str>) -> TaskInfo {
    TaskInfo {
        id: "t".into(),
        title: "T".into(),
        labels: vec!["negative".into(), "positive".into()],
        target: None,
        weights: vec![],
        metrics: vec!["accuracy".into()],
        primary: "accuracy".into(),
        pair,
        prompt: prompt
            .map(|template| task::Prompt { template: template.into(), verbalizers: vec!["No".into(), "Yes".into()] }),
    }
}

/// Words and signs are tokens; `<s>` is put before each text.
fn directory(chat: Option<&str>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [{"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": {
            "<unk>": 0, "<s>": 1, "Good": 2, "?": 3, "film": 4, "Answer": 5, ":": 6, "Yes": 7, "No": 8, "user": 9,
            "model": 10, "Not": 11, "really": 12, ".": 13}}
    });
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"bos_token": "<s>", "chat_template": chat});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

const CHAT: &str = "{{ bos_token }} user {{ messages[0].content | trim }}\nmodel ";

fn open(chat: Option<&str>, task: &TaskInfo, words: Option<&[&str]>) -> Result<Encoder> {
    let words = words.map(|words| words.iter().map(|word| word.to_string()).collect());
    Encoder::open(directory(chat).path(), NONE, task, Some(&Instruct::new(None, words)))
}

#[test]
fn the_template_of_a_chat_brings_its_own_special_tokens() {
    let encoder = open(Some(CHAT), &info(false, Some("Good? {text}")), None).unwrap();
    assert_eq!(encoder.encode("film", None).unwrap(), [1, 9, 2, 3, 4, 10]);
    let words: Vec<u32> = encoder.verbalizers().iter().map(|word| word.token).collect();
    assert_eq!(words, [8, 7]);
    let plain = open(None, &info(false, Some("Good? {text}")), None).unwrap();
    assert_eq!(plain.encode("film", None).unwrap(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(plain.verbalizers()[0].text, " No");
    let none = Encoder::open(directory(Some(CHAT)).path(), NONE, &info(false, None), None).unwrap();
    assert_eq!(none.encode("film", None).unwrap(), [1, 4]);
    assert!(none.verbalizers().is_empty());
}

#[test]
fn an_answer_is_written_as_the_template_writes_it() {
    let turns = |answer: &str| {
        let answered = "{% for m in messages %}{% if m.role == 'assistant' %}ANSWER{% endif %}{% endfor %}";
        format!("{{{{ bos_token }}}} user {{{{ messages[0].content }}}} :{}", answered.replace("ANSWER", answer))
    };
    let text = |answer: &str, word: &str| {
        let encoder = open(Some(&turns(answer)), &info(false, Some("Good? {text}")), Some(&["No", word])).unwrap();
        encoder.verbalizers()[1].text.clone()
    };
    assert_eq!(text(" {{ m.content }}</s>", "Yes"), " Yes");
    assert_eq!(text("{{ m.content }} .", "Yes"), "Yes");
    assert_eq!(text("  {{ m.content | trim }}", " Yes"), "  Yes");
    // Templates that write something before the answer, or no answer at all.
    assert_eq!(text("Not really {{ m.content }}", "Yes"), "Yes");
    assert_eq!(text("", "Yes"), "Yes");
}

#[test]
fn a_stored_prompt_asks_in_the_same_way_again() {
    for chat in [None, Some(CHAT)] {
        let dir = directory(chat);
        let task = info(true, Some("Good? {text} Answer {pair}"));
        let encoder = Encoder::open(dir.path(), NONE, &task, Some(&Instruct::new(None, None))).unwrap();
        let stored: Instruct = serde_json::from_value(serde_json::to_value(encoder.instruct()).unwrap()).unwrap();
        assert_eq!(stored.now, 0, "no date is shown");
        let again = Encoder::stored(dir.path(), NONE, Some(&stored)).unwrap();
        let ids = encoder.encode("film", Some("really")).unwrap();
        assert_eq!(again.encode("film", Some("really")).unwrap(), ids);
        // And as the configuration of a resumed run.
        let resumed = Encoder::open(dir.path(), NONE, &task, Some(&stored)).unwrap();
        assert_eq!((resumed.instruct(), resumed.verbalizers()), (encoder.instruct(), encoder.verbalizers()));
    }
}

#[test]
fn a_long_example_is_cut_before_the_end_of_the_prompt() {
    let encoder = open(Some(CHAT), &info(false, Some("Good? {text}")), None).unwrap();
    let mut ids = encoder.encode("film film film film", None).unwrap();
    encoder.cut(&mut ids, 7);
    assert_eq!(ids, [1, 9, 2, 3, 4, 4, 10]);
    encoder.cut(&mut ids, 9);
    assert_eq!(ids.len(), 7);
    let mut short = ids.clone();
    encoder.cut(&mut short, 0);
    assert!(short.is_empty());
    let plain = Encoder::open(directory(None).path(), NONE, &info(false, None), None).unwrap();
    let mut ids = plain.encode("film Good ?", None).unwrap();
    plain.cut(&mut ids, 2);
    assert_eq!(ids, [1, 4]);
}

#[test]
fn places_are_filled_once() {
    assert_eq!(fill("{a} {text}|{pair}", "{pair} {text}", "{"), "{a} {pair} {text}|{");
    assert_eq!(fill("é{text}", "ü", ""), "éü");
}

#[test]
fn words_that_cannot_be_told_apart_by_one_token_are_errors() {
    let error = |words: &[&str]| {
        let task = info(false, Some("Good? {text}"));
        open(Some(CHAT), &task, Some(words)).unwrap_err().to_string()
    };
    let several = error(&["No", "Not really"]);
    for part in ["\"Not really\" of label positive", "[11 \"Not\", 12 \"really\"]", "--verbalizers"] {
        assert!(several.contains(part), "{part}: {several}");
    }
    let same = error(&["Yes", " Yes"]);
    for part in ["\"Yes\" of label negative", "\" Yes\" of label positive", "same token [7 \"Yes\"]"] {
        assert!(same.contains(part), "{part}: {same}");
    }
    assert!(error(&["No", "Maybe"]).contains("\"Maybe\" of label positive is not in the vocabulary"));
    assert!(error(&["No", ""]).contains("must be one token"));
    assert!(error(&["No"]).contains("negative, positive"));
}

#[test]
fn prompts_that_do_not_fit_the_task_are_errors() {
    let with = |prompt: &str, pair: bool| {
        let instruct = Instruct::new(Some(prompt.into()), Some(vec!["No".into(), "Yes".into()]));
        Encoder::open(directory(None).path(), NONE, &info(pair, None), Some(&instruct))
    };
    assert!(with("Good? {text}", false).is_ok());
    for (prompt, pair) in [("Good?", false), ("{text}{text}", false), ("{text}{pair}", false), ("{text}", true)] {
        let text = with(prompt, pair).unwrap_err().to_string();
        assert!(text.contains("once") && text.contains("{text}"), "{text}");
    }
    let none = open(None, &info(false, None), None).unwrap_err().to_string();
    assert!(none.contains("no prompt of its own; give --prompt"), "{none}");
}

/// Ids of `apply_chat_template(messages, add_generation_prompt=True)` of transformers 5.23; those of TinyLlama follow
/// its tokenizer.json, as in transformers 4: version 5 builds its own pre-tokenizer, which gives no 29871 after `</s>`.
#[test]
fn real_tokenizers_give_the_ids_of_transformers() {
    let Some(root) = sparta_test_data::find("data/tokenizers") else { return };
    let task = info(false, Some("Is this film review positive? Answer Yes or No.\n\n{text}"));
    let text = "A <b>fine</b> film.\nReally!";
    for (name, expected, words) in IDS {
        let encoder = Encoder::open(&root.join(name), NONE, &task, Some(&Instruct::new(None, None))).unwrap();
        assert_eq!(encoder.encode(text, None).unwrap(), *expected, "{name}");
        let found: Vec<u32> = encoder.verbalizers().iter().map(|word| word.token).collect();
        assert_eq!(found, *words, "{name}");
    }
}

type Ids = (&'static str, &'static [u32], &'static [u32]);

#[rustfmt::skip]
const IDS: &[Ids] = &[
    ("gemma-2", &[2, 106, 1645, 108, 2437, 736, 4592, 3221, 6222, 235336, 10358, 6287, 689, 1307, 235265, 109, 235280, 235248, 201, 35489, 210, 4592, 235265, 108, 22365, 235341, 107, 108, 106, 2516, 108], &[1294, 3553]),
    ("mistral-7b-instruct-v0.3", &[1, 3, 2459, 1224, 3734, 4826, 6046, 29572, 27075, 6360, 1210, 2538, 29491, 781, 781, 29509, 1291, 29494, 29535, 29490, 1241, 1468, 29494, 29535, 3734, 29491, 781, 2693, 1346, 29576, 4], &[2538, 6360]),
    ("tinyllama-1.1b-chat", &[529, 29989, 1792, 29989, 29958, 13, 3624, 445, 2706, 9076, 6374, 29973, 673, 3869, 470, 1939, 29889, 13, 13, 29909, 529, 29890, 29958, 29888, 457, 829, 29890, 29958, 2706, 29889, 13, 1123, 635, 29991, 2, 29871, 13, 29966, 29989, 465, 22137, 29989, 29958, 13], &[3782, 8241]),
];

/// transformers 4 and 5 read the rightmost token whose id is not `pad_token_id`, or, if there is nothing but padding,
/// the first one.
#[test]
fn a_text_is_read_up_to_its_last_token_that_is_not_padding() {
    let trimmed = |tokens: &[u32], pad| {
        let mut tokens = tokens.to_vec();
        without_padding(&mut tokens, pad);
        tokens
    };
    assert_eq!(trimmed(&[1, 2, 9, 3, 2, 2], Some(2)), [1, 2, 9, 3]);
    assert_eq!(trimmed(&[1, 2, 2], None), [1, 2, 2]);
    assert_eq!(trimmed(&[2, 2], Some(2)), [2]);
    assert!(trimmed(&[], Some(2)).is_empty());
    let dir = directory(None);
    let config = json!({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "film", "pad_token": "film",
                        "add_eos_token": true});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let encode = |padding, text| Encoder::stored(dir.path(), padding, None).unwrap().encode(text, None).unwrap();
    assert_eq!(encode(Padding::Is(None), "Good film"), [1, 2, 4, 4]);
    assert_eq!(encode(Padding::of_adapter(None), "Good film"), [1, 2]);
    assert_eq!(encode(Padding::of_adapter(None), "film Good"), [1, 4, 2]);
    assert_eq!(encode(Padding::of_adapter(Some(1)), "Good"), [1, 2, 4]);
    let encoder = Encoder::stored(dir.path(), Padding::OfTokenizer, None).unwrap();
    let mut tokens = encoder.encode("Good film Good", None).unwrap();
    encoder.cut(&mut tokens, 3);
    assert_eq!(tokens, [1, 2], "what is cut may end in padding, too");
}

#[test]
fn a_template_that_runs_into_the_answer_is_named() {
    let dir = directory(Some("{{ messages[0].content }}"));
    let path = dir.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"Whitespace\"", "\"WhitespaceSplit\"")).unwrap();
    let instruct = Instruct { prompt: Some("{text}".into()), verbalizers: None, now: 0 };
    let task = info(false, Some("Good? {text}"));
    let text = Encoder::open(dir.path(), NONE, &task, Some(&instruct)).unwrap_err().to_string();
    assert!(text.contains("tokenizer_config.json: the chat template leaves no place for an answer"), "{text}");
}
