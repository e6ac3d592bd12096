//! One node: containerd, kubelet and kube-proxy below a first process of their own. Killing that
//! process ends all of them, their containers and mounts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::certificates::Authority;
use crate::network::{self, Network};
use crate::process::{self, output, wait_for};
use crate::state::State;
use crate::{Binaries, control_plane, images};

/// The variable in the environment of each of a node's own programs.
const MARK: &str = "NODESTATS_NODE";
/// Present while the kubelet is not to run.
const STOPPED: &str = "kubelet.stopped";
/// Address of the cluster's DNS, in the Services' range.
pub(crate) const DNS: &str = "10.96.0.10";
/// What a kubelet sets for the whole kernel, which is the machine's: each node writes to files of
/// its own instead.
const SETTINGS: &str = "vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
     kernel/keys/root_maxkeys kernel/keys/root_maxbytes";
/// Local volumes of each node, for claims of the default storage class.
pub(crate) const VOLUMES: usize = 4;

/// A node of the plan.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: String,
    cluster: String,
    index: usize,
}

/// `count` nodes, `node-1` and on.
pub(crate) fn plan(cluster: &str, network: &Network, count: usize) -> Vec<Node> {
    let node = |index| Node {
        name: format!("node-{}", index + 1),
        address: network.address(index),
        cluster: cluster.to_owned(),
        index,
    };
    (0..count).map(node).collect()
}

impl Node {
    fn directory(&self, state: &State) -> PathBuf {
        state.path(&self.name)
    }

    fn socket(&self, state: &State) -> PathBuf {
        self.directory(state).join("containerd.sock")
    }

    fn namespace(&self) -> String {
        network::namespace(&self.cluster, &self.name)
    }

    /// Where the data of this node's local volumes is.
    pub(crate) fn volumes(&self, state: &State) -> PathBuf {
        self.directory(state).join("volumes")
    }

    /// Makes what lasts as long as the node: network, cgroups, certificate, configuration.
    pub(crate) fn create(&self, state: &State, network: &Network) -> anyhow::Result<()> {
        let directory = self.directory(state);
        for folder in ["cni", "pki"] {
            fs::create_dir_all(directory.join(folder))?;
        }
        for volume in 0..VOLUMES {
            fs::create_dir_all(self.volumes(state).join(volume.to_string()))?;
        }
        network.add_node(&self.name, self.index)?;
        create_cgroups(&self.namespace())?;
        let authority = Authority::read(state, control_plane::CA, control_plane::CA_NAME)?;
        let user = format!("system:node:{}", self.name);
        let names = [&*self.name, &*self.address];
        authority.leaf(state, &self.name, (Some("system:nodes"), &user), &names)?;
        let server = fs::read_to_string(state.path("server"))?;
        authority.kubeconfig(state, &self.name, &server)?;
        let machine_id: String = fs::read_to_string("/proc/sys/kernel/random/uuid")?
            .chars()
            .filter(char::is_ascii_hexdigit)
            .collect();
        fs::write(directory.join("machine-id"), format!("{machine_id}\n"))?;
        fs::write(
            directory.join("cni/10-pods.conflist"),
            self.cni(state, network),
        )?;
        fs::write(directory.join("containerd.toml"), self.containerd(state))?;
        fs::write(directory.join("kubelet.json"), self.kubelet(state))?;
        Ok(())
    }

    /// Boots it: another boot id each time.
    pub(crate) fn start(
        &self,
        state: &State,
        binaries: &Binaries,
        network: &Network,
    ) -> anyhow::Result<()> {
        let directory = self.directory(state);
        fs::copy("/proc/sys/kernel/random/uuid", directory.join("boot-id"))?;
        let script = directory.join("init.sh");
        fs::write(&script, self.script(state, binaries, network))?;
        let mut init = Command::new("nsenter");
        init.arg(format!("--net=/run/netns/{}", self.namespace()));
        let own = own_hierarchies(&self.namespace());
        let into = own.iter().map(|hierarchy| {
            let own = hierarchy.join(self.namespace());
            format!("echo $$ > {}/cgroup.procs; ", own.display())
        });
        let cgroup = if own.is_empty() { "" } else { "--cgroup " };
        init.args(["sh", "-c"]).arg(format!(
            "{}exec unshare {cgroup}--pid --fork --mount --uts --mount-proc --kill-child sh {}",
            into.collect::<String>(),
            script.display()
        ));
        init.env(MARK, self.namespace());
        process::start(
            &mut init,
            state.directory(),
            &state.log(&format!("{}.init", self.name)),
        )
    }

    /// What the node's first process runs. Each line stands for something that a machine of its own
    /// would have.
    fn script(&self, state: &State, binaries: &Binaries, network: &Network) -> String {
        let (name, directory, pods) = (&self.name, self.directory(state), network.pods());
        let (directory, bin) = (directory.display(), binaries.folder().display());
        let log = |program: &str| {
            state
                .log(&format!("{name}.{program}"))
                .display()
                .to_string()
        };
        let cluster = state.directory().display();
        let own = own_hierarchies(&self.namespace());
        let cgroups = own.iter().map(|hierarchy| {
            let (hierarchy, own) = (hierarchy.display(), self.namespace());
            // What is mounted there is the machine's; what takes its place is all that there is.
            format!(
                "mount --bind {hierarchy}/{own} {directory}/cgroup
umount -l {hierarchy}
mount --move {directory}/cgroup {hierarchy}
"
            )
        });
        let cgroups: String = cgroups.collect();
        format!(
            "set -e
mkdir -p {directory}/cgroup
{cgroups}mount --make-rshared /
hostname {name}
cp -L /etc/resolv.conf {directory}/resolv.conf
mount -t tmpfs tmpfs /run
mkdir /run/netns
for own in log lib/cni lib/kubelet; do
  mkdir -p {directory}/var/$own /var/$own
  mount --bind {directory}/var/$own /var/$own
done
for setting in {SETTINGS}; do
  mkdir -p {directory}/sys/$setting
  cp /proc/sys/$setting {directory}/sys/$setting/value
  mount --bind {directory}/sys/$setting/value /proc/sys/$setting
done
mount --bind {directory}/machine-id /etc/machine-id
mount --bind {directory}/boot-id /proc/sys/kernel/random/boot_id
set +e
rm -f {directory}/containerd.sock
containerd -c {directory}/containerd.toml >> {containerd} 2>&1 &
until ctr -a {directory}/containerd.sock version > /dev/null 2>&1; do sleep 0.1; done
{bin}/kube-proxy --kubeconfig={cluster}/kube-proxy.kubeconfig --hostname-override={name} \
--cluster-cidr={pods} --proxy-mode=nftables --conntrack-max-per-core=0 >> {proxy} 2>&1 &
while :; do
  if [ -e {directory}/{STOPPED} ]; then sleep 0.2; continue; fi
  {bin}/kubelet --config={directory}/kubelet.json --kubeconfig={cluster}/{name}.kubeconfig \
--hostname-override={name} --node-ip={ip} --root-dir={directory}/kubelet --cert-dir={directory}/pki \
>> {kubelet} 2>&1
  sleep 0.5
done
",
            containerd = log("containerd"),
            proxy = log("kube-proxy"),
            kubelet = log("kubelet"),
            ip = self.address,
        )
    }

    fn cni(&self, state: &State, network: &Network) -> String {
        let ipam = serde_json::json!({
            "type": "host-local", "dataDir": self.directory(state).join("ipam"),
            "ranges": [[{"subnet": network.pods_of(self.index)}]], "routes": [{"dst": "0.0.0.0/0"}],
        });
        let bridge = serde_json::json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
            "hairpinMode": true, "ipam": ipam,
        });
        let ports = serde_json::json!({"type": "portmap", "capabilities": {"portMappings": true}});
        let list = serde_json::json!({
            "cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports],
        });
        list.to_string()
    }

    fn containerd(&self, state: &State) -> String {
        let directory = self.directory(state);
        let directory = directory.display();
        // Without CAP_SYS_RESOURCE runc cannot lower oom_score_adj, and dies of trying.
        format!(
            "version = 2
root = \"{directory}/containerd/root\"
state = \"{directory}/containerd/state\"
[grpc]
  address = \"{directory}/containerd.sock\"
[plugins.\"io.containerd.grpc.v1.cri\"]
  sandbox_image = \"{pause}\"
  restrict_oom_score_adj = true
  [plugins.\"io.containerd.grpc.v1.cri\".cni]
    bin_dir = \"/usr/lib/cni\"
    conf_dir = \"{directory}/cni\"
",
            pause = images::PAUSE,
        )
    }

    fn kubelet(&self, state: &State) -> String {
        let pki = |file: String| state.path("pki").join(file);
        let configuration = serde_json::json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": pki("ca.crt".to_owned())},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": pki(format!("{}.crt", self.name)),
            "tlsPrivateKeyFile": pki(format!("{}.key", self.name)),
            "clusterDomain": "cluster.local",
            "clusterDNS": [DNS],
            "resolvConf": self.directory(state).join("resolv.conf"),
            "volumePluginDir": self.directory(state).join("volume-plugins"),
            "cgroupDriver": "cgroupfs",
            // Two kubelets below one root remove each other's pods.
            "cgroupRoot": if own_hierarchies(&self.namespace()).is_empty() {
                format!("/{}", self.namespace())
            } else {
                "/".to_owned()
            },
            "failCgroupV1": false,
            "failSwapOn": false,
            "containerRuntimeEndpoint": format!("unix://{}", self.socket(state).display()),
            "evictionHard": {
                "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%",
            },
            "imageGCHighThresholdPercent": 100,
            "nodeStatusUpdateFrequency": "5s",
        });
        configuration.to_string()
    }

    pub(crate) fn wait_for_containerd(&self, state: &State) -> anyhow::Result<()> {
        let socket = self.socket(state);
        wait_for(&format!("containerd of {}", self.name), || {
            let mut ctr = Command::new("ctr");
            output(ctr.arg("-a").arg(&socket).arg("version"), "").ok()
        })
        .map(drop)
    }

    /// Imports a docker-archive.
    pub(crate) fn load(&self, state: &State, image: &Path) -> anyhow::Result<()> {
        let mut ctr = Command::new("ctr");
        ctr.arg("-a")
            .arg(self.socket(state))
            .args(["-n", "k8s.io", "images", "import"]);
        output(ctr.arg(image), "").with_context(|| format!("{} takes no image", self.name))?;
        Ok(())
    }

    pub(crate) fn stop(&self) -> anyhow::Result<()> {
        if let Some(init) = self.programs(is_first).first() {
            kill_process(*init, Signal::KILL)?;
        }
        wait_for(&format!("{} to end", self.name), || {
            self.programs(|_| true).is_empty().then_some(())
        })
    }

    pub(crate) fn stop_kubelet(&self, state: &State) -> anyhow::Result<()> {
        fs::write(self.directory(state).join(STOPPED), "")?;
        wait_for("the kubelet to end", || {
            let kubelets = self.programs(|pid| is_called(pid, "kubelet"));
            for pid in &kubelets {
                let _ = kill_process(*pid, Signal::KILL);
            }
            kubelets.is_empty().then_some(())
        })
    }

    pub(crate) fn start_kubelet(&self, state: &State) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.directory(state).join(STOPPED))?)
    }

    pub(crate) fn remove(&self, state: &State, network: &Network) -> anyhow::Result<()> {
        self.stop()?;
        network.remove_node(&self.name, self.index)?;
        remove_cgroups_that(|name| name == self.namespace())?;
        Ok(fs::remove_dir_all(self.directory(state))?)
    }

    pub(crate) fn inside(&self) -> anyhow::Result<Command> {
        let first = self.programs(is_first);
        let init = first
            .first()
            .with_context(|| format!("{} does not run", self.name))?;
        let mut command = Command::new("nsenter");
        command
            .arg("--target")
            .arg(init.as_raw_nonzero().to_string());
        command.args(["--mount", "--uts", "--net", "--pid", "--"]);
        Ok(command)
    }

    /// The node's own programs (not its containers) that `wanted` picks.
    fn programs(&self, wanted: impl Fn(Pid) -> bool) -> Vec<Pid> {
        let mark = format!("{MARK}={}", self.namespace());
        let marked = process::marked(&mark).unwrap_or_default();
        marked.into_iter().filter(|pid| wanted(*pid)).collect()
    }
}

fn status(pid: Pid) -> String {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    fs::read_to_string(path).unwrap_or_default()
}

/// Whether it is the first process of its PID namespace (`NSpid` in proc(5)).
fn is_first(pid: Pid) -> bool {
    let status = status(pid);
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.is_some_and(|pids| {
        let pids: Vec<&str> = pids.split_whitespace().collect();
        pids.len() > 1 && pids.last() == Some(&"1")
    })
}

fn is_called(pid: Pid, name: &str) -> bool {
    let line = status(pid);
    line.lines()
        .find_map(|line| line.strip_prefix("Name:"))
        .is_some_and(|is| is.trim() == name)
}

/// The hierarchies of cgroup v1, or the one of v2.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

/// Those of which the node of this name sees its own part alone, as a machine of its own would; none
/// where version 2 is alone: there a group that others are below holds no processes.
fn own_hierarchies(node: &str) -> Vec<PathBuf> {
    let mut hierarchies = hierarchies();
    if hierarchies.len() == 1 {
        return Vec::new();
    }
    hierarchies.retain(|hierarchy| hierarchy.join(node).exists());
    hierarchies
}

fn create_cgroups(name: &str) -> anyhow::Result<()> {
    for hierarchy in hierarchies() {
        let own = hierarchy.join(name);
        if fs::create_dir_all(&own).is_err() {
            // Not every hierarchy takes groups (v2's place beside v1's, for one).
            continue;
        }
        // A new group of v1 has no CPUs until it is given some.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read_to_string(hierarchy.join(file)) {
                fs::write(own.join(file), all)?;
            }
        }
        if let Ok(controllers) = fs::read_to_string(hierarchy.join("cgroup.controllers")) {
            let enable: Vec<String> = controllers
                .split_whitespace()
                .map(|name| format!("+{name}"))
                .collect();
            let _ = fs::write(hierarchy.join("cgroup.subtree_control"), enable.join(" "));
        }
    }
    Ok(())
}

/// Removes the cgroups of all nodes of a cluster.
pub(crate) fn remove_cgroups(cluster: &str) -> anyhow::Result<()> {
    remove_cgroups_that(|name| network::belongs(cluster, name))
}

fn remove_cgroups_that(wanted: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    for hierarchy in hierarchies() {
        for entry in fs::read_dir(hierarchy).into_iter().flatten().flatten() {
            if wanted(&entry.file_name().to_string_lossy()) {
                // The last processes of a killed container may take a moment to be gone.
                wait_for("cgroups to be empty", || remove_tree(&entry.path()).ok())?;
            }
        }
    }
    Ok(())
}

/// `rmdir` from the leaves up: the files of cgroupfs are not to be removed.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
