//! Compiles every `.proto` file under `proto/` with protox, so that no `protoc` is needed.

use std::path::{Path, PathBuf};
use std::{error::Error, fs, io};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    collect(root, &mut files)?;
    files.sort();
    let descriptors = protox::compile(&files, [root])?;
    fs::write(Path::new(&std::env::var("OUT_DIR")?).join("methods.rs"), methods(&descriptors))?;
    // `bytes` fields share the received buffer instead of copying out of it. `modules.rs` nests
    // every package as a module, so that a new `.proto` file needs no line here.
    tonic_prost_build::configure().bytes(".").include_file("modules.rs").compile_fds(descriptors)?;
    Ok(())
}

/// The source of a list of all methods' paths: figures per method need bounded names.
fn methods(descriptors: &prost_types::FileDescriptorSet) -> String {
    let mut paths = Vec::new();
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                paths.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    paths.sort();
    format!("/// The path of every method, as in a request, sorted.\npub const METHODS: &[&str] = &{paths:#?};\n")
}

/// Adds the `.proto` files below `directory`.
fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
