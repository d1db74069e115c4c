//! Writes what each target accepts into `corpus/TARGET`, where `cargo fuzz run TARGET` begins: from nothing a fuzzer finds
//! its way into an archive late, if ever.
//!
//!     cargo +nightly fuzz run --fuzz-dir fuzz seeds

use floe_tests::fuzz::TARGETS;
// What instruments this binary as all others looks for its counters there.
use libfuzzer_sys as _;
use std::fs;
use std::path::Path;

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in TARGETS {
        let dir = corpus.join(target.name);
        fs::create_dir_all(&dir)?;
        for (number, example) in (target.examples)().iter().enumerate() {
            fs::write(dir.join(format!("example-{number}")), example)?;
        }
    }
    Ok(())
}
