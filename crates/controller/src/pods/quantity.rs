//! Quantities of Kubernetes (`resource.Quantity`): a decimal number and a suffix, or an exponent.

/// A quantity times `scale`, rounded up as Kubernetes does; `None` where it is no quantity, or is
/// negative.
pub(super) fn scaled(text: &str, scale: f64) -> Option<u64> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+' || c == '-'));
    let (number, suffix) = text.split_at(digits.unwrap_or(text.len()));
    let number: f64 = number.parse().ok()?;
    let factor = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0_f64.powi(3),
        "Ti" => 1024.0_f64.powi(4),
        "Pi" => 1024.0_f64.powi(5),
        "Ei" => 1024.0_f64.powi(6),
        exponent => {
            let exponent = exponent.strip_prefix(['e', 'E'])?;
            10.0_f64.powi(exponent.parse().ok()?)
        }
    };
    let value = number * factor * scale;
    // What floating point adds is no more that was asked for.
    let whole = value.round();
    let is_whole = (value - whole).abs() <= whole.abs() * 1e-12;
    let value = if is_whole { whole } else { value.ceil() };
    (0.0..1.8e19).contains(&value).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_suffix_is_known() {
        for (text, millis) in [
            ("200m", Some(200)),
            ("1", Some(1000)),
            ("0.5", Some(500)),
            ("1.5", Some(1500)),
            ("100u", Some(1)),
            ("2k", Some(2_000_000)),
            ("1e3", Some(1_000_000)),
            ("1E-1", Some(100)),
            ("-1", None),
            ("", None),
            ("1x", None),
            ("m", None),
        ] {
            assert_eq!(scaled(text, 1000.0), millis, "{text}");
        }
        for (text, bytes) in [
            ("128Mi", Some(134_217_728)),
            ("1Gi", Some(1_073_741_824)),
            ("1G", Some(1_000_000_000)),
            ("123", Some(123)),
            ("1E", Some(1_000_000_000_000_000_000)),
        ] {
            assert_eq!(scaled(text, 1.0), bytes, "{text}");
        }
    }
}
