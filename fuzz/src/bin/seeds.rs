//! Writes the seed inputs of each target: `cargo run --bin seeds`, in this folder.

fn main() -> std::io::Result<()> {
    for target in leasehold_fuzz::TARGETS {
        let folder = std::path::Path::new("corpus").join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (n, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{n:02}")), seed)?;
        }
    }
    Ok(())
}
