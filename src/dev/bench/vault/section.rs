//! The results as a section of a page.

use std::fmt::Write;

use super::{SWITCHED_OFF, VaultFigure, VaultFinding, VaultRevocation};
use crate::dev::bench::{
    Machine,
    page::{machine_line, with_section},
};

const LINES: [&str; 2] = [
    "<!-- leasehold bench vault --page writes from here -->",
    "<!-- leasehold bench vault --page writes to here -->",
];

/// Returns the page with these results instead of its old results.
///
/// # Errors
///
/// Fails if the page does not have the two lines that mark the place of the results.
pub fn with_vault(
    page: &str,
    machine: &Machine,
    date: &str,
    version: &str,
    findings: &[VaultFinding],
) -> Result<String, String> {
    with_section(page, LINES, &section(machine, date, version, findings))
}

fn section(machine: &Machine, date: &str, version: &str, findings: &[VaultFinding]) -> String {
    let (mut figures, mut revocations) = (Vec::new(), Vec::new());
    for finding in findings {
        match finding {
            VaultFinding::Rate(figure) => figures.push(figure),
            VaultFinding::Revocation(revocation) => revocations.push(revocation),
        }
    }
    let mut out = rate_table(&figures);
    out.push_str(&revocation_table(&revocations));
    // Writing to a String does not fail.
    let _ = writeln!(out, "{} Vault {version}.\n", machine_line(machine, date));
    out.push_str("In its favour, Vault runs without:\n\n");
    for what in SWITCHED_OFF {
        let _ = writeln!(out, "- {what}");
    }
    out
}

fn rate_table(figures: &[&VaultFigure]) -> String {
    let microseconds = |time: std::time::Duration| time.as_secs_f64() * 1e6;
    let mut out = String::from(
        "| Vault's storage | in flight | ratio | target | ours a second | Vault a second | p50 µs | p99 µs | Vault's p50 µs | Vault's p99 µs | processor µs | Vault's |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for f in figures {
        let _ = writeln!(
            out,
            "| {} | {} | **{:.1}** | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} |",
            f.storage.as_str(),
            f.in_flight,
            f.ratio(),
            f.storage.target(),
            f.ours.per_second,
            f.vault.per_second,
            microseconds(f.ours.p50),
            microseconds(f.ours.p99),
            microseconds(f.vault.p50),
            microseconds(f.vault.p99),
            microseconds(f.ours.processor),
            microseconds(f.vault.processor),
        );
    }
    out.push('\n');
    out
}

fn revocation_table(revocations: &[&VaultRevocation]) -> String {
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    let mut out = String::from(
        "| Vault's storage | leases | revoked faster | ours: call ms | last token refused ms | Vault: call ms | less memory | ours: bytes a lease | Vault's |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for r in revocations {
        let _ = writeln!(
            out,
            "| {} | {} | **{:.0} ×** | {:.1} | {:.1} | {:.0} | **{}** | {} | {} |",
            r.storage.as_str(),
            r.ours.leases,
            r.times_faster(),
            ms(r.ours.call),
            ms(r.ours.refused.unwrap_or_default()),
            ms(r.vault.call),
            r.times_smaller().map_or_else(|| "-".to_owned(), |times| format!("{times:.0} ×")),
            r.ours.bytes_a_lease(),
            r.vault.bytes_a_lease(),
        );
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dev::bench::{ManyLeases, Measured, page::tests::machine, vault::VaultStorage};

    // The page names the version, the ratios, and what was switched off. The rest of the page stays.
    #[test]
    fn the_section_of_vault_is_written_again() {
        let [begin, end] = LINES;
        let empty = format!("# Title\n\n{begin}\nearlier figures\n{end}\n\nMore.\n");
        let of = |per_second| {
            let time = Duration::from_micros(9);
            Measured { calls: 1, per_second, p50: time, p99: time, longest: time, processor: time }
        };
        let many = |memory, call, refused| ManyLeases { leases: 1_000, memory, call, refused };
        let findings = [
            VaultFinding::Revocation(VaultRevocation {
                storage: VaultStorage::Memory,
                ours: many(400_000, Duration::from_millis(2), Some(Duration::from_millis(4))),
                vault: many(12_000_000, Duration::from_millis(400), None),
            }),
            VaultFinding::Rate(VaultFigure {
                storage: VaultStorage::Raft,
                in_flight: 64,
                ours: of(30_000.0),
                vault: of(2_400.0),
            }),
        ];
        let page = with_vault(&empty, &machine(), "2026-12-01", "1.13.1", &findings).unwrap();
        assert!(page.starts_with("# Title\n") && page.ends_with(&format!("{end}\n\nMore.\n")), "{page}");
        assert!(!page.contains("earlier figures") && page.contains("Vault 1.13.1"), "{page}");
        assert!(page.contains("| raft | 64 | **12.5** | 12 | 30000 | 2400 |"), "{page}");
        assert!(
            page.contains("| memory | 1000 | **100 ×** | 2.0 | 4.0 | 400 | **30 ×** | 400 | 12000 |"),
            "{page}"
        );
        assert!(SWITCHED_OFF.iter().all(|what| page.contains(what)), "{page}");
        assert_eq!(with_vault(&page, &machine(), "2026-12-01", "1.13.1", &findings).unwrap(), page);
        assert!(with_vault("# Title\n", &machine(), "2026-12-01", "1.13.1", &findings).is_err());
    }
}
