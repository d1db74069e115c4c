//! A reader of the part of EDN that histories are printed in; with [`Syntax::Json`], of JSON.
//!
//! The two differ less than they seem: JSON is EDN with `null` for `nil`, and with colons between keys and
//! values, which are read as white space like commas. So one reader serves both, knows the line of every
//! form, and bounds how deep they nest. It is lenient: what a history needs is checked by who reads it.
//!
//! Tagged forms (`#jepsen.history.Op{...}`) are read as what follows the tag; comments and `#_` are skipped.

use std::fmt;

/// How deep forms may nest: histories need 3, stack traces in their `:exception` some more.
pub const NESTING_MAX: usize = 64;

/// Which of the two languages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// As Clojure prints its data.
    Edn,
    /// As everybody else does.
    Json,
}

/// One form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// `nil` or `null`.
    Nil,
    /// A string.
    Text(String),
    /// Anything else that isn't a collection, as it is printed: `7`, `:ok`, `true`, `1.5`.
    Word(String),
    /// A vector, list or set.
    List(Vec<Form>),
    /// A map, in its order.
    Map(Vec<(Form, Form)>),
}

impl Form {
    /// A string's content or a word, without the colon of a keyword.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Word(text) => Some(text.strip_prefix(':').unwrap_or(text)),
            Self::Nil | Self::List(_) | Self::Map(_) => None,
        }
    }

    /// The value of a map's entry whose key has this name; `None` if there is none or this is no map.
    pub fn get(&self, name: &str) -> Option<&Form> {
        let Self::Map(entries) = self else { return None };
        entries.iter().find(|(key, _)| key.name() == Some(name)).map(|(_, value)| value)
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => write!(f, "nil"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Word(word) => write!(f, "{word}"),
            Self::List(forms) => write!(f, "a list of {}", forms.len()),
            Self::Map(entries) => write!(f, "a map of {}", entries.len()),
        }
    }
}

/// What can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadInput {
    /// The line, from 1.
    pub line: usize,
    /// What was expected there.
    pub expected: String,
}

impl BadInput {
    /// Bad input in this line.
    pub fn new(line: usize, expected: impl Into<String>) -> Self {
        Self { line, expected: expected.into() }
    }
}

/// Reads one form after the other.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a str,
    line: usize,
    syntax: Syntax,
}

impl<'a> Reader<'a> {
    /// A reader from the first line.
    pub fn new(text: &'a str, syntax: Syntax) -> Self {
        Self { rest: text, line: 1, syntax }
    }

    /// The next form and the line where it begins; `None` at the end.
    ///
    /// # Errors
    /// What isn't a form.
    pub fn next_form(&mut self) -> Result<Option<(usize, Form)>, BadInput> {
        self.skip_blanks(0)?;
        if self.rest.is_empty() {
            return Ok(None);
        }
        let line = self.line;
        Ok(Some((line, self.form(0)?)))
    }

    /// Steps over this character if it comes next.
    ///
    /// # Errors
    /// A `#_` before it that skips what isn't a form.
    pub fn skip(&mut self, character: char) -> Result<bool, BadInput> {
        self.skip_blanks(0)?;
        Ok(self.take_if(character))
    }

    fn take_if(&mut self, character: char) -> bool {
        let is_next = self.rest.starts_with(character);
        if is_next {
            self.take();
        }
        is_next
    }

    fn take(&mut self) -> Option<char> {
        let character = self.rest.chars().next()?;
        self.rest = &self.rest[character.len_utf8()..];
        self.line += usize::from(character == '\n');
        Some(character)
    }

    fn is_blank(&self, character: char) -> bool {
        character.is_whitespace()
            || matches!(character, ',' | '\u{feff}')
            || (character == ':' && self.syntax == Syntax::Json)
    }

    fn skip_blanks(&mut self, depth: usize) -> Result<(), BadInput> {
        loop {
            while self.rest.chars().next().is_some_and(|next| self.is_blank(next)) {
                self.take();
            }
            if self.rest.starts_with(';') {
                while self.take().is_some_and(|character| character != '\n') {}
            } else if self.rest.starts_with("#_") {
                self.rest = &self.rest[2..];
                self.form(depth + 1)?;
            } else {
                return Ok(());
            }
        }
    }

    fn form(&mut self, depth: usize) -> Result<Form, BadInput> {
        if depth > NESTING_MAX {
            return Err(BadInput::new(
                self.line,
                format!("expected forms nested at most {NESTING_MAX} deep"),
            ));
        }
        self.skip_blanks(depth)?;
        let line = self.line;
        match self.rest.chars().next() {
            None => Err(BadInput::new(line, "expected a form, found the end of the file")),
            Some('{') => self.map(depth),
            Some('[') => Ok(Form::List(self.forms(']', depth)?)),
            Some('(') => Ok(Form::List(self.forms(')', depth)?)),
            Some('"') => self.text(),
            Some('\\') => {
                self.take();
                let first = self.take().map(String::from).unwrap_or_default();
                let more = self.word();
                Ok(Form::Text(first + more))
            }
            Some('#') => self.tagged(depth),
            Some(found @ (']' | ')' | '}')) => {
                Err(BadInput::new(line, format!("expected a form, found {found:?}")))
            }
            Some(found) => match self.word() {
                "" => Err(BadInput::new(line, format!("expected a form, found {found:?}"))),
                "nil" | "null" => Ok(Form::Nil),
                word => Ok(Form::Word(word.to_owned())),
            },
        }
    }

    fn map(&mut self, depth: usize) -> Result<Form, BadInput> {
        let line = self.line;
        let mut forms = self.forms('}', depth)?.into_iter();
        let mut entries = Vec::new();
        while let Some(key) = forms.next() {
            let Some(value) = forms.next() else {
                return Err(BadInput::new(line, format!("expected a value after {key} in this map")));
            };
            entries.push((key, value));
        }
        Ok(Form::Map(entries))
    }

    /// What is between an opening bracket and this closing one.
    fn forms(&mut self, close: char, depth: usize) -> Result<Vec<Form>, BadInput> {
        let (line, open) = (self.line, self.take());
        let mut forms = Vec::new();
        loop {
            self.skip_blanks(depth)?;
            if self.take_if(close) {
                return Ok(forms);
            }
            let next = self.rest.chars().next();
            if next.is_none_or(|next| matches!(next, ']' | ')' | '}')) {
                let found = next.map_or("the end of the file".to_owned(), |next| format!("{next:?}"));
                let open = open.unwrap_or(close);
                let detail = format!("expected {close:?} to close this {open:?}, found {found}");
                return Err(BadInput::new(line, detail));
            }
            forms.push(self.form(depth + 1)?);
        }
    }

    /// `#{...}` is a set, `#tag form` is its form.
    fn tagged(&mut self, depth: usize) -> Result<Form, BadInput> {
        self.take();
        if self.rest.starts_with('{') {
            return Ok(Form::List(self.forms('}', depth)?));
        }
        if self.word().is_empty() {
            return Err(BadInput::new(self.line, "expected a tag after '#'"));
        }
        self.form(depth + 1)
    }

    /// Everything up to a blank, bracket or quote.
    fn word(&mut self) -> &'a str {
        let ends = |at: char| {
            self.is_blank(at) || matches!(at, '(' | ')' | '[' | ']' | '{' | '}' | '"' | ';' | '\\')
        };
        let (word, rest) = self.rest.split_at(self.rest.find(ends).unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }

    fn text(&mut self) -> Result<Form, BadInput> {
        let line = self.line;
        self.take();
        let mut text = String::new();
        loop {
            match self.take() {
                None => return Err(BadInput::new(line, "expected '\"' to end this string")),
                Some('"') => return Ok(Form::Text(text)),
                Some('\\') => text.push(self.escaped()?),
                Some(character) => text.push(character),
            }
        }
    }

    /// The character that an escape in a string stands for.
    fn escaped(&mut self) -> Result<char, BadInput> {
        let line = self.line;
        match self.take() {
            Some('n') => Ok('\n'),
            Some('t') => Ok('\t'),
            Some('r') => Ok('\r'),
            Some('b') => Ok('\u{8}'),
            Some('f') => Ok('\u{c}'),
            Some(itself @ ('"' | '\\' | '/')) => Ok(itself),
            Some('u') => {
                let high = self.unit()?;
                let is_pair = (0xd800..0xdc00).contains(&high) && self.rest.starts_with("\\u");
                if !is_pair {
                    return Ok(char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                self.rest = &self.rest[2..];
                let low = self.unit()?.wrapping_sub(0xdc00);
                let code = 0x1_0000 + ((high - 0xd800) << 10) + (low & 0x3ff);
                Ok(char::from_u32(code).filter(|_| low < 0x400).unwrap_or(char::REPLACEMENT_CHARACTER))
            }
            _ => Err(BadInput::new(line, "expected one of n t r b f u \" \\ / after '\\'")),
        }
    }

    /// Four hexadecimal digits.
    fn unit(&mut self) -> Result<u32, BadInput> {
        let digits = self.rest.get(..4).filter(|four| four.chars().all(|digit| digit.is_ascii_hexdigit()));
        let unit = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let unit = unit.ok_or_else(|| BadInput::new(self.line, "expected four hexadecimal digits"))?;
        self.rest = &self.rest[4..];
        Ok(unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn read(text: &str, syntax: Syntax) -> Result<Vec<Form>, BadInput> {
        let mut reader = Reader::new(text, syntax);
        std::iter::from_fn(|| reader.next_form().map(|read| read.map(|(_, form)| form)).transpose()).collect()
    }

    fn word(text: &str) -> Form {
        Form::Word(text.to_owned())
    }

    #[test]
    fn both_syntaxes_mean_the_same() {
        let edn = r#" #jepsen.history.Op{:process 0, :f :cas, #_ :skipped :value [3 nil], "x" "a\"\u00e9\n"} ; end"#;
        let json = r#"{"process": 0, "f": "cas", "value": [3, null], "x": "a\"\u00e9\n"}"#;
        for (text, syntax) in [(edn, Syntax::Edn), (json, Syntax::Json)] {
            let forms = read(text, syntax).unwrap();
            assert_eq!(forms.len(), 1, "{text}");
            let get = |name| forms[0].get(name).unwrap();
            assert_eq!((get("process"), get("f").name()), (&word("0"), Some("cas")), "{text}");
            assert_eq!(get("value"), &Form::List(vec![word("3"), Form::Nil]), "{text}");
            assert_eq!(get("x"), &Form::Text("a\"é\n".into()), "{text}");
        }
        let pair = read(r#""\ud83d\ude00\ud83d""#, Syntax::Json).unwrap();
        assert_eq!(pair, [Form::Text("😀\u{fffd}".into())]);
        let others = read("#{1 2} (\\a true) #inst \"x\"", Syntax::Edn).unwrap();
        let list = |forms: [Form; 2]| Form::List(forms.into());
        let [x, a] = ["x", "a"].map(|text| Form::Text(text.into()));
        assert_eq!(others, [list([word("1"), word("2")]), list([a, word("true")]), x]);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        for (text, line, expected) in [
            ("\n{:a 1\n", 2, "'}' to close this '{', found the end"),
            ("[1\n {:a 1]]", 2, "'}' to close this '{', found ']'"),
            ("1\n2 }", 2, "a form, found '}'"),
            ("\n{:a}", 2, "a value after :a"),
            ("\n\n\"abc\n", 3, "to end this string"),
            ("\"\n\\q\"", 2, "after '\\'"),
            ("\"\\u12\"", 1, "four hexadecimal digits"),
            ("\"\\u+123\"", 1, "four hexadecimal digits"),
            ("# 1", 1, "a tag"),
            ("\n#_", 2, "a form, found the end"),
        ] {
            let error = read(text, Syntax::Edn).expect_err(text);
            assert_eq!(error.line, line, "{text}: {error:?}");
            assert!(
                error.expected.starts_with("expected ") && error.expected.contains(expected),
                "{error:?}"
            );
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(read(&nested(NESTING_MAX), Syntax::Edn).is_ok());
        for deep in [nested(1_000_000), "#_".repeat(1_000_000), "#a ".repeat(1_000_000)] {
            let error = read(&deep, Syntax::Edn).expect_err("too deep");
            assert!(error.expected.contains("at most 64 deep"), "{error:?}");
        }
    }

    #[test]
    fn arbitrary_input_never_panics() {
        let pieces =
            ["{", "}", "[", "]", "(", ")", "#", "#_", "\"", "\\", "\\u", "d83d", ":a", ":", "é", "\n", " 1"];
        for seed in 0..5000 {
            let mut random = Random::new(seed);
            let text: String = (0..random.between(1, 20)).map(|_| *random.pick(&pieces)).collect();
            for syntax in [Syntax::Edn, Syntax::Json] {
                if let Err(error) = read(&text, syntax) {
                    assert!(error.line <= text.lines().count() + 1, "{text}: {error:?}");
                }
            }
        }
    }
}
