use super::*;
use crate::text::{Encoder, Instruct};
use serde_json::json;
use std::path::Path;
use tempfile::TempDir;

const WORDS: &[&str] = &[
    "<unk>",
    "<s>",
    "</s>",
    "<end>",
    "user",
    "assistant",
    "system",
    "hi",
    "sum",
    "two",
    "three",
    "sure",
    "yes",
    "no",
    "the",
    "then",
    ":",
    ":::",
];
const CHAT: &str = "{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content }}<end> {% endfor %}\
                    {% if add_generation_prompt %}assistant {% endif %}";

/// A tokenizer of words that puts `<s>` before each text.
fn directory(chat: Option<&str>, eos: Option<&str>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        WORDS.iter().enumerate().map(|(id, word)| (word.to_string(), id.into())).collect();
    let special = |id: usize| {
        json!({"id": id, "content": WORDS[id], "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [special(1), special(2), special(3)],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": vocabulary}
    });
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": eos, "chat_template": chat});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

/// Turns of `role content`, with a dash before an answer that is not learned.
fn conversation(turns: &[&str]) -> Example {
    let turn = |turn: &&str| {
        let (context, turn) = turn.strip_prefix('-').map_or((false, *turn), |turn| (true, turn));
        let (role, content) = turn.split_once(' ').unwrap();
        task::Message { role: role.into(), content: content.into(), context }
    };
    Example { messages: turns.iter().map(turn).collect(), ..Example::default() }
}

fn texts(texts: &[(&str, bool)]) -> Example {
    let segment = |(text, trained): &(&str, bool)| Segment { text: text.to_string(), trained: *trained };
    Example { segments: texts.iter().map(segment).collect(), ..Example::default() }
}

/// The tokens, with those that are trained on in brackets.
fn shown(lesson: &Lesson) -> String {
    let word = |(&id, &trained): (&u32, &bool)| {
        let word = WORDS[id as usize];
        if trained { format!("[{word}]") } else { word.to_owned() }
    };
    lesson.tokens.iter().zip(&lesson.trained).map(word).collect::<Vec<_>>().join(" ")
}

fn encoder(dir: &Path, chat: bool, train_on: TrainOn, eos: Option<u32>) -> Encoder {
    let instruct = chat.then(|| Instruct::new(None, None));
    Encoder::of_lessons(dir, instruct.as_ref(), train_on, eos).unwrap()
}

fn rendered(chat: &str, train_on: TrainOn, example: &Example) -> Result<Lesson> {
    encoder(directory(Some(chat), None).path(), true, train_on, None).lesson(example)
}

fn laid_out(train_on: TrainOn, example: &Example) -> Result<Lesson> {
    encoder(directory(Some(CHAT), Some("</s>")).path(), false, train_on, None).lesson(example)
}

const TURNS: &[&str] = &["system the", "user sum", "assistant two", "user sure", "assistant yes yes"];

#[test]
fn answers_are_trained_with_the_end_of_their_turn() {
    let example = conversation(TURNS);
    let shown = |train_on| shown(&rendered(CHAT, train_on, &example).unwrap());
    assert_eq!(
        shown(TrainOn::Answers),
        "<s> system the <end> user sum <end> assistant [two] [<end>] user sure <end> assistant [yes] [yes] [<end>]"
    );
    assert_eq!(
        shown(TrainOn::Last),
        "<s> system the <end> user sum <end> assistant two <end> user sure <end> assistant [yes] [yes] [<end>]"
    );
    let all = shown(TrainOn::All);
    assert!(all.starts_with("<s> [system] [the]") && all.matches('[').count() == 16, "{all}");
}

#[test]
fn an_answer_of_the_prompt_and_one_that_nobody_asked_for_are_not_learned() {
    let example = conversation(&["user sum", "-assistant two", "user sure", "assistant yes", "user then"]);
    let expected = "<s> user sum <end> assistant two <end> user sure <end> assistant [yes] [<end>] user then <end>";
    for train_on in [TrainOn::Answers, TrainOn::Last] {
        assert_eq!(shown(&rendered(CHAT, train_on, &example).unwrap()), expected);
    }
    let greeted =
        rendered(CHAT, TrainOn::Answers, &conversation(&["assistant hi", "user sum", "assistant two"])).unwrap();
    assert_eq!(shown(&greeted), "<s> assistant hi <end> user sum <end> assistant [two] [<end>]");
    let none = rendered(CHAT, TrainOn::Answers, &conversation(&["user sum", "-assistant two"])).unwrap();
    assert!(!none.trained.contains(&true));
}

#[test]
fn a_template_that_writes_beginnings_differently_is_refused() {
    // Earlier answers are left out, as some templates leave out thoughts.
    let forgets = "{{ bos_token }}{% for m in messages %}{{ m.role }} {% if m.role != 'assistant' or loop.last %}\
                   {{ m.content }}{% endif %}<end> {% endfor %}{% if add_generation_prompt %}assistant {% endif %}";
    let message = rendered(forgets, TrainOn::Answers, &conversation(TURNS)).unwrap_err().to_string();
    for part in [
        "tokenizer_config.json: the chat template is not prefix-stable",
        "turn 3",
        "is \"two\"",
        "\"<end>\"",
        "--train-on",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let last = rendered(forgets, TrainOn::Last, &conversation(TURNS)).unwrap();
    assert_eq!(last.trained.iter().filter(|trained| **trained).count(), 3);
    rendered(forgets, TrainOn::All, &conversation(TURNS)).unwrap();

    let ignores = "{{ bos_token }}{{ messages[0].content }} ";
    let message = rendered(ignores, TrainOn::Answers, &conversation(&["user sum", "assistant two"])).unwrap_err();
    assert!(message.to_string().contains("writes nothing for the answer in turn 2"), "{message}");
}

/// The characters are prefix-stable, the tokens are not.
#[test]
fn a_token_of_two_turns_is_the_templates_fault_or_the_answers() {
    let joins = "{{ bos_token }}{% for m in messages %}{{ m.role }} {{ 'the' if m.role == 'assistant' }}{{ m.content }}\
                 <end> {% endfor %}{% if add_generation_prompt %}assistant the{% endif %}";
    let dir = directory(Some(joins), None);
    let open = |train_on| Encoder::of_lessons(dir.path(), Some(&Instruct::new(None, None)), train_on, None);
    let message = open(TrainOn::Answers).unwrap_err().to_string();
    assert!(message.contains("the chat template is not prefix-stable: the prompt ends within"), "{message}");
    open(TrainOn::All).unwrap();

    let spaced = CHAT.replace("{{ m.role }} {{ m.content }}", "{{ m.role }}:{{ m.content }}");
    let spaced = spaced.replace("assistant {%", "assistant:{%");
    let colons = rendered(&spaced, TrainOn::Answers, &conversation(&["user sum", "assistant :: two"])).unwrap();
    assert!(colons.joined);
    assert_eq!(shown(&colons), "<s> user : sum <end> assistant [:::] [two] [<end>]");
}

#[test]
fn texts_follow_each_other_and_end() {
    let example = texts(&[("the sum ", false), ("two", true)]);
    let shown = |train_on, example: &Example| shown(&laid_out(train_on, example).unwrap());
    assert_eq!(shown(TrainOn::Answers, &example), "<s> the sum [two] [</s>]");
    assert_eq!(shown(TrainOn::All, &example), "<s> [the] [sum] [two] [</s>]");
    assert_eq!(shown(TrainOn::Answers, &texts(&[("sum</s>", true)])), "<s> [sum] [</s>]", "it ends once");
    let several = texts(&[("hi ", false), ("two ", true), ("sure ", false), ("yes", true)]);
    assert_eq!(shown(TrainOn::Answers, &several), "<s> hi [two] sure [yes] [</s>]");
    assert_eq!(shown(TrainOn::Last, &several), "<s> hi two sure [yes] [</s>]");
    assert_eq!(shown(TrainOn::Answers, &texts(&[("hi ", true), ("two", false)])), "<s> [hi] two </s>");
}

#[test]
fn a_token_of_prompt_and_answer_belongs_to_the_answer() {
    let lesson = laid_out(TrainOn::Answers, &texts(&[("sum the", false), ("n yes", true)])).unwrap();
    assert_eq!((shown(&lesson).as_str(), lesson.joined), ("<s> sum [then] [yes] [</s>]", true));
    assert!(!laid_out(TrainOn::Answers, &texts(&[("sum ", false), ("yes", true)])).unwrap().joined);
    let within = laid_out(TrainOn::Answers, &texts(&[("sum t", false), ("h", true), ("en", false)])).unwrap();
    assert_eq!(shown(&within), "<s> sum then </s>");
}

#[test]
fn missing_templates_and_end_tokens_are_named() {
    let dir = directory(None, None);
    let instruct = Instruct::new(None, None);
    let none = Encoder::of_lessons(dir.path(), Some(&instruct), TrainOn::Answers, None).unwrap_err().to_string();
    assert!(none.contains("--instruct needs a chat template"), "{none}");
    let plain = encoder(dir.path(), false, TrainOn::Answers, None);
    let turns = plain.lesson(&conversation(TURNS)).unwrap_err().to_string();
    assert!(turns.contains("a conversation of 5 turns needs the model's chat template"), "{turns}");
    let endless = plain.lesson(&texts(&[("sum", true)])).unwrap_err().to_string();
    assert!(endless.contains("`eos_token`"), "{endless}");
    let other = encoder(dir.path(), false, TrainOn::Answers, Some(3));
    assert_eq!(shown(&other.lesson(&texts(&[("sum", true)])).unwrap()), "<s> [sum] [<end>]");
}

/// Templates of published models: the answer is trained on, with the token that ends it.
#[test]
fn real_templates_give_the_answers() {
    let Some(data) = sparta_test_data::find("data/tokenizers") else { return };
    let turns = ["user Say hi.", "assistant Hi, there!", "user Why?", "assistant Because.\nYou asked."];
    let trained = |model: &str, turns: &[&str]| {
        let lesson = encoder(&data.join(model), true, TrainOn::Answers, None).lesson(&conversation(turns))?;
        let tokenizer = Tokenizer::open(&data.join(model)).unwrap();
        let trained = lesson.tokens.iter().zip(&lesson.trained).filter(|(_, trained)| **trained);
        Ok(trained.filter_map(|(&id, _)| tokenizer.token(id)).collect::<Vec<_>>().join(" "))
    };
    let gemma = "Hi , ▁there ! <end_of_turn> \n Because . \n You ▁asked . <end_of_turn> \n";
    assert_eq!(trained("gemma-2", &turns).unwrap(), gemma);
    let mistral = "▁Hi , ▁there ! </s> ▁Because . <0x0A> You ▁asked . </s>";
    assert_eq!(trained("mistral-7b-instruct-v0.3", &turns).unwrap(), mistral);
    let llama = "Hi , ▁there ! </s> ▁ <0x0A> B ecause . <0x0A> You ▁asked . </s> ▁ <0x0A>";
    assert_eq!(trained("tinyllama-1.1b-chat", &turns).unwrap(), llama);
    // This one writes the system's turn before the last question, and not at all when an answer follows.
    let system: Vec<&str> = ["system Be brief."].into_iter().chain(turns).collect();
    let refused: Error = trained("mistral-7b-instruct-v0.3", &system).unwrap_err();
    assert!(refused.to_string().contains("writes the start of a conversation differently"), "{refused}");
}
