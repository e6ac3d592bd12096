//! The definition of the resource as a file; `cargo xtask generate` writes it.

#[test]
fn the_golden_definition_is_up_to_date() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../crds/monitorednodes.nodestats.dev.yaml"
    );
    let wanted = nodestats_k8s::crd_yaml();
    if std::env::var_os("NODESTATS_GENERATE").is_some() {
        std::fs::write(path, &wanted).expect("written");
    }
    let golden = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        golden == wanted,
        "crds/monitorednodes.nodestats.dev.yaml differs: cargo xtask generate"
    );
}
