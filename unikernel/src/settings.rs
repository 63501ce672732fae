//! What an operator may say about a running service VM without building another image.
//!
//! | what | in the image | kernel's command line | xenstore, below the VM's own directory | unless said |
//! | --- | --- | --- | --- | --- |
//! | seconds that guests are still served after `xl shutdown` | `[vm] linger` | `windsor.linger` | `vm-data/windsor/linger` | 300 |
//! | how much is logged, as in `debug` or `blkback=trace` | `[vm] log` | `windsor.log` | `vm-data/windsor/log` | `info` |
//!
//! What stands further to the right counts. A value that makes no sense is logged, and counts for nothing.

use std::time::Duration;

use crate::config::Vm;

/// The longest linger, seconds.
pub const MAX_LINGER: u64 = 3600;

/// The values that count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How long guests are still served once the end was asked for.
    pub linger: Duration,
    /// How much is logged; as it is if nothing is said.
    pub log: Option<String>,
}

/// Reads a setting of a service VM by its key.
type Lookup<'a> = &'a mut dyn FnMut(&str) -> Option<String>;

impl Settings {
    /// From all places, and what is wrong in them. `linger` counts if nobody says anything.
    pub fn gather(linger: Duration, vm: &Vm, command_line: &str, store: Lookup<'_>) -> (Settings, Vec<String>) {
        let mut settings = Settings { linger, log: None };
        let mut wrong = Vec::new();
        let image = |key: &str| match key {
            "linger" => vm.linger.map(|seconds| seconds.to_string()),
            _ => vm.log.clone(),
        };
        let line = |key: &str| {
            let prefix = format!("windsor.{key}=");
            command_line.split_whitespace().filter_map(|word| word.strip_prefix(&prefix)).next_back().map(str::to_owned)
        };
        for key in ["linger", "log"] {
            let places = [("the image", image(key)), ("the command line", line(key)), ("xenstore", store(key))];
            for (place, value) in places {
                let Some(value) = value else { continue };
                if let Err(why) = settings.set(key, &value) {
                    let value: String = value.escape_debug().take(64).collect();
                    wrong.push(format!("{key} = \"{value}\" of {place} counts for nothing: {why}"));
                }
            }
        }
        (settings, wrong)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        if key == "linger" {
            let seconds = value.trim().parse().ok().filter(|seconds| *seconds <= MAX_LINGER);
            let seconds = seconds.ok_or_else(|| format!("it is 0 to {MAX_LINGER} seconds"))?;
            self.linger = Duration::from_secs(seconds);
        } else {
            crate::log::filter(value)?;
            self.log = Some(value.to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(image: Option<u64>, line: &str, store: Option<&str>) -> (u64, usize) {
        let vm = Vm { name: "acme".into(), modules: vec![], linger: image, log: None };
        let mut of_store = |key: &str| store.filter(|_| key == "linger").map(str::to_owned);
        let (settings, wrong) = Settings::gather(Duration::from_secs(300), &vm, line, &mut of_store);
        (settings.linger.as_secs(), wrong.len())
    }

    #[test]
    fn xenstore_goes_before_the_command_line_and_that_before_the_image() {
        assert_eq!(gather(None, "", None), (300, 0));
        assert_eq!(gather(Some(10), "", None), (10, 0));
        assert_eq!(gather(Some(10), "quiet windsor.linger=20 panic=1", None), (20, 0));
        assert_eq!(gather(Some(10), "windsor.linger=20 windsor.linger=21", None), (21, 0));
        assert_eq!(gather(Some(10), "windsor.linger=20", Some("30")), (30, 0));
        assert_eq!(gather(None, "xwindsor.linger=20 windsor.lingers=4", None), (300, 0));
    }

    #[test]
    fn nonsense_counts_for_nothing() {
        assert_eq!(gather(Some(10), "windsor.linger=x", Some("-1")), (10, 2));
        assert_eq!(gather(None, "windsor.linger=3601", Some("99999999999999999999")), (300, 2));
        let vm = Vm { name: "acme".into(), modules: vec![], linger: None, log: Some("debug".into()) };
        let (settings, wrong) =
            Settings::gather(Duration::ZERO, &vm, "windsor.log==,=", &mut |_| Some("a\nb".repeat(99)));
        assert_eq!(settings.log.as_deref(), Some("debug"));
        assert!(wrong.len() == 3 && wrong.iter().all(|line| line.len() < 300 && !line.contains('\n')), "{wrong:?}");
    }
}
