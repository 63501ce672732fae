//! The names of a node's children, in the order of creation.

use memchr::memmem;

/// Names as DIRECTORY sends them, each followed by a NUL: listing is a copy, and a node with a hundred thousand
/// children is one piece of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(Vec<u8>);

impl Names {
    /// The listing.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Adds one that is not there yet.
    pub fn push(&mut self, name: &str) {
        self.0.reserve_exact(name.len() + 1);
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
    }

    /// Takes one out; true when it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some(at) = self.find(name) else { return false };
        self.0.drain(at..at + name.len() + 1);
        true
    }

    /// The name that begins at an offset of the listing, and where the next one begins.
    pub fn at(&self, offset: usize) -> Option<(&str, usize)> {
        let rest = self.0.get(offset..)?;
        let len = memchr::memchr(0, rest)?;
        std::str::from_utf8(&rest[..len]).ok().map(|name| (name, offset + len + 1))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let mut offset = 0;
        std::iter::from_fn(move || {
            let (name, next) = self.at(offset)?;
            offset = next;
            Some(name)
        })
    }

    /// Where in the listing a name begins.
    pub fn find(&self, name: &str) -> Option<usize> {
        let whole = [name.as_bytes(), b"\0"].concat();
        if self.0.starts_with(&whole) {
            return Some(0);
        }
        let between = [b"\0", &whole[..]].concat();
        memmem::find(&self.0, &between).map(|at| at + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_order_and_are_found_whole() {
        let mut names = Names::default();
        ["ab", "b", "a", "bb"].iter().for_each(|name| names.push(name));
        assert_eq!(names.as_bytes(), b"ab\0b\0a\0bb\0");
        assert!(names.remove("b"), "not the end of another");
        assert!(!names.remove("b") && !names.remove(""), "not the beginning of another");
        assert_eq!(names.iter().collect::<Vec<_>>(), ["ab", "a", "bb"]);
        assert!(names.remove("ab") && names.remove("bb") && names.remove("a"));
        assert_eq!((names.at(0), names.at(7)), (None, None));
    }
}
