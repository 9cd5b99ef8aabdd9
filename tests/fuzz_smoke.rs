//! Runs the fuzz targets for a moment, without a fuzzer: the same functions on their seeds and on changed seeds, the same in
//! every run. `LEASEHOLD_FUZZ_ROUNDS` sets how many. `fuzz/` has the long run.
#![allow(clippy::restriction, reason = "a test that cannot go on has failed")]

use std::panic::{AssertUnwindSafe, catch_unwind};

#[allow(dead_code, reason = "libFuzzer calls the targets by name, this file by the list")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

/// Bytes that are worth inserting at any place of a text or a certificate.
const WORDS: [&[u8]; 19] = [
    b"spiffe://",
    b"/",
    b"//",
    b"/..",
    b"%41",
    b"\xff",
    b"@",
    b":",
    b"*",
    b".",
    b"\0",
    b"\x30\x82",
    b"\x86\x01",
    b"\n",
    b"\"",
    b",",
    b"[]",
    b"\"use\":\"x509-svid\",",
    b"1e3",
];

/// xorshift64*: a sequence of numbers that is the same each time.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % n.max(1)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.next() >> 56).unwrap()
    }

    /// Returns one seed, changed a few times.
    fn input(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..self.below(4) {
            let place = self.below(bytes.len() + 1);
            match self.below(7) {
                0 if !bytes.is_empty() => {
                    let place = self.below(bytes.len());
                    bytes[place] ^= 1 << self.below(8);
                }
                1 if !bytes.is_empty() => {
                    let place = self.below(bytes.len());
                    bytes[place] = self.byte();
                }
                2 => bytes.insert(place, self.byte()),
                3 => {
                    let end = (place + self.below(9)).min(bytes.len());
                    drop(bytes.drain(place..end));
                }
                4 => {
                    let word = WORDS[self.below(WORDS.len())];
                    bytes.splice(place..place, word.iter().copied());
                }
                5 => {
                    let end = (place + self.below(40)).min(bytes.len());
                    let again = bytes[place..end].to_vec();
                    bytes.splice(end..end, again);
                }
                _ => {
                    let other = &seeds[self.below(seeds.len())];
                    let cut = self.below(other.len() + 1);
                    bytes.truncate(place);
                    bytes.extend_from_slice(&other[cut..]);
                }
            }
        }
        bytes
    }
}

/// `reach` is how many of a thousand changed inputs must be accepted, because an input that is refused at its first byte
/// tests little.
fn smoke(name: &str, rounds: usize, reach: usize) {
    let target = targets::TARGETS.iter().find(|target| target.name == name).unwrap();
    let rounds = std::env::var("LEASEHOLD_FUZZ_ROUNDS").map_or(rounds, |n| n.parse().unwrap());
    let seeds = (target.seeds)();
    let mut dice = Dice(0x1ea5_e401_d000_0001);
    let accepts = |input: &[u8]| {
        catch_unwind(AssertUnwindSafe(|| (target.run)(input))).unwrap_or_else(|_| {
            let hex: String = input.iter().map(|b| format!("{b:02x}")).collect();
            panic!("{name} found something: `{}`, in hex {hex}", String::from_utf8_lossy(input));
        })
    };
    assert!(seeds.iter().any(|seed| accepts(seed)), "{name} accepts none of its own seeds");
    let (mut changed, mut accepted) = (0, 0);
    for _ in 0..rounds {
        let input = dice.input(&seeds);
        if !seeds.contains(&input) {
            changed += 1;
            accepted += usize::from(accepts(&input));
        }
    }
    println!("{name}: {accepted} of {changed} changed inputs were accepted");
    assert!(accepted < changed, "{name} refused nothing");
    assert!(accepted * 1_000 >= reach * changed, "{name} accepted {accepted} of {changed} changed inputs");
}

#[test]
fn spiffe_ids_are_read_as_two_other_parsers_read_them() {
    smoke("spiffe_id", 50_000, 40);
}

#[test]
fn svids_are_read_as_three_other_parsers_read_them() {
    smoke("svid", 20_000, 15);
}

#[test]
fn bundles_are_read_the_same_twice_and_never_merged() {
    smoke("bundle", 3_000, 10);
}

#[test]
fn bundle_documents_are_read_as_a_naive_reader_does() {
    smoke("document", 10_000, 50);
}

#[test]
fn tokens_have_one_spelling() {
    smoke("token", 3_000, 50);
}

#[test]
fn names_have_one_form_each() {
    smoke("names", 20_000, 100);
}

#[test]
fn every_target_has_a_smoke_a_fuzzer_and_seeds() {
    let here = include_str!("fuzz_smoke.rs");
    let manifest = include_str!("../fuzz/Cargo.toml");
    for target in &targets::TARGETS {
        assert!(here.contains(&format!("smoke(\"{}\", ", target.name)), "{} has no smoke", target.name);
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{} has no fuzzer", target.name);
        assert!(!(target.seeds)().is_empty());
    }
}
