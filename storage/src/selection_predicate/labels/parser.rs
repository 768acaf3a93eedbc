//! The grammar of `labelSelector`. Errors have kube-apiserver's texts.

use super::validation::{check_key, check_value};
use super::{LabelOperator, LabelRequirement};

/// The requirements of a selector, in the order in which they are written.
pub(super) fn parse(text: &str) -> Result<Vec<LabelRequirement>, String> {
    Parser {
        tokens: tokens(text),
        at: 0,
    }
    .selector()
}

/// `tokens` ends with [`Token::End`]; `in` and `notin` are words, so that they may be keys and values too.
struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    /// `= == != ! ( ) , < >`
    Symbol(&'a str),
    End,
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Token::Word(text) | Token::Symbol(text) => text,
            Token::End => "",
        }
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn is_symbol(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '<' | '>')
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while let Some(first) = rest.chars().next() {
        let len = match first {
            _ if rest.starts_with("==") || rest.starts_with("!=") => 2,
            c if is_symbol(c) => 1,
            _ => rest.find(|c| is_symbol(c) || is_space(c)).unwrap_or(rest.len()),
        };
        let (token, after) = rest.split_at(len);
        tokens.push(if is_symbol(first) {
            Token::Symbol(token)
        } else {
            Token::Word(token)
        });
        rest = after.trim_start_matches(is_space);
    }
    tokens.push(Token::End);
    tokens
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens.get(self.at).copied().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn selector(&mut self) -> Result<Vec<LabelRequirement>, String> {
        let mut requirements = Vec::new();
        match self.peek() {
            Token::End => return Ok(requirements),
            Token::Word(_) | Token::Symbol("!") => {}
            other => {
                return Err(format!(
                    "found '{}', expected: !, identifier, or 'end of string'",
                    other.text()
                ));
            }
        }
        loop {
            let requirement = self
                .requirement()
                .map_err(|e| format!("unable to parse requirement: {e}"))?;
            requirements.push(requirement);
            match self.next() {
                Token::End => return Ok(requirements),
                Token::Symbol(",") => {}
                other => {
                    return Err(format!(
                        "found '{}', expected: ',' or 'end of string'",
                        other.text()
                    ));
                }
            }
            if !matches!(self.peek(), Token::Word(_) | Token::Symbol("!")) {
                return Err(format!(
                    "found '{}', expected: identifier after ','",
                    self.peek().text()
                ));
            }
        }
    }

    fn requirement(&mut self) -> Result<LabelRequirement, String> {
        let negated = self.peek() == Token::Symbol("!");
        if negated {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key,
            other => return Err(format!("found '{}', expected: identifier", other.text())),
        };
        if let Err(cause) = check_key(key) {
            return Err(format!("<nil>: Invalid value: {key:?}: {cause}"));
        }
        if negated {
            return new_requirement(key, LabelOperator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return new_requirement(key, LabelOperator::Exists, Vec::new());
        }
        let operator = match self.next() {
            Token::Word("in") => LabelOperator::In,
            Token::Word("notin") => LabelOperator::NotIn,
            Token::Symbol("=") => LabelOperator::Equals,
            Token::Symbol("==") => LabelOperator::DoubleEquals,
            Token::Symbol("!=") => LabelOperator::NotEquals,
            Token::Symbol(">") => LabelOperator::GreaterThan,
            Token::Symbol("<") => LabelOperator::LessThan,
            other => {
                return Err(format!(
                    "found '{}', expected: in, notin, =, ==, !=, gt, lt",
                    other.text()
                ));
            }
        };
        let values = match operator {
            LabelOperator::In | LabelOperator::NotIn => self.value_set()?,
            _ => vec![self.exact_value()?],
        };
        new_requirement(key, operator, values)
    }

    /// One value; nothing before a comma or the end is the empty value.
    fn exact_value(&mut self) -> Result<&'a str, String> {
        match self.peek() {
            Token::End | Token::Symbol(",") => Ok(""),
            Token::Word(value) => {
                self.next();
                Ok(value)
            }
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    /// `(a,b)`: where a value is missing before or after a comma, it is the empty one.
    fn value_set(&mut self) -> Result<Vec<&'a str>, String> {
        match self.next() {
            Token::Symbol("(") => {}
            other => return Err(format!("found '{}' expected: '('", other.text())),
        }
        if !matches!(self.peek(), Token::Word(_) | Token::Symbol("," | ")")) {
            return Err(format!(
                "found '{}', expected: ',', ')' or identifier",
                self.peek().text()
            ));
        }
        let mut values = Vec::new();
        loop {
            match self.peek() {
                Token::Word(value) => {
                    values.push(value);
                    self.next();
                }
                Token::Symbol("," | ")") => values.push(""),
                other => return Err(format!("found '{}', expected: ',', or identifier", other.text())),
            }
            match self.next() {
                Token::Symbol(",") => {}
                Token::Symbol(")") => return Ok(values),
                other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
            }
        }
    }
}

fn new_requirement(
    key: &str,
    operator: LabelOperator,
    values: Vec<&str>,
) -> Result<LabelRequirement, String> {
    let mut values: Vec<String> = values.into_iter().map(str::to_owned).collect();
    values.sort();
    values.dedup();
    let mut errors = Vec::new();
    for (i, value) in values.iter().enumerate() {
        let compares = matches!(operator, LabelOperator::GreaterThan | LabelOperator::LessThan);
        if compares && value.parse::<i64>().is_err() {
            let cause = "for 'Gt', 'Lt' operators, the value must be an integer";
            errors.push(format!("values[{i}]: Invalid value: {value:?}: {cause}"));
        }
    }
    for (i, value) in values.iter().enumerate() {
        if let Err(cause) = check_value(value) {
            errors.push(format!("values[{i}][{key}]: Invalid value: {value:?}: {cause}"));
        }
    }
    match errors.len() {
        0 => Ok(LabelRequirement {
            key: key.to_owned(),
            operator,
            values,
        }),
        1 => Err(errors.swap_remove(0)),
        _ => Err(format!("[{}]", errors.join(", "))),
    }
}
