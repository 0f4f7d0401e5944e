//! Sizes and durations as people write them.

use std::time::Duration;

/// Reads "250MiB", "1GiB", "64K", "4096". Units are powers of 1024, with or without `i`, as in the
/// existing relay's settings (contract B.5); decimals are allowed.
pub(super) fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return None,
    };
    let bytes = number * factor as f64;
    (0.0..9.0e15).contains(&bytes).then_some(bytes as u64)
}

/// Reads "500ms", "30s", "10m", "24h", "7d"; a number without a unit is seconds.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "" | "s" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds).ok().filter(|duration| *duration < Duration::from_secs(400 * 86_400))
}

fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations() {
        assert_eq!(size("250MiB"), Some(250 << 20));
        assert_eq!(size("1.5 G"), Some(3 << 29));
        assert_eq!(size("17"), Some(17));
        assert_eq!(size("-1"), None);
        assert_eq!(size("1 lot"), None);
        assert_eq!(duration("7d"), Some(Duration::from_secs(7 * 86_400)));
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("soon"), None);
    }
}
