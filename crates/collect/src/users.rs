//! Names of users, from the host's own `/etc/passwd`.

use std::collections::HashMap;
use std::time::SystemTime;

use crate::root::HostRoot;

/// Names by number, read again when the file changes.
#[derive(Default)]
pub(crate) struct Users {
    names: HashMap<u32, String>,
    modified: Option<SystemTime>,
}

impl Users {
    /// Reads the file again if it changed.
    pub(crate) fn refresh(&mut self, root: &HostRoot) {
        let path = "etc/passwd";
        let modified = std::fs::metadata(root.path(path))
            .and_then(|file| file.modified())
            .ok();
        if modified == self.modified && modified.is_some() {
            return;
        }
        self.modified = modified;
        self.names = root.read(path).map(|text| parse(&text)).unwrap_or_default();
    }

    /// The name of this user, or the number where the host knows no name.
    pub(crate) fn name(&self, uid: u32) -> String {
        self.names
            .get(&uid)
            .cloned()
            .unwrap_or_else(|| uid.to_string())
    }
}

fn parse(text: &str) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(uid)) = (
            fields.next(),
            fields.nth(1).and_then(|uid| uid.parse().ok()),
        ) {
            // The first of several names of one number is its own.
            names.entry(uid).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_of_a_number_counts() {
        let names = parse("root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/:\nbad\nweb:x:33:33::/:\n");
        assert_eq!(names.get(&0).map(String::as_str), Some("root"));
        assert_eq!(names.get(&33).map(String::as_str), Some("web"));
        assert_eq!(names.len(), 2);
    }
}
