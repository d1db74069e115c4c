//! Lines of files and the keys and values in them: what `import` takes and `export` writes.

use clap::ValueEnum;
use serde_json::Value;
use std::borrow::Cow;
use std::fmt::Write;
use std::path::Path;

/// How rows stand in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One row per line, columns separated by tabs.
    Tsv,
    /// One JSON object per line.
    Ndjson,
}

impl Format {
    /// By a file's ending: `.tsv`, `.ndjson` or `.jsonl`.
    pub fn of_file(file: &Path) -> Option<Self> {
        match file.extension()?.to_str()? {
            "tsv" => Some(Self::Tsv),
            "ndjson" | "jsonl" => Some(Self::Ndjson),
            _ => None,
        }
    }
}

/// Key and value, where they can be as they stand in the line.
pub type Row<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

/// Where in a line the key is, and what of it is the value.
#[derive(Clone, Debug)]
pub struct Shape {
    /// How rows stand in the file.
    pub format: Format,
    /// Column, counted from 1, or field.
    pub key: String,
    /// Column or field; `None` = the whole line, without the `\n` at its end. A column never ends with the `\r` of `\r\n`.
    pub value: Option<String>,
    /// Columns hold \t, \n, \r, \\ and \xNN for what they stand for.
    pub escaped: bool,
}

impl Shape {
    /// Whether columns are named by numbers, where they must be.
    ///
    /// # Errors
    /// Which one isn't.
    pub fn check(&self) -> Result<(), String> {
        let columns = [Some(&self.key), self.value.as_ref()];
        match columns.into_iter().flatten().find(|column| column_number(column).is_none()) {
            Some(column) if self.format == Format::Tsv => Err(format!(
                "\"{column}\" is no column of a TSV file: columns are numbered from 1; --header skips a first line with names"
            )),
            _ => Ok(()),
        }
    }

    /// Key and value of a line without its end.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn row<'a>(&self, line: &'a [u8]) -> Result<Row<'a>, String> {
        let (key, value) = match self.format {
            Format::Tsv => {
                (self.column(line, &self.key)?, self.value.as_ref().map(|at| self.column(line, at)))
            }
            Format::Ndjson => {
                let object: serde_json::Map<String, Value> =
                    serde_json::from_slice(line).map_err(|error| format!("it is no JSON object: {error}"))?;
                let field = |name: &String| field(&object, name).map(Cow::Owned);
                (field(&self.key)?, self.value.as_ref().map(field))
            }
        };
        Ok((key, value.transpose()?.unwrap_or(Cow::Borrowed(line))))
    }

    fn column<'a>(&self, line: &'a [u8], column: &str) -> Result<Cow<'a, [u8]>, String> {
        let at = column_number(column).ok_or("columns are numbered from 1")?;
        // The half of a line end that some systems write. (`escape` writes one that is meant as an escape.)
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut columns = line.split(|&byte| byte == b'\t');
        let text = columns.nth(at - 1).ok_or_else(|| format!("it has no column {at}"))?;
        if self.escaped { unescape(text).map(Cow::Owned) } else { Ok(Cow::Borrowed(text)) }
    }
}

fn column_number(column: &str) -> Option<usize> {
    column.parse().ok().filter(|&number| number > 0)
}

/// A field's text: of a string its content, of anything else its JSON; bytes that are no text stand under the
/// name with `_hex` behind it.
fn field(object: &serde_json::Map<String, Value>, name: &str) -> Result<Vec<u8>, String> {
    match object.get(name) {
        Some(Value::String(text)) => Ok(text.as_bytes().to_vec()),
        Some(Value::Null) => Err(format!("its field \"{name}\" is null")),
        Some(other) => Ok(other.to_string().into_bytes()),
        None => match object.get(&format!("{name}_hex")).and_then(Value::as_str) {
            Some(hex) => from_hex(hex).ok_or_else(|| format!("its field \"{name}_hex\" is not hexadecimal")),
            None => Err(format!("it has no field \"{name}\"")),
        },
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<_> = text.chars().map(|digit| digit.to_digit(16)).collect::<Option<_>>()?;
    digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(|two| (two[0] * 16 + two[1]) as u8).collect())
}

/// One row as a line, its end included.
pub fn line(format: Format, key: &[u8], value: &[u8]) -> String {
    match format {
        Format::Tsv => format!("{}\t{}\n", escape(key), escape(value)),
        Format::Ndjson => {
            let mut object = serde_json::Map::new();
            for (name, bytes) in [("key", key), ("value", value)] {
                match std::str::from_utf8(bytes) {
                    Ok(text) => object.insert(name.into(), text.into()),
                    Err(_) => object.insert(format!("{name}_hex"), hex(bytes).into()),
                };
            }
            format!("{}\n", Value::Object(object))
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String can't fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// Text as it is; tabs, line ends, backslashes and bytes that are no text as escapes.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\t' => out.push_str("\\t"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\\' => out.push_str("\\\\"),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

fn unescape(text: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match rest.next() {
            Some(b't') => b'\t',
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b'\\') => b'\\',
            Some(b'x') => {
                let digits = rest.as_slice().get(..2).and_then(|two| std::str::from_utf8(two).ok());
                let value = digits.and_then(from_hex);
                rest.nth(1);
                value.ok_or("it has a \\x without two hexadecimal digits")?[0]
            }
            _ => return Err("it has a backslash that begins no escape (\\t, \\n, \\r, \\\\, \\xNN)".into()),
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(format: Format, key: &str, value: Option<&str>) -> Shape {
        Shape { format, key: key.into(), value: value.map(Into::into), escaped: true }
    }

    #[test]
    fn any_bytes_come_back_from_a_line() {
        let nasty: Vec<u8> = (0..=255).chain("é\\x\t\n\"".bytes()).collect();
        for bytes in [b"plain".to_vec(), "ümlaut".into(), nasty] {
            for (format, key, value) in [(Format::Tsv, "1", "2"), (Format::Ndjson, "key", "value")] {
                let line = line(format, &bytes, &bytes);
                let (end, body) = line.as_bytes().split_last().expect("it isn't empty");
                assert!(*end == b'\n' && !body.contains(&b'\n'), "{line}");
                let row = shape(format, key, Some(value)).row(body);
                assert_eq!(row, Ok(((&bytes).into(), (&bytes).into())), "{line}");
            }
        }
    }

    #[test]
    fn without_a_value_column_the_whole_line_is_the_value() {
        let row = shape(Format::Tsv, "2", None).row(b"a\tb\tc");
        assert_eq!(row, Ok((b"b".into(), b"a\tb\tc".into())));
        let row = shape(Format::Tsv, "3", None).row(b"a\tb\tc\r");
        assert_eq!(
            row,
            Ok((b"c".into(), b"a\tb\tc\r".into())),
            "a line end of two bytes is no part of the key"
        );
        let row = shape(Format::Ndjson, "id", None).row(b"{\"id\": 7}");
        assert_eq!(row, Ok((b"7".into(), b"{\"id\": 7}".into())));
    }

    #[test]
    fn what_is_wrong_with_a_row_is_said() {
        let error = |shape: Shape, line: &[u8]| shape.row(line).expect_err("it is wrong");
        assert!(error(shape(Format::Tsv, "3", None), b"a\tb").contains("no column 3"));
        assert!(error(shape(Format::Tsv, "1", None), b"a\\q\tb").contains("backslash"));
        assert!(error(shape(Format::Tsv, "1", None), b"a\\x+1\tb").contains("hexadecimal"));
        assert!(error(shape(Format::Ndjson, "id", None), b"{}").contains("no field \"id\""));
        assert!(error(shape(Format::Ndjson, "id", None), b"[").contains("no JSON"));
        assert!(error(shape(Format::Ndjson, "id", None), b"[1]").contains("no JSON object"));
        assert!(shape(Format::Tsv, "name", None).check().is_err());
    }
}
