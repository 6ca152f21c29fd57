//! Compiles the protocol buffers with protox, so that no `protoc` is needed on the machine.

use prost::Message as _;
use prost_types::FileDescriptorSet;
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let admin = compile("admin.proto")?;
    // Only this one is served with reflection.
    fs::write(out.join("descriptors.bin"), admin.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(admin)?;
    tonic_prost_build::configure()
        .bytes(".evergate.cluster.v1")
        .compile_fds(compile("cluster.proto")?)?;
    // Its messages hold those of admin.proto, which are generated already; the directory is its own so that they stay.
    let forward = out.join("forward");
    fs::create_dir_all(&forward)?;
    tonic_prost_build::configure()
        .extern_path(".evergate.admin.v1", "crate::admin")
        .out_dir(forward)
        .compile_fds(compile("forward.proto")?)?;
    Ok(())
}

fn compile(file: &str) -> Result<FileDescriptorSet, Box<dyn Error>> {
    println!("cargo:rerun-if-changed={file}");
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_source_info(true).include_imports(true);
    compiler.open_file(file)?;
    Ok(compiler.file_descriptor_set())
}
