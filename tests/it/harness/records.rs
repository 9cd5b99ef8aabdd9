//! The ledger, read from its files as an auditor does.

use std::{fs, path::Path};

use leasehold::internals::ledger::{Dir, VerifyReport, verify};
use serde_json::Value;

/// All records of a ledger whose chain was verified.
pub struct Records {
    pub report: VerifyReport,
    pub all: Vec<Value>,
    /// The files' text.
    pub text: String,
}

/// The text of all segments in a directory, plain or compressed. A daemon may compress a segment meanwhile.
pub fn ledger_text(state: &Path) -> String {
    let names = || fs::read_dir(state).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    let mut segments: Vec<String> = names()
        .map(|name| name.trim_end_matches(".zst").to_owned())
        .filter(|name| name.ends_with(".jsonl"))
        .collect();
    segments.sort();
    segments.dedup();
    let text = |name: &String| {
        let compressed =
            || zstd::decode_all(fs::File::open(state.join(format!("{name}.zst"))).unwrap()).unwrap();
        String::from_utf8(fs::read(state.join(name)).unwrap_or_else(|_| compressed())).unwrap()
    };
    segments.iter().map(text).collect()
}

impl Records {
    /// Verifies the chain and reads the records. A running daemon may append records between the two steps, so they are
    /// repeated.
    pub fn read(state: &Path) -> Self {
        loop {
            let report =
                verify(&Dir::at(state), None).unwrap_or_else(|e| panic!("the ledger is damaged: {e}"));
            let text = ledger_text(state);
            let lines = text.lines().count() as u64;
            assert!(lines >= report.records, "{lines} lines of {} records", report.records);
            if lines == report.records {
                let all: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
                return Records { report, all, text };
            }
        }
    }

    /// The records of one type, oldest first.
    pub fn of(&self, kind: &str) -> Vec<&Value> {
        self.all.iter().filter(|r| r["type"] == kind).collect()
    }

    /// The one record of a type.
    pub fn one(&self, kind: &str) -> &Value {
        match self.of(kind).as_slice() {
            [one] => one,
            all => panic!("{} records of {kind}: {:?}", all.len(), self.kinds()),
        }
    }

    pub fn kinds(&self) -> Vec<&str> {
        self.all.iter().map(|r| r["type"].as_str().unwrap_or_default()).collect()
    }
}
