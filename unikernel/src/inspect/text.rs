//! Bytes as printable text and back, in the notation of Debian's xenstore-ls, -read and -write.

/// Printable ASCII as it is but for the backslash; `\t \n \r \\`; other bytes below 8 as three octal digits, the rest
/// as two hexadecimal ones.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b'\t' => text.push_str("\\t"),
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b' '..=b'~' => text.push(char::from(*byte)),
            0..=7 => text.push_str(&format!("\\{byte:03o}")),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}

/// The bytes that an escaped text means: what [`escape`] makes, one to three octal digits, and any other character
/// after a backslash as itself.
pub fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, mut after)) = rest.split_first() {
        if first == b'\\'
            && let Some((&kind, tail)) = after.split_first()
        {
            after = tail;
            bytes.push(match kind {
                b't' => b'\t',
                b'n' => b'\n',
                b'r' => b'\r',
                b'x' => number(&mut after, 16, 2),
                b'0'..=b'7' => {
                    after = &rest[1..];
                    number(&mut after, 8, 3)
                }
                other => other,
            });
        } else {
            bytes.push(first);
        }
        rest = after;
    }
    bytes
}

/// The number at the beginning, of at most so many digits; it is taken away. More than a byte is cut off.
fn number(text: &mut &[u8], base: u32, most: usize) -> u8 {
    let digit = |byte: &u8| char::from(*byte).to_digit(base);
    let count = text.iter().take(most).take_while(|byte| digit(byte).is_some()).count();
    let (digits, rest) = text.split_at(count);
    *text = rest;
    digits.iter().filter_map(digit).fold(0u32, |value, digit| value * base + digit) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back() {
        let all: Vec<u8> = (0..=255).chain([b'\\', b'7', 0, b'1', 0xC1, b'a']).collect();
        let text = escape(&all);
        assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text}");
        assert_eq!(unescape(text.as_bytes()), all);
        assert_eq!(escape(b"tab\there\nnl \"q\" \x01 \x7f"), "tab\\there\\nnl \"q\" \\001 \\x7f", "as xenstore-ls");
    }

    #[test]
    fn text_that_nobody_escaped_is_read_as_xenstore_write_does() {
        for (text, bytes) in [
            ("\\q", &b"q"[..]),
            ("a\\", b"a\\"),
            ("\\x4", b"\x04"),
            ("\\xg", b"\0g"),
            ("\\1018", b"A8"),
            ("\\777", b"\xff"),
        ] {
            assert_eq!(unescape(text.as_bytes()), bytes, "{text}");
        }
    }
}
