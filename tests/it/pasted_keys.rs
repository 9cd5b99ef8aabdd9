//! No command prints a private key that was pasted in place of the path of its file.

use std::{fs, process::Command};

use crate::harness::*;

/// Runs the program, and returns everything that it printed.
fn printed(world: &World, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_leasehold"))
        .args(args)
        .env("LEASEHOLD_CONTEXTS", world.file("contexts.toml"))
        .output()
        .unwrap();
    assert!(!output.status.success(), "{args:?}");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns the ways in which people paste a key, each as a TOML value.
fn pastes(pem: &str) -> Vec<String> {
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let hex: String = body.bytes().take(32).map(|byte| format!("{byte:02x}")).collect();
    vec![
        format!("\"\"\"\n{pem}\"\"\""),
        format!("'''{pem}'''"),
        format!("\"{}\"", pem.replace('\n', "\\n")),
        format!("\"{body}\""),
        format!("\"{hex}\""),
        body.clone(),
        pem.to_owned(),
        format!("\"{}", pem.lines().nth(1).unwrap()),
        format!("[\"{body}\"]"),
    ]
}

#[test]
fn no_command_prints_a_pasted_key() {
    let world = World::prepared(|_| {});
    let pem = world.read("svid.key");
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let good = world.read("leasehold.toml");
    let file = world.file("leasehold.toml").display().to_string();
    for (number, paste) in pastes(&pem).into_iter().enumerate() {
        let secret = if paste.contains(&body[..24]) {
            body[..24].to_owned()
        } else {
            paste.trim_matches('"')[..24].to_owned()
        };
        // Where no key belongs, two ways of pasting are enough.
        let keys = ["key = ", "cert = ", "catalog = ", "state = "];
        for key in if number < 2 { &keys[..] } else { &keys[..1] } {
            let line = good.lines().find(|line| line.starts_with(key)).unwrap();
            world.write("leasehold.toml", &good.replace(line, &format!("{key}{paste}")));
            for args in [
                &["config", "check", &file][..],
                &["config", "check", &file, "-o", "json"],
                &["serve", "--config", &file],
            ] {
                let said = printed(&world, args);
                // A path of hexadecimal digits is shown in a place that is not for a key.
                let may_show = *key != "key = " && !paste.contains(&body[..24]);
                assert!(may_show || !said.contains(&secret), "{args:?} {key}{paste}\n{said}");
            }
        }
        let context = format!(
            "current = \"c\"\n[context.c]\nserver = \"127.0.0.1:1\"\nserver_id = \"{DAEMON}\"\n\
             bundles = {{ \"leasehold.example\" = \"leasehold.example.pem\" }}\n[context.c.identity.operator]\n\
             cert = \"svid.pem\"\nkey = {paste}\n"
        );
        world.write("contexts.toml", &context);
        for args in [&["whoami"][..], &["doctor"], &["doctor", "-o", "json"], &["lease", "list"]] {
            let said = printed(&world, args);
            assert!(!said.contains(&secret), "{args:?} {paste}\n{said}");
        }
    }
    // The path of the key's file, in place of another kind of file.
    for folder in ["catalog", "rules"] {
        fs::create_dir(world.file(folder)).unwrap();
    }
    world.write("catalog/acme.toml", &pem);
    world.write("rules/rules.cedar", &pem);
    let path = |name: &str| world.file(name).display().to_string();
    for args in [
        &["config", "check", &path("svid.key")][..],
        &["catalog", "check", &path("catalog")],
        &["policy", "check", &path("rules")],
        &["job", "check", &path("svid.key")],
        &["token", "inspect", &path("svid.key")],
    ] {
        let said = printed(&world, args);
        assert!(!said.contains(&body[..24]), "{args:?}\n{said}");
    }
}
