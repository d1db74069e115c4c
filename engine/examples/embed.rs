//! A single node in ten lines: `cargo run --example embed`.

use floe::{Config, Engine, ScanOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::open(Config::embedded("floe-data/embed"))?;
    let client = engine.client();
    client.put_blocking("ice/floe", "drifts")?;
    client.put_blocking("ice/berg", "towers")?;
    for row in client.scan_blocking(ScanOptions::prefix("ice/"))? {
        println!("{} {}", row.key.escape_ascii(), row.value.value.escape_ascii());
    }
    engine.shutdown();
    Ok(())
}
