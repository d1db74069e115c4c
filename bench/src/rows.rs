//! A data set of rows as lines, made from a seed, and what an export of it must hold.
//!
//! A row is a function of the seed and its number, so neither the data set nor what is expected has to be kept:
//!
//! ```text
//! key (11 digits of base 64) TAB number TAB text of 58 to 118 bytes LF
//! ```
//!
//! Keys are in no order in the file, as keys of real data mostly are. An export is in order of keys.

use crate::workload::{Random, mix};
use serde::Serialize;
use std::io::{self, BufRead, Write};

/// In order of their bytes, so that keys are in the order of the numbers that they stand for.
const DIGITS: &[u8; 64] = b"-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz";
const KEY_LEN: usize = 11;
const TEXT: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz      ";
const TEXT_BYTES: std::ops::Range<u32> = 58..119;

/// The data set.
pub struct Rows {
    seed: u64,
    count: u32,
}

impl Rows {
    /// So many rows, others for each seed.
    pub fn new(seed: u64, count: u32) -> Self {
        Self { seed: mix(seed), count }
    }

    /// What a row's key stands for: different for each number, as `mix` is a bijection.
    fn id(&self, number: u32) -> u64 {
        mix(self.seed.wrapping_add(u64::from(number)))
    }

    /// Adds a row's line, its end included.
    fn append(&self, number: u32, line: &mut Vec<u8>) {
        let id = self.id(number);
        // 66 bits, of which an id has the upper 64: so the first digit is spread over all of them, too.
        let digit = |place: usize| ((u128::from(id) << 2) >> (6 * (KEY_LEN - 1 - place))) as usize & 63;
        line.extend((0..KEY_LEN).map(|place| DIGITS[digit(place)]));
        write!(line, "\t{number}\t").expect("a Vec takes everything");
        let mut random = Random::new(id);
        let len = TEXT_BYTES.start + random.below(TEXT_BYTES.end - TEXT_BYTES.start);
        line.extend((0..len).map(|_| TEXT[random.below(TEXT.len() as u32) as usize]));
        line.push(b'\n');
    }

    /// Writes all rows; their bytes.
    pub fn write(&self, out: &mut impl Write) -> io::Result<u64> {
        let (mut line, mut bytes) = (Vec::new(), 0);
        for number in 0..self.count {
            line.clear();
            self.append(number, &mut line);
            out.write_all(&line)?;
            bytes += line.len() as u64;
        }
        out.flush()?;
        Ok(bytes)
    }

    fn in_order_of_keys(&self) -> impl Iterator<Item = Vec<u8>> {
        let mut numbers: Vec<_> = (0..self.count).collect();
        numbers.sort_unstable_by_key(|number| self.id(*number));
        numbers.into_iter().map(|number| {
            let mut line = Vec::new();
            self.append(number, &mut line);
            line
        })
    }

    /// Compares an export, whole lines in order of their keys, byte for byte.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn compare(&self, exported: &mut impl BufRead) -> io::Result<Comparison> {
        let mut expected = self.in_order_of_keys().peekable();
        let (mut found, mut line) = (Comparison::default(), Vec::new());
        loop {
            line.clear();
            if exported.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            while expected.next_if(|row| key_of(row) < key_of(&line)).is_some() {
                found.lost += 1;
            }
            match expected.next_if(|row| key_of(row) == key_of(&line)) {
                Some(row) if row == line => found.right += 1,
                _ => found.wrong += 1,
            }
        }
        found.lost += expected.count() as u64;
        Ok(found)
    }
}

fn key_of(line: &[u8]) -> &[u8] {
    &line[..line.len().min(KEY_LEN)]
}

/// What an export holds of what was imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// Rows that are there, byte for byte.
    pub right: u64,
    /// Rows that are missing.
    pub lost: u64,
    /// Lines with other bytes than their key's row has, out of order, twice, or of no row.
    pub wrong: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn lines(rows: &Rows) -> Vec<Vec<u8>> {
        let mut file = Vec::new();
        let bytes = rows.write(&mut file).unwrap();
        assert_eq!(bytes, file.len() as u64);
        file.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn rows_are_of_their_seed_and_have_keys_of_their_own() {
        let [first, again, other] = [1, 1, 2].map(|seed| lines(&Rows::new(seed, 5000)));
        assert!(first == again && first != other);
        let keys: BTreeSet<_> = first.iter().map(|line| key_of(line)).collect();
        let beginnings: BTreeSet<_> = first.iter().map(|line| line[0]).collect();
        assert_eq!((keys.len(), beginnings.len()), (5000, DIGITS.len()));
        assert!(first.iter().all(|line| line.split(|byte| *byte == b'\t').count() == 3));
        let bytes: usize = first.iter().map(Vec::len).sum();
        assert!((100..112).contains(&(bytes / 5000)), "{bytes} bytes");
    }

    #[test]
    fn what_an_export_lacks_or_has_too_much_is_counted() {
        let rows = Rows::new(7, 100);
        let sorted: Vec<_> = lines(&rows).into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        let compare = |change: fn(&mut Vec<Vec<u8>>)| {
            let mut lines = sorted.clone();
            change(&mut lines);
            rows.compare(&mut &lines.concat()[..]).unwrap()
        };
        let all = Comparison { right: 100, lost: 0, wrong: 0 };
        assert_eq!(compare(|_| ()), all);
        assert_eq!(compare(Vec::clear), Comparison { right: 0, lost: 100, wrong: 0 });
        let one_less = |lost, wrong| Comparison { right: 99, lost, wrong };
        for at in [0, 50, 99] {
            let mut lines = sorted.clone();
            lines.remove(at);
            assert_eq!(rows.compare(&mut &lines.concat()[..]).unwrap(), one_less(1, 0));
        }
        assert_eq!(compare(|lines| lines[30][40] ^= 1), one_less(0, 1));
        assert_eq!(compare(|lines| assert_eq!(lines[99].pop(), Some(b'\n'))), one_less(0, 1));
        assert_eq!(compare(|lines| lines.insert(9, lines[9].clone())), Comparison { wrong: 1, ..all });
        assert_eq!(compare(|lines| lines.push(b"zzzzzzzzzzzz\t\n".to_vec())), Comparison { wrong: 1, ..all });
        assert_eq!(compare(|lines| lines.swap(3, 4)), one_less(1, 1));
    }
}
