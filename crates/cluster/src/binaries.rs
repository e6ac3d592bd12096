//! Where the programs of Kubernetes and helm come from: a folder that `KUBEBUILDER_ASSETS` names, or a
//! build from Go modules of pinned versions and checksums, kept outside the repository.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use crate::{Version, process};

/// Sources of one Go program.
struct Module {
    /// The package that is built; `.` is that of `main`.
    package: &'static str,
    main: Option<&'static str>,
    requirements: &'static str,
    sums: &'static str,
}

macro_rules! module {
    ($folder:literal, $main:literal) => {
        Module {
            package: ".",
            main: Some(include_str!(concat!("../../../xtask/kubernetes/", $main))),
            requirements: include_str!(concat!("../../../xtask/kubernetes/", $folder, "/go.mod")),
            sums: include_str!(concat!("../../../xtask/kubernetes/", $folder, "/go.sum")),
        }
    };
}

/// What `kube` is called by.
const PROGRAMS: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
];
/// What a control plane alone needs of a folder of somebody else.
const ASSETS: [&str; 3] = ["etcd", "kube-apiserver", "kubectl"];
/// The cluster's DNS server; one for all versions.
const DNS: &str = "coredns";

/// The programs of one version.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// The programs for `version`: those of `KUBEBUILDER_ASSETS` where that is set and a control
    /// plane is enough, else our own, built where they are missing.
    pub fn find(version: Version, full: bool) -> anyhow::Result<Self> {
        if let Some(folder) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from)
            && !full
        {
            if let Some(missing) = ASSETS.iter().find(|name| !folder.join(name).exists()) {
                bail!(
                    "KUBEBUILDER_ASSETS names {}, which has no {missing}",
                    folder.display()
                );
            }
            return Ok(Self { folder });
        }
        let folder = build(version)?;
        if full {
            build_dns()?;
        }
        Ok(Self { folder })
    }

    /// The command that runs one of them.
    pub fn command(&self, program: &str) -> Command {
        Command::new(self.folder.join(program))
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The static `coredns`, for an image.
pub(crate) fn dns() -> anyhow::Result<PathBuf> {
    Ok(build_dns()?.join(DNS))
}

fn build(version: Version) -> anyhow::Result<PathBuf> {
    let module = match version {
        Version::V1_34 => module!("1.34.3", "main.go"),
        Version::V1_37 => module!("1.37.2", "main.go"),
    };
    let number = version.as_str();
    let mut parts = number.split('.');
    let (major, minor) = (parts.next().unwrap_or("1"), parts.next().unwrap_or("0"));
    let set = "-X k8s.io/component-base/version";
    let flags = format!(
        "-s -w {set}.gitVersion=v{number} {set}.gitMajor={major} {set}.gitMinor={minor} \
         {set}.gitTreeState=clean"
    );
    build_module(
        &format!("kubernetes-{number}"),
        &module,
        "kube",
        &flags,
        |folder| {
            for program in PROGRAMS {
                symlink("kube", folder.join(program))?;
            }
            Ok(())
        },
    )
}

fn build_dns() -> anyhow::Result<PathBuf> {
    let module = module!("coredns", "coredns/main.go");
    build_module("coredns", &module, DNS, "-s -w", |_| Ok(()))
}

/// helm, built where it is missing; one for all versions. Its module names it as a tool.
pub fn helm() -> anyhow::Result<PathBuf> {
    let module = Module {
        package: "helm.sh/helm/v3/cmd/helm",
        main: None,
        requirements: include_str!("../../../xtask/kubernetes/helm/go.mod"),
        sums: include_str!("../../../xtask/kubernetes/helm/go.sum"),
    };
    Ok(build_module("helm", &module, "helm", "-s -w", |_| Ok(()))?.join("helm"))
}

/// Jaeger with everything in one program, built where it is missing: traces go there, and tests ask it.
pub fn jaeger() -> anyhow::Result<PathBuf> {
    let module = Module {
        package: "github.com/jaegertracing/jaeger/cmd/all-in-one",
        main: None,
        requirements: include_str!("../../../xtask/jaeger/go.mod"),
        sums: include_str!("../../../xtask/jaeger/go.sum"),
    };
    Ok(build_module("jaeger", &module, "jaeger", "-s -w", |_| Ok(()))?.join("jaeger"))
}

/// Builds a program into the cache, unless it is there: its folder is named after its sources.
fn build_module(
    name: &str,
    module: &Module,
    program: &str,
    flags: &str,
    finish: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let mut digest = Sha256::new();
    let main = module.main.unwrap_or(module.package);
    for part in [main, module.requirements, module.sums, flags] {
        digest.update(part);
        digest.update([0]);
    }
    let digest = digest.finalize();
    let digest = u64::from_be_bytes(digest[..8].try_into().expect("SHA-256 is longer"));
    let cache = cache()?;
    let folder = cache.join(format!("{name}-{digest:016x}"));
    if folder.exists() {
        return Ok(folder);
    }
    eprintln!(
        "building {name} from Go modules into {} (minutes, once)",
        cache.display()
    );
    // Two that build at once do the work twice, and the second finds it done.
    let building = cache.join(format!(".{name}-{}", unique()));
    fs::create_dir_all(&building)?;
    let requirements = [("go.mod", module.requirements), ("go.sum", module.sums)];
    let main = module.main.map(|text| ("main.go", text));
    for (file, text) in main.into_iter().chain(requirements) {
        fs::write(building.join(file), text)?;
    }
    let mut go = Command::new("go");
    go.current_dir(&building)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly");
    go.args(["build", "-trimpath", "-ldflags", flags, "-o", program]);
    go.arg(module.package);
    let built =
        process::output(&mut go, "").with_context(|| format!("Go 1.26 or newer builds {name}"));
    let done = built.and_then(|_| finish(&building));
    if let Err(error) = done {
        let _ = fs::remove_dir_all(&building);
        return Err(error);
    }
    if fs::rename(&building, &folder).is_err() && !folder.exists() {
        bail!("cannot write {}", folder.display());
    }
    let _ = fs::remove_dir_all(&building);
    Ok(folder)
}

fn unique() -> u64 {
    let mut hasher = DefaultHasher::new();
    (std::process::id(), std::thread::current().id()).hash(&mut hasher);
    hasher.finish()
}

/// The XDG cache directory (`$XDG_CACHE_HOME`, or `~/.cache`).
fn cache() -> anyhow::Result<PathBuf> {
    let of = |name: &str| {
        std::env::var_os(name)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    let base = of("XDG_CACHE_HOME").or_else(|| of("HOME").map(|home| home.join(".cache")));
    let folder = base
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join("nodestats");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}
