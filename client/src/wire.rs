//! What may be shown of a text that came over the network.

use waystation_proto::message::Error;

/// Longest code shown, in bytes.
const MAX_CODE: usize = 64;

/// A stable code as it came, if it has the form of one: a relay may be hostile, and a terminal
/// obeys what it prints.
pub(crate) fn plain(code: &str) -> String {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let fine = !code.is_empty() && code.len() <= MAX_CODE && code.bytes().all(word);
    if fine { code.into() } else { "unreadable_code".into() }
}

/// The code of an error: the core's own, where it refused.
pub(crate) fn code_of(error: &Error) -> String {
    plain(error.core_code.as_deref().unwrap_or(&error.code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_are_shown() {
        assert_eq!(plain("capability_expired"), "capability_expired");
        for odd in ["", "\u{1b}[2J", "stream_1 of", &"a".repeat(65)] {
            assert_eq!(plain(odd), "unreadable_code");
        }
    }
}
