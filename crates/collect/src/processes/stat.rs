//! `/proc/PID/stat` (`proc_pid_stat(5)`).

use std::borrow::Cow;

use nodestats_core::sample::Process;

/// The longest line: 52 numbers of at most 20 digits, and a name.
pub(super) const BUFFER: usize = 1280;

/// The fields that are kept, as they stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat<'a> {
    pub(super) name: &'a [u8],
    state: u8,
    ppid: u32,
    minor_faults: u64,
    major_faults: u64,
    user_ticks: u64,
    system_ticks: u64,
    children_user_ticks: u64,
    children_system_ticks: u64,
    threads: u32,
    pub(super) start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl<'a> Stat<'a> {
    /// `None` where the line is cut off or no such line. The name may hold blanks, parentheses and
    /// newlines: it ends at the last parenthesis.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let open = line.iter().position(|&byte| byte == b'(')?;
        let close = line.iter().rposition(|&byte| byte == b')')?;
        let name = line.get(open + 1..close)?;
        let mut fields = Fields(line.get(close + 2..)?);
        // Field numbers are the manual page's; the state is field 3.
        let state = *fields.next_field()?.first()?;
        let ppid = fields.number()?; // 4
        fields.skip(5)?; // 5 to 9
        let minor_faults = fields.number()?; // 10
        fields.skip(1)?;
        let major_faults = fields.number()?; // 12
        fields.skip(1)?;
        let user_ticks = fields.number()?; // 14
        let system_ticks = fields.number()?; // 15
        let children_user_ticks = fields.number()?; // 16
        let children_system_ticks = fields.number()?; // 17
        fields.skip(2)?; // 18, 19
        let threads = fields.number()?; // 20
        fields.skip(1)?;
        let start_ticks = fields.number()?; // 22
        let virtual_bytes = fields.number()?; // 23
        let resident_pages = fields.number()?; // 24
        Some(Self {
            name,
            state,
            ppid: u32::try_from(ppid).ok()?,
            minor_faults,
            major_faults,
            user_ticks,
            system_ticks,
            children_user_ticks,
            children_system_ticks,
            threads: u32::try_from(threads).ok()?,
            start_ticks,
            virtual_bytes,
            resident_pages,
        })
    }

    pub(super) fn name_lossy(&self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.name)
    }

    /// Whether it ran, faulted or changed its memory since `last`.
    pub(super) fn moved(&self, last: &Process) -> bool {
        self.user_ticks != last.user_ticks
            || self.system_ticks != last.system_ticks
            || self.minor_faults != last.minor_faults
            || self.major_faults != last.major_faults
            || self.virtual_bytes != last.virtual_bytes
    }

    pub(super) fn copy_to(&self, process: &mut Process, page_size: u64) {
        process.ppid = self.ppid;
        process.state = char::from(self.state);
        process.minor_faults = self.minor_faults;
        process.major_faults = self.major_faults;
        process.user_ticks = self.user_ticks;
        process.system_ticks = self.system_ticks;
        process.children_user_ticks = self.children_user_ticks;
        process.children_system_ticks = self.children_system_ticks;
        process.threads = self.threads;
        process.start_ticks = self.start_ticks;
        process.virtual_bytes = self.virtual_bytes;
        process.resident_bytes = self.resident_pages.saturating_mul(page_size);
    }
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next_field(&mut self) -> Option<&'a [u8]> {
        let line = self.0;
        let end = line
            .iter()
            .position(|&byte| byte == b' ' || byte == b'\n')
            .unwrap_or(line.len());
        let (field, rest) = line.split_at(end);
        self.0 = rest.get(1..).unwrap_or_default();
        (!field.is_empty()).then_some(field)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        for _ in 0..count {
            self.next_field()?;
        }
        Some(())
    }

    fn number(&mut self) -> Option<u64> {
        parse_number(self.next_field()?)
    }
}

/// Digits only: the texts of `/proc` have no sign where a count stands.
pub(super) fn parse_number(digits: &[u8]) -> Option<u64> {
    let add = |number: u64, &digit: &u8| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    };
    (!digits.is_empty()).then(|| digits.iter().try_fold(0, add))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str) -> Vec<u8> {
        format!(
            "4242 ({name}) S 1 4242 4242 0 -1 4194304 100 200 3 400 50 60 70 80 20 0 9 0 12345 \
             1048576 256 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
        )
        .into_bytes()
    }

    #[test]
    fn fields_stand_where_the_manual_page_says() {
        let line = line("bash");
        let stat = Stat::parse(&line).expect("well formed");
        let mut process = Process::default();
        stat.copy_to(&mut process, 4096);
        assert_eq!(stat.name, b"bash");
        assert_eq!((process.state, process.ppid, process.threads), ('S', 1, 9));
        assert_eq!((process.minor_faults, process.major_faults), (100, 3));
        assert_eq!((process.user_ticks, process.system_ticks), (50, 60));
        assert_eq!(
            (process.children_user_ticks, process.children_system_ticks),
            (70, 80)
        );
        assert_eq!(
            (process.start_ticks, process.virtual_bytes),
            (12345, 1_048_576)
        );
        assert_eq!(process.resident_bytes, 256 * 4096);
    }

    #[test]
    fn a_hostile_name_does_not_shift_the_fields() {
        for name in [
            ") R 1 1",
            "a (b) c",
            "(((",
            ")))",
            "",
            "a\nb c",
            "\u{1F980}",
            "1 (x) 2",
        ] {
            let line = line(name);
            let stat = Stat::parse(&line).expect(name);
            assert_eq!((stat.name, stat.start_ticks), (name.as_bytes(), 12345));
        }
        let mut raw = line("xx");
        let at = raw.iter().position(|&byte| byte == b'x').expect("the name");
        raw[at] = 0xff;
        assert_eq!(
            Stat::parse(&raw).expect("well formed").name_lossy(),
            "\u{fffd}x"
        );
    }

    #[test]
    fn a_line_cut_off_anywhere_before_its_last_field_is_none() {
        let whole = line("bash");
        let end = whole
            .windows(5)
            .position(|bytes| bytes == b" 256 ")
            .expect("field 24");
        for length in 0..=end {
            assert_eq!(Stat::parse(&whole[..length]), None, "{length}");
        }
    }
}
