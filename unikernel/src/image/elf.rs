//! Just enough of ELF (64-bit, little-endian) to pack an image: is this executable static, which part of it is
//! loaded, and what does a kernel module say about itself. Field offsets are those of the System V gABI, `Elf64_*`.

/// A parsed view of an ELF file's bytes. Every offset in the file is checked before it is followed.
#[derive(Clone, Copy, Debug)]
pub struct Elf<'a> {
    bytes: &'a [u8],
}

/// `p_type` of the segment that names a dynamic loader.
const PT_INTERP: u32 = 3;
/// `e_machine` of x86-64.
const EM_X86_64: u16 = 62;
const PROGRAM_HEADER: usize = 56;
const SECTION_HEADER: usize = 64;

impl<'a> Elf<'a> {
    /// Recognises the file header.
    ///
    /// # Errors
    /// The reason, as half a sentence, when these are not the bytes of a 64-bit little-endian ELF file.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, &'static str> {
        if bytes.len() < 64 || &bytes[..4] != b"\x7fELF" {
            return Err("it is not an ELF file");
        }
        if bytes[4] != 2 || bytes[5] != 1 {
            return Err("it is not a 64-bit little-endian ELF file");
        }
        Ok(Self { bytes })
    }

    /// Whether the machine is x86-64, the only one Xen's PV interface here is built for.
    pub fn is_x86_64(&self) -> bool {
        self.u16(0x12) == Some(EM_X86_64)
    }

    /// Whether the program asks for a dynamic loader (`PT_INTERP`): such a program cannot be PID 1 of an image
    /// without libraries.
    pub fn has_interpreter(&self) -> bool {
        self.segments().any(|(kind, _, _)| kind == PT_INTERP)
    }

    /// The file without what no segment covers (symbols, debug information, section headers): the kernel loads it
    /// just the same, and an initramfs is memory. `None` when a segment lies outside the file.
    pub fn without_sections(&self) -> Option<Vec<u8>> {
        let mut end = 64;
        for (_, offset, size) in self.segments() {
            end = end.max(offset.checked_add(size)?);
        }
        let mut kept = self.bytes.get(..usize::try_from(end).ok()?)?.to_vec();
        for field in [0x28..0x30, 0x3c..0x40] {
            kept[field].fill(0);
        }
        Some(kept)
    }

    /// The bytes of the section called `name`.
    pub fn section(&self, name: &str) -> Option<&'a [u8]> {
        let table = usize::try_from(self.u64(0x28)?).ok()?;
        let count = usize::from(self.u16(0x3c)?);
        let names = self.section_at(table, usize::from(self.u16(0x3e)?))?.1;
        (0..count).filter_map(|index| self.section_at(table, index)).find_map(|(name_at, body)| {
            let rest = names.get(usize::try_from(name_at).ok()?..)?;
            let end = rest.iter().position(|&byte| byte == 0)?;
            (&rest[..end] == name.as_bytes()).then_some(body)
        })
    }

    /// The values of `key` in a kernel module's `.modinfo` section, in order.
    pub fn modinfo(&self, key: &str) -> Vec<&'a str> {
        let Some(section) = self.section(".modinfo") else {
            return Vec::new();
        };
        section
            .split(|&byte| byte == 0)
            .filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('='))
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| value)
            .collect()
    }

    /// Every program header as (type, offset in the file, bytes in the file).
    fn segments(&self) -> impl Iterator<Item = (u32, u64, u64)> + '_ {
        let table = self.u64(0x20).and_then(|at| usize::try_from(at).ok()).unwrap_or(usize::MAX);
        let count = self.u16(0x38).unwrap_or(0);
        (0..usize::from(count)).filter_map(move |index| {
            let at = table.checked_add(index.checked_mul(PROGRAM_HEADER)?)?;
            Some((self.u32(at)?, self.u64(at.checked_add(8)?)?, self.u64(at.checked_add(32)?)?))
        })
    }

    /// Section `index` as (offset of its name, body).
    fn section_at(&self, table: usize, index: usize) -> Option<(u32, &'a [u8])> {
        let at = table.checked_add(index.checked_mul(SECTION_HEADER)?)?;
        let offset = usize::try_from(self.u64(at.checked_add(24)?)?).ok()?;
        let size = usize::try_from(self.u64(at.checked_add(32)?)?).ok()?;
        Some((self.u32(at)?, self.bytes.get(offset..offset.checked_add(size)?)?))
    }

    fn field<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.field(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.field(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.field(at).map(u64::from_le_bytes)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A file with one segment of type `segment` that covers the file header, and one section with `modinfo`.
    pub(in crate::image) fn sample(segment: u32, modinfo: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x12..0x14].copy_from_slice(&EM_X86_64.to_le_bytes());
        file[0x20..0x28].copy_from_slice(&64u64.to_le_bytes());
        file[0x38..0x3a].copy_from_slice(&1u16.to_le_bytes());
        let mut header = [0; PROGRAM_HEADER];
        header[..4].copy_from_slice(&segment.to_le_bytes());
        header[32..40].copy_from_slice(&120u64.to_le_bytes());
        file.extend(header);
        let names_at = file.len() as u64;
        file.extend(names);
        let modinfo_at = file.len() as u64;
        file.extend(modinfo);
        let table = file.len() as u64;
        file[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        file[0x3c..0x3e].copy_from_slice(&3u16.to_le_bytes());
        file[0x3e..0x40].copy_from_slice(&2u16.to_le_bytes());
        for (name, offset, size) in
            [(0u32, 0, 0), (1, modinfo_at, modinfo.len() as u64), (10, names_at, names.len() as u64)]
        {
            let mut section = [0; SECTION_HEADER];
            section[..4].copy_from_slice(&name.to_le_bytes());
            section[24..32].copy_from_slice(&offset.to_le_bytes());
            section[32..40].copy_from_slice(&size.to_le_bytes());
            file.extend(section);
        }
        file
    }

    #[test]
    fn an_interpreter_is_seen() {
        assert!(Elf::parse(&sample(PT_INTERP, b"")).unwrap().has_interpreter());
        assert!(!Elf::parse(&sample(1, b"")).unwrap().has_interpreter());
    }

    #[test]
    fn this_test_binary_is_as_static_as_the_build_says() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let elf = Elf::parse(&own).unwrap();
        assert!(elf.is_x86_64());
        assert_eq!(elf.has_interpreter(), !cfg!(target_feature = "crt-static"));
        assert!(elf.without_sections().unwrap().len() < own.len());
    }

    #[test]
    fn modinfo_is_read_and_stripped() {
        let file = sample(1, b"depends=a,b\0name=c\0parm=x:1\0parm=y:2\0");
        let elf = Elf::parse(&file).unwrap();
        assert_eq!(elf.modinfo("depends"), ["a,b"]);
        assert_eq!(elf.modinfo("parm"), ["x:1", "y:2"]);
        let kept = elf.without_sections().unwrap();
        assert_eq!(kept.len(), 120);
        assert!(Elf::parse(&kept).unwrap().modinfo("depends").is_empty());
    }

    #[test]
    fn damaged_files_are_refused_without_a_panic() {
        assert!(Elf::parse(b"#!/bin/sh").is_err());
        let whole = sample(PT_INTERP, b"depends=\0");
        for cut in 0..whole.len() {
            if let Ok(elf) = Elf::parse(&whole[..cut]) {
                elf.has_interpreter();
                elf.modinfo("depends");
                elf.without_sections();
            }
        }
        for at in 0x10..whole.len() {
            let mut bent = whole.clone();
            bent[at] = 0xff;
            let elf = Elf::parse(&bent).unwrap();
            elf.has_interpreter();
            elf.modinfo("depends");
            elf.without_sections();
        }
    }
}
