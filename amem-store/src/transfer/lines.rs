//! Lines of bounded length, of which nothing is lost in silence.

use std::io::{self, BufRead, ErrorKind};

use super::MAX_LINE_BYTES;

/// Reads lines one by one.
pub(super) struct Lines<R> {
    input: R,
    line: Vec<u8>,
    number: u64,
}

/// What was read as a line.
pub(super) enum Line<'a> {
    /// A line without its end.
    Whole(&'a [u8]),
    /// The last line, which has no end: it may be torn.
    Last(&'a [u8]),
    /// One that is longer than [`MAX_LINE_BYTES`].
    TooLong,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, line: Vec::new(), number: 0 }
    }

    /// The number of the line that was read last, counted from 1.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The next line; `None` at the end. Empty lines are lines too.
    pub(super) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let (mut found, mut too_long, mut ended) = (false, false, false);
        while !ended {
            let bytes = match self.input.fill_buf() {
                Ok([]) => break,
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            too_long |= part.len() > MAX_LINE_BYTES - self.line.len();
            if !too_long {
                self.line.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            (found, ended) = (true, end.is_some());
            self.input.consume(used);
        }
        if !found {
            return Ok(None);
        }
        self.number += 1;
        let mut line = self.line.as_slice();
        if self.number == 1 {
            // A mark that some editors put at a file's beginning.
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        Ok(Some(match (too_long, ended) {
            (true, _) => Line::TooLong,
            (false, true) => Line::Whole(line),
            (false, false) => Line::Last(line),
        }))
    }
}

impl Line<'_> {
    /// Whether it has nothing but blanks.
    pub(super) fn is_blank(&self) -> bool {
        matches!(self, Self::Whole(bytes) | Self::Last(bytes) if bytes.trim_ascii().is_empty())
    }

    /// Reads it as a JSON object.
    ///
    /// # Errors
    /// With what is wrong with it.
    pub(super) fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, String> {
        let (bytes, last) = match self {
            Self::TooLong => return Err(format!("it is longer than {MAX_LINE_BYTES} bytes")),
            Self::Whole(bytes) => (bytes, false),
            Self::Last(bytes) => (bytes, true),
        };
        // A list would pass for the fields of an object in their order.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err("it is no JSON object".to_owned());
        }
        serde_json::from_slice(bytes).map_err(|error| {
            let torn = if last && error.is_eof() { "it is torn: the file ends within it: " } else { "" };
            // Each line is parsed alone, so that a line number in the message would always be 1.
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            format!("{torn}{message} (column {})", error.column())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read, repeat};

    use super::*;

    fn read(input: impl BufRead) -> Vec<(u64, String)> {
        let (mut lines, mut all) = (Lines::new(input), Vec::new());
        while let Some(line) = lines.next().unwrap() {
            let line = match line {
                Line::Whole(bytes) => format!("{}\n", String::from_utf8_lossy(bytes)),
                Line::Last(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                Line::TooLong => "too long".into(),
            };
            all.push((lines.number(), line));
        }
        all
    }

    #[test]
    fn lines_are_read_whatever_the_buffer_holds() {
        let text = "\u{feff}one\n\ntwo\r\nthree";
        let expected = [(1, "one\n"), (2, "\n"), (3, "two\r\n"), (4, "three")].map(|(n, line)| (n, line.to_owned()));
        for capacity in 1..10 {
            assert_eq!(read(BufReader::with_capacity(capacity, text.as_bytes())), expected, "{capacity} bytes");
        }
        assert!(read(&b""[..]).is_empty());
    }

    #[test]
    fn a_line_beyond_the_bound_is_passed_over() {
        let most = MAX_LINE_BYTES as u64;
        let input = repeat(b'x').take(most).chain(&b"\n"[..]).chain(repeat(b'y').take(most + 1)).chain(&b"\nz\n"[..]);
        let read = read(BufReader::with_capacity(1 << 16, input));
        assert_eq!(
            read.iter().map(|(number, line)| (*number, line.len())).collect::<Vec<_>>(),
            [(1, MAX_LINE_BYTES + 1), (2, "too long".len()), (3, 2)]
        );
    }
}
