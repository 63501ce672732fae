//! What Xen's and Linux' C headers say: a small C program is compiled against them, run, and what it prints is
//! compared with our own numbers, layouts and bytes.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The one line that makes the headers be there.
const INSTALL: &str = "apt-get install -y gcc libc6-dev linux-libc-dev libxen-dev";

/// How the C compiler lays out `uint64_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As this machine does (x86_64).
    Native,
    /// Aligned to 4 bytes, as i386 does; no 32-bit compiler is needed.
    I386,
}

/// Questions to the headers, and what we believe the answers to be.
pub struct Probe {
    layout: Layout,
    includes: String,
    body: String,
    expected: Vec<(String, String)>,
}

impl Probe {
    /// Starts a program that includes `headers` (as between the angle brackets), in this order.
    pub fn new(layout: Layout, headers: &[&str]) -> Probe {
        let mut includes = String::from(
            "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <string.h>\n#include <sys/ioctl.h>\n",
        );
        if layout == Layout::I386 {
            includes.push_str("typedef uint64_t packed_u64 __attribute__((aligned(4)));\n");
            includes.push_str("#define uint64_t packed_u64\n");
        }
        for header in headers {
            writeln!(includes, "#include <{header}>").expect("a string takes it");
        }
        Probe { layout, includes, body: String::new(), expected: Vec::new() }
    }

    fn expect(&mut self, name: &str, statement: &str, ours: String) {
        let number = self.expected.len();
        writeln!(self.body, "printf(\"{number} \"); {{ {statement} }} printf(\"\\n\");").expect("a string takes it");
        self.expected.push((name.to_owned(), ours));
    }

    /// A constant expression of the headers is a number of ours.
    pub fn value(&mut self, expression: &str, ours: impl Into<i128>) {
        let statement = format!("printf(\"%lld\", (long long)({expression}));");
        self.expect(expression, &statement, ours.into().to_string());
    }

    /// A string constant of the headers is one of ours.
    pub fn text(&mut self, expression: &str, ours: &str) {
        self.expect(expression, &format!("printf(\"%s\", {expression});"), ours.to_owned());
    }

    /// A C type has the size of ours.
    pub fn size(&mut self, c_type: &str, ours: usize) {
        self.value(&format!("sizeof({c_type})"), ours as i128);
    }

    /// A field stands where ours does.
    pub fn offset(&mut self, c_type: &str, field: &str, ours: usize) {
        self.value(&format!("offsetof({c_type}, {field})"), ours as i128);
    }

    /// A structure that C fills in by `assignments` (to the fields of `it`, which starts as zeros) has our bytes.
    pub fn bytes(&mut self, c_type: &str, assignments: &str, ours: &[u8]) {
        let statement = format!(
            "{c_type} it; memset(&it, 0, sizeof it); {assignments} \
             for (size_t i = 0; i < sizeof it; i++) printf(\"%02x\", ((unsigned char *)&it)[i]);"
        );
        let hex = ours.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("a string takes it");
            hex
        });
        self.expect(&format!("bytes of {c_type}"), &statement, hex);
    }

    /// Compiles, runs and compares.
    ///
    /// # Panics
    /// With every difference; or with what to install, when there is no compiler or a header is missing.
    pub fn check(self) {
        let program = format!("{}int main(void) {{\n{}return 0;\n}}\n", self.includes, self.body);
        let output = Executable::compile(&program).run();
        let answers: Vec<&str> = output.lines().collect();
        assert_eq!(answers.len(), self.expected.len(), "the probe answered something else:\n{output}");
        let mut differences = String::new();
        for (number, ((name, ours), answer)) in self.expected.iter().zip(answers).enumerate() {
            let theirs = answer.strip_prefix(&format!("{number} ")).unwrap_or(answer);
            if theirs != ours {
                writeln!(differences, "  {name}: the header says {theirs}, we say {ours}").expect("a string takes it");
            }
        }
        assert!(differences.is_empty(), "layout {:?} differs from the C headers:\n{differences}", self.layout);
    }
}

/// A compiled program, removed when dropped.
struct Executable(PathBuf);

impl Executable {
    fn compile(program: &str) -> Executable {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("windsor-abi-{}-{number}", std::process::id());
        let executable = Executable(std::env::temp_dir().join(name));
        let spawned = Command::new("cc")
            .args(["-std=gnu11", "-x", "c", "-", "-o"])
            .arg(&executable.0)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut compiler = match spawned {
            Ok(compiler) => compiler,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                panic!("no C compiler to check the ABI with; install it: {INSTALL}")
            }
            Err(error) => panic!("cc: {error}"),
        };
        compiler.stdin.take().expect("piped above").write_all(program.as_bytes()).expect("cc reads its input");
        let output = compiler.wait_with_output().expect("cc ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            !errors.contains("No such file or directory"),
            "C headers to check the ABI with are missing; install them: {INSTALL}\n{errors}"
        );
        assert!(output.status.success(), "the ABI probe does not compile:\n{errors}\n{program}");
        executable
    }

    fn run(&self) -> String {
        let output = Command::new(&self.0).output().expect("the probe runs");
        assert!(output.status.success(), "the ABI probe failed: {}", output.status);
        String::from_utf8(output.stdout).expect("the probe prints ASCII")
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != ErrorKind::NotFound
        {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}
