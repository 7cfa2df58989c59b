//! A trained model's answers to held-out prompts, for the report.

use super::generate::{most_probable, positions};
use crate::job::{Answer, RunConfig};
use crate::model::Decoder;
use crate::text::Tokenizer;
use crate::train::{Encoded, Session, Target};
use crate::{Error, Result, decoder};

/// The most tokens of an answer.
const TOKENS: usize = 128;

/// The tokens before an example's last answer, and those of the answer; `None` if nothing but a first token precedes
/// it.
fn asked(example: &Encoded) -> Option<[&[u32]; 2]> {
    let Target::Tokens(Some(trained)) = &example.target else { return None };
    let end = trained.iter().rposition(|&t| t)? + 1;
    let begin = trained[..end].iter().rposition(|&t| !t)? + 1;
    (begin > 1).then(|| [&example.tokens[..begin], &example.tokens[begin..end]])
}

/// The first `n` prompts that leave room for an answer, with the expected answers.
fn prompts<'e>(examples: &'e [Encoded], n: usize, decoder: &Decoder) -> impl Iterator<Item = [&'e [u32]; 2]> {
    let longest = positions(decoder);
    examples.iter().filter_map(asked).filter(move |[prompt, _]| prompt.len() < longest).take(n)
}

/// Context length needed to answer the first `n` prompts; `None` if there are no prompts.
pub fn context(examples: &[Encoded], n: usize, decoder: &Decoder) -> Option<usize> {
    prompts(examples, n, decoder)
        .map(|[prompt, _]| prompt.len())
        .max()
        .map(|longest| (longest + TOKENS).min(positions(decoder)))
}

/// Answers the first prompts of these examples, as many as configured.
///
/// Errors: a tokenizer that cannot be read; logits that are not finite; a device that fails.
pub fn written(session: &mut Session, config: &RunConfig, examples: &[Encoded]) -> Result<Vec<Answer>> {
    let Some(context) = session.setup().limits.cache else { return Ok(Vec::new()) };
    let tokenizer = Tokenizer::open(&config.model)?;
    let decoder = session.setup().decoder.clone();
    let ends = decoder::end_tokens(&config.model, &decoder)?;
    let answer = |[prompt, expected]: [&[u32]; 2]| {
        // A turn may end with a different token than a text does.
        let last = expected.last().copied().filter(|&token| tokenizer.is_special(token));
        let is_end = |token: &u32| ends.contains(token) || last == Some(*token);
        let tokens = greedy(session, prompt, context, is_end)?;
        let ended = tokens.last().is_some_and(is_end);
        Ok(Answer {
            prompt: tokenizer.decode(prompt)?,
            expected: tokenizer.decode(expected)?,
            generated: tokenizer.decode(&tokens[..tokens.len() - usize::from(ended)])?,
            ended,
        })
    };
    prompts(examples, config.control.answers, &decoder).map(answer).collect()
}

/// Greedy tokens after a prompt, until one ends the text, or [`TOKENS`] or the context is reached.
fn greedy(session: &mut Session, prompt: &[u32], context: usize, is_end: impl Fn(&u32) -> bool) -> Result<Vec<u32>> {
    let mut logits = session.decode(prompt, 0)?;
    let mut tokens = Vec::new();
    loop {
        if let Some(at) = logits.iter().position(|z| !z.is_finite()) {
            return Err(Error::Training(format!("the logit of token {at} is {}", logits[at])));
        }
        let token = most_probable(&logits);
        tokens.push(token);
        let read = prompt.len() + tokens.len();
        if is_end(&token) || tokens.len() == TOKENS || read > context {
            return Ok(tokens);
        }
        logits = session.decode(&[token], read - 1)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(trained: &[u8]) -> Encoded {
        let tokens = (0..trained.len() as u32).collect();
        Encoded { tokens, target: Target::Tokens(Some(trained.iter().map(|&t| t == 1).collect())) }
    }

    #[test]
    fn the_last_answer_is_asked_for() {
        assert_eq!(asked(&example(&[0, 0, 1, 1, 0, 1, 1])), Some([&[0, 1, 2, 3, 4][..], &[5, 6]]));
        assert_eq!(asked(&example(&[0, 0, 1, 1, 0])), Some([&[0, 1][..], &[2, 3]]));
        // A text learned whole, after its first token.
        assert_eq!(asked(&example(&[0, 1, 1])), None);
        assert_eq!(asked(&example(&[1, 1])), None);
        assert_eq!(asked(&example(&[0, 0])), None);
        assert_eq!(asked(&Encoded { tokens: vec![1, 2], target: Target::Tokens(None) }), None);
    }
}
