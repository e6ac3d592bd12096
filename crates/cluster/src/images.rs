//! Images without a registry: built by buildah into docker-archives, and imported by containerd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::process::output;
use crate::state::State;

/// The image that holds a pod's namespaces.
pub(crate) const PAUSE: &str = "localhost/pause:1";
/// The cluster's DNS.
pub(crate) const DNS: &str = "localhost/coredns:1";

/// Waits for a signal, as the first process of a pod does, and reaps what it inherits.
const PAUSE_SOURCE: &str = "#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int signal) { (void)signal; _exit(0); }
static void reap(int signal) { (void)signal; while (waitpid(-1, 0, WNOHANG) > 0) {} }
int main(void) {
    struct sigaction on_child = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
    sigaction(SIGCHLD, &on_child, 0);
    signal(SIGINT, end);
    signal(SIGTERM, end);
    for (;;) pause();
}
";

/// What an image is built from.
#[derive(Debug)]
pub struct Image<'a> {
    /// Its name and tag.
    pub reference: &'a str,
    /// The Dockerfile; its `COPY` lines read from `context`.
    pub dockerfile: &'a Path,
    /// The stage of it.
    pub target: Option<&'a str>,
    /// The folder that is copied from.
    pub context: &'a Path,
    /// Further folders by name; each takes the place of the stage of that name.
    pub contexts: &'a [(&'a str, &'a Path)],
    /// Values of `ARG`s.
    pub arguments: &'a [(&'a str, &'a str)],
}

/// Builds an image, writes it as a docker-archive to `archive`, and returns its digest
/// (`sha256:…`, of the image's configuration, which names its layers).
pub fn build_image(image: &Image<'_>, archive: &Path) -> anyhow::Result<String> {
    let folder = archive.parent().context("an archive is in a folder")?;
    // A store of its own: nothing is left in the one of whoever runs this.
    let store = folder.join(".buildah");
    let buildah = || {
        let mut command = Command::new("buildah");
        command
            .arg("--root")
            .arg(store.join("root"))
            .arg("--runroot")
            .arg(store.join("run"));
        command.args(["--storage-driver", "vfs"]);
        command
    };
    let mut build = buildah();
    // Times are cut off and layers squashed: the same files make the same image.
    build.args([
        "build",
        "--isolation",
        "chroot",
        "--timestamp",
        "0",
        "--tag",
        image.reference,
    ]);
    let digest = archive.with_extension("digest");
    build.arg("--iidfile").arg(&digest);
    build.arg("--file").arg(image.dockerfile);
    if let Some(target) = image.target {
        build.args(["--target", target]);
    }
    for (name, folder) in image.contexts {
        build.arg("--build-context");
        build.arg(format!("{name}={}", folder.display()));
    }
    for (name, value) in image.arguments {
        build.args(["--build-arg", &format!("{name}={value}")]);
    }
    let made = output(build.arg(image.context), "").and_then(|_| {
        let _ = fs::remove_file(archive);
        let to = format!("docker-archive:{}:{}", archive.display(), image.reference);
        output(
            buildah().args(["push", "--quiet", image.reference, &to]),
            "",
        )
    });
    let _ = output(buildah().args(["rmi", "--all", "--force"]), "");
    let _ = fs::remove_dir_all(&store);
    made.with_context(|| format!("cannot build {}", image.reference))?;
    Ok(fs::read_to_string(digest)?.trim().to_owned())
}

/// The images that every node needs.
pub(crate) fn base(state: &State) -> anyhow::Result<Vec<PathBuf>> {
    let folder = state.path("images");
    fs::create_dir_all(&folder)?;
    let source = folder.join("pause.c");
    fs::write(&source, PAUSE_SOURCE)?;
    let mut compiler = Command::new("cc");
    compiler
        .args(["-static", "-O2", "-s", "-o"])
        .arg(folder.join("pause"))
        .arg(&source);
    output(&mut compiler, "")?;
    let pause = single(&folder, PAUSE, &folder.join("pause"))?;
    let dns = single(&folder, DNS, &crate::binaries::dns()?)?;
    Ok(vec![pause, dns])
}

/// An image with one static program in it, as a docker-archive in `folder`.
pub(crate) fn single(folder: &Path, reference: &str, program: &Path) -> anyhow::Result<PathBuf> {
    let name = program
        .file_name()
        .context("a program has a name")?
        .to_string_lossy()
        .into_owned();
    let context = folder.join(format!("{name}.context"));
    fs::create_dir_all(&context)?;
    fs::copy(program, context.join(&name))?;
    let dockerfile = context.join("Dockerfile");
    fs::write(
        &dockerfile,
        format!("FROM scratch\nCOPY {name} /{name}\nENTRYPOINT [\"/{name}\"]\n"),
    )?;
    let archive = folder.join(format!("{name}.tar"));
    let image = Image {
        reference,
        dockerfile: &dockerfile,
        target: None,
        context: &context,
        contexts: &[],
        arguments: &[],
    };
    build_image(&image, &archive)?;
    Ok(archive)
}
