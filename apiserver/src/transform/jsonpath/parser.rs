//! The text of a path → its nodes. It accepts what upstream's parser accepts, except for `range` and for more than one
//! expression in braces.

use super::{JsonPathError, Node, Operator, PATH_NESTING_MAX, syntax};
use serde_json::Value;

pub(super) struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    pub(super) fn new(rest: &'a str) -> Self {
        Self { rest }
    }

    pub(super) fn nodes(&mut self, depth: usize) -> Result<Vec<Node>, JsonPathError> {
        if depth > PATH_NESTING_MAX {
            return Err(syntax("it is nested too deeply"));
        }
        let mut nodes = Vec::new();
        while let Some(c) = self.rest.chars().next() {
            if self.rest.starts_with("[?(") {
                nodes.push(self.filter(depth)?);
            } else if self.rest.starts_with("..") {
                if nodes.last() == Some(&Node::Recursive) {
                    return Err(syntax("invalid multiple recursive descent"));
                }
                self.rest = &self.rest[2..];
                nodes.push(Node::Recursive);
                if self.rest.starts_with(|c: char| c == '_' || c.is_alphanumeric()) {
                    nodes.push(self.field());
                }
            } else {
                match c {
                    '\r' | '\n' => return Err(syntax("unclosed action")),
                    ' ' | '@' | '$' => self.rest = &self.rest[1..],
                    '[' => self.bracket(&mut nodes, depth)?,
                    '"' | '\'' => nodes.push(self.quoted(c)?),
                    '.' => {
                        self.rest = &self.rest[1..];
                        nodes.push(self.field());
                    }
                    '+' | '-' | '0'..='9' => nodes.push(self.number()?),
                    c if c == '_' || c.is_alphanumeric() => nodes.push(self.identifier()?),
                    c => return Err(syntax(format!("unrecognized character {c:?}"))),
                }
            }
        }
        Ok(nodes)
    }

    /// A field's name, up to the next terminator that is not escaped.
    fn field(&mut self) -> Node {
        let mut name = String::new();
        let mut escaped = false;
        let mut end = self.rest.len();
        for (at, c) in self.rest.char_indices() {
            match c {
                // Upstream drops every backslash of a name, escaped ones included.
                '\\' if !escaped => {
                    escaped = true;
                    continue;
                }
                c if !escaped && is_terminator(c) => {
                    end = at;
                    break;
                }
                '\\' => {}
                c => name.push(c),
            }
            escaped = false;
        }
        self.rest = &self.rest[end..];
        if name == "*" {
            Node::Wildcard
        } else {
            Node::Field(name)
        }
    }

    fn identifier(&mut self) -> Result<Node, JsonPathError> {
        let end = self.rest.find(is_terminator).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "true" => Ok(Node::Literal(Value::Bool(true))),
            "false" => Ok(Node::Literal(Value::Bool(false))),
            word => Err(syntax(format!("unrecognized identifier {word}"))),
        }
    }

    fn number(&mut self) -> Result<Node, JsonPathError> {
        let digits = |c: char| c == '.' || c.is_ascii_digit();
        let sign = usize::from(self.rest.starts_with(['+', '-']));
        let end = self.rest[sign..]
            .find(|c| !digits(c))
            .map_or(self.rest.len(), |at| at + sign);
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        if let Ok(n) = text.parse::<i64>() {
            return Ok(Node::Literal(n.into()));
        }
        text.parse::<f64>()
            .map(|f| Node::Literal(f.into()))
            .map_err(|_| syntax(format!("cannot parse number {text}")))
    }

    fn quoted(&mut self, quote: char) -> Result<Node, JsonPathError> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(Node::Literal(text.into()));
                }
                '\\' => match chars.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, 'r')) => text.push('\r'),
                    Some((_, c)) => text.push(c),
                    None => break,
                },
                '\n' => break,
                c => text.push(c),
            }
        }
        Err(syntax("unterminated quoted string"))
    }

    fn bracket(&mut self, nodes: &mut Vec<Node>, depth: usize) -> Result<(), JsonPathError> {
        let end = self
            .rest
            .find([']', '\n'])
            .filter(|&at| self.rest[at..].starts_with(']'));
        let end = end.ok_or_else(|| syntax("unterminated array"))?;
        let text = &self.rest[1..end];
        self.rest = &self.rest[end + 1..];
        let parts: Vec<&str> = text.split(',').collect();
        if parts.len() > 1 {
            let inner = |part: &&str| Parser::new(&format!("[{}]", part.trim_matches(' '))).nodes(depth + 1);
            nodes.push(Node::Union(parts.iter().map(inner).collect::<Result<_, _>>()?));
            return Ok(());
        }
        if let Some(key) = text
            .strip_prefix('\'')
            .and_then(|t| t.strip_suffix('\''))
            .filter(|key| !key.contains('\''))
        {
            // As upstream: the key is read like a field, so its dots must be escaped.
            nodes.extend(Parser::new(&format!(".{key}")).nodes(depth + 1)?);
            return Ok(());
        }
        nodes.push(slice(text)?);
        Ok(())
    }

    fn filter(&mut self, depth: usize) -> Result<Node, JsonPathError> {
        let text = &self.rest["[?(".len()..];
        let end = filter_end(text).ok_or_else(|| syntax("unterminated filter"))?;
        let expression = &text[..end];
        self.rest = text[end + 1..]
            .strip_prefix(']')
            .ok_or_else(|| syntax("unclosed array expect ]"))?;
        let is_operator = |c: char| matches!(c, '!' | '<' | '>' | '=');
        let parse = |part: &str| Parser::new(part).nodes(depth + 1);
        let Some(at) = expression.find(is_operator).filter(|&at| at > 0) else {
            return Ok(Node::Filter {
                left: parse(expression)?,
                operator: Operator::Exists,
                right: Vec::new(),
            });
        };
        let (left, rest) = expression.split_at(at);
        let right = rest.trim_start_matches(is_operator);
        let operator = match &rest[..rest.len() - right.len()] {
            "==" => Operator::Equal,
            "!=" => Operator::NotEqual,
            "<" => Operator::Less,
            "<=" => Operator::LessOrEqual,
            ">" => Operator::Greater,
            ">=" => Operator::GreaterOrEqual,
            other => return Err(syntax(format!("unrecognized filter operator {other}"))),
        };
        Ok(Node::Filter {
            left: parse(left)?,
            operator,
            right: parse(right)?,
        })
    }
}

/// Where the filter's closing parenthesis stands: the first one outside of quotes.
fn filter_end(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match (c, quote) {
            ('\n', _) => return None,
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(q)) if c == q && before != '\\' => quote = None,
            (')', None) => return Some(at),
            _ => {}
        }
        before = c;
    }
    None
}

fn slice(text: &str) -> Result<Node, JsonPathError> {
    if text == "*" {
        return Ok(Node::Slice {
            from: None,
            to: None,
            single: false,
            step: None,
        });
    }
    let invalid = || syntax(format!("invalid array index {text}"));
    let number = |part: Option<&str>| match part {
        None | Some("") => Ok(None),
        Some(digits) => digits.parse::<i64>().map(Some).map_err(|_| invalid()),
    };
    let mut parts = text.split(':');
    let from = number(parts.next())?;
    let second = parts.next();
    let (to, step) = (number(second)?, number(parts.next())?);
    if parts.next().is_some() || text.starts_with('+') {
        return Err(invalid());
    }
    Ok(match second {
        None => Node::Slice {
            from: Some(from.unwrap_or(0)),
            to: None,
            single: true,
            step: None,
        },
        Some(_) => Node::Slice {
            from,
            to,
            single: false,
            step,
        },
    })
}

fn is_terminator(c: char) -> bool {
    matches!(
        c,
        ' ' | '\t' | '\r' | '\n' | '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}'
    )
}
