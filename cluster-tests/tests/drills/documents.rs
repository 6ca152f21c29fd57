//! What the documents show is what the program does.

use evergate_cluster_tests::Result;
use evergate_cluster_tests::member::binary;
use evergate_cluster_tests::process::run;
use std::path::Path;

#[test]
fn the_configuration_in_the_readme_is_right() -> Result<()> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let text = std::fs::read_to_string(readme)?;
    let toml = text
        .split("```toml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("evergate.toml");
    std::fs::write(&file, toml.ok_or_else(|| anyhow::anyhow!("no example"))?)?;
    std::fs::write(dir.path().join("branch.psk"), "a secret of a drill\n")?;
    run(&[&binary()?, "check", file.to_str().unwrap_or_default()])?;
    Ok(())
}
